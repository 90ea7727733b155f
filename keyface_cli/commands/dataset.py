"""`keyface dataset`: training data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console
from keyface_cli.config import PRESETS
from keyface_cli.errors import ConfigError

app = typer.Typer(
    name="dataset",
    no_args_is_help=True,
    help="Make training data.",
    epilog="""\
[bold]Examples[/bold]

keyface dataset avatars -o data --hours 4 --seed 1
""",
)
FolderOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Where the data goes.")
]
SCENES_PER_SHARD = 200


@app.command()
def avatars(
    folder: FolderOption,
    hours: Annotated[float, typer.Option(min=0.001, help="Hours of scenes.")] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 1,
    pictures: Annotated[int, typer.Option(min=64, help="Single pictures for the VAE.")] = 5000,
    preset: Annotated[str, typer.Option(help="Whose resolution: mini or tiny.")] = "mini",
) -> None:
    """Draw speaking avatars to train on; needs flite, espeak-ng and festival.

    A shard that is there already is kept, so the same command goes on where it was stopped.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset: {preset}", f"use one of {', '.join(PRESETS)}")
    resolution = PRESETS[preset].resolution
    from keyface_cli.config import FPS
    from keyface_cli.training.pictures import render_pool
    from keyface_cli.training.scenes import SCENE_FRAMES, render_frames, write_scenes

    scenes = math.ceil(hours * 3600 * FPS / SCENE_FRAMES)
    pool = folder / "pictures.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if not pool.exists():
        console.say(f"rendering {pictures} pictures")
        partial = pool.with_suffix(".part")
        render_pool(partial, pictures, resolution, seed)
        partial.replace(pool)
    for index in range(math.ceil(scenes / SCENES_PER_SHARD)):
        target = folder / f"{index:03d}"
        count = min(SCENES_PER_SHARD, scenes - index * SCENES_PER_SHARD)
        # scene seeds of different shards must not meet
        first = (seed * 1000 + index) * 10_000
        if not (target / "waveforms.npy").exists():
            console.say(f"speaking {count} scenes of shard {index}")
            write_scenes(target, count, first)
        if not (target / "runs.npy").exists():
            console.say(f"rendering shard {index}")
            render_frames(target, first, resolution)
    typer.echo(folder)
