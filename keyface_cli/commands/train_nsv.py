"""`keyface train nsv`: the classifier behind NSV accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console, options


def nsv(
    data: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Clips by label: FOLDER/LABEL/*.mp4."),
    ],
    output: Annotated[Path, options.writes("FOLDER", "The classifier to write.")],
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="A video classifier of transformers to fine-tune.",
            show_default="a small VideoMAE from nothing",
        ),
    ] = None,
    updates: Annotated[int, typer.Option(min=1, help="Updates in all.")] = 600,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips in an update.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1.0, help="At its peak.")] = 5e-4,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of clips that are only measured.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of weights, order and split.")] = 0,
    device: options.DeviceOption = "auto",
) -> None:
    """Train a classifier of non-speech vocalisations, for the metric of that name."""
    from keyface_cli.device import resolve_device
    from keyface_cli.training.nsv import NsvOptions, train_nsv

    choices = NsvOptions(updates, batch_size, learning_rate, held_out, seed)
    place = str(resolve_device(device))
    facts = train_nsv(data, output, choices, start_from, place, console.say)
    console.say(f"accuracy on {facts['held_out']} held-out clips: {facts['accuracy']:.3f}")
    typer.echo(output)
