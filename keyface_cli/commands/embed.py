"""`keyface embed`: a recording's audio features, kept for many portraits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.commands import console, options
from keyface_cli.errors import FeaturesError
from keyface_cli.files import check_free, file_hash
from keyface_cli.jobs.job import Job

EXAMPLES = """\
[bold]Examples[/bold]

keyface embed examples/speech.wav -o speech.safetensors

keyface animate examples/avatar.png examples/speech.wav --features speech.safetensors
"""


@options.taking(Job, "start", "duration")
def embed(
    audio: Annotated[
        Path,
        typer.Argument(metavar="AUDIO", help="A recording, or a video with a sound track."),
    ],
    output: Annotated[Path, options.writes("FILE.safetensors", "The file to write.")],
    force: options.ForceOption = False,
    model: options.ModelOption = None,
    device: options.DeviceOption = "auto",
    *,
    choices: dict[str, Any],
) -> None:
    """Write the audio features of a recording, for `animate --features`."""
    check_free(output, FeaturesError, force=force, inputs=[audio])
    start, duration = choices["start"], choices["duration"]
    checkpoint = Checkpoint.open(resolve_model(model))
    from keyface_cli.media.audio import count_frames, store_waveform
    from keyface_cli.media.features import origin, save_features

    waveform = store_waveform(audio, output.absolute().parent, start, duration)
    with console.waiting("listening"):
        from keyface_cli.embedding import encode_audio

        features = encode_audio(checkpoint, waveform, device)
        belongs = origin(file_hash(audio), start, duration, checkpoint, list(features))
        shapes = save_features(output, features, count_frames(len(waveform)), belongs)
    for name, shape in shapes.items():
        console.say(f"{name}: {' x '.join(map(str, shape))}")
    typer.echo(output)
