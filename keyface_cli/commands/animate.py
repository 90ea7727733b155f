"""`keyface animate`: a portrait and a recording become a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.commands import console, options
from keyface_cli.jobs.job import Job, default_output
from keyface_cli.jobs.plan import make_plan
from keyface_cli.jobs.runner import ComputeOptions, Runner
from keyface_cli.output.formats import STDOUT

EXAMPLES = """\
[bold]Examples[/bold]

keyface animate examples/portrait.jpg examples/speech.wav -o talk.mp4

keyface animate examples/avatar.png examples/speech.wav -e examples/curve.csv --duration 4 --json
"""


@options.taking(Job)
def animate(
    portrait: Annotated[
        Path,
        typer.Argument(
            metavar="PORTRAIT", help="A picture, or a video of which one frame is taken."
        ),
    ],
    audio: Annotated[
        Path,
        typer.Argument(metavar="AUDIO", help="A recording, or a video with a sound track."),
    ],
    output: options.OutputOption = None,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    model: options.ModelOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    vae_dtype: options.VaeDtypeOption = None,
    memory: options.MemoryOption = "auto",
    compile_networks: options.CompileOption = False,
    cluster: options.ClusterOption = None,
    *,
    choices: dict[str, Any],
) -> None:
    """Make the face in a portrait speak a recording."""
    if quiet:
        console.set_quiet()
    target = output or default_output(portrait, audio)
    job = Job(portrait=portrait, audio=audio, output=target, force=force, **choices)
    if as_json and job.output == STDOUT:
        raise typer.BadParameter("stdout is taken by the frames", param_hint="--json")
    plan = make_plan(job)
    compute = ComputeOptions(device, dtype, vae_dtype, memory, compile_networks)
    checkpoint = Checkpoint.open(resolve_model(model))
    runner = Runner(
        checkpoint, compute, console.Terminal(), is_default=model is None, cluster=cluster
    )
    result = runner.run(plan)
    if not job.keyframes_only:
        console.say(summary(result))
    if as_json:
        typer.echo(json.dumps(result))
    elif job.output != STDOUT:
        typer.echo(result["output"])


def summary(result: dict[str, Any]) -> str:
    """Say in one line what took how long."""
    timings = result["timings"]
    parts = (f"{stage} {seconds:.1f}" for stage, seconds in timings.items() if stage != "total")
    return (
        f"{result['seconds']:.2f} s of video in {timings['total']:.1f} s "
        f"({result['frames'] / timings['total']:.1f} frames/s): {', '.join(parts)}"
    )
