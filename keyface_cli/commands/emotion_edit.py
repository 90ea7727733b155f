"""`keyface emotion edit`: draw a curve over the sound, and see the keyframes under it."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyface_cli.commands import console, options
from keyface_cli.files import check_free
from keyface_cli.jobs.job import Job, default_output
from keyface_cli.options import flag, options_of

if TYPE_CHECKING:
    from keyface_cli.editor.worker import Worker

# the curve is what is drawn; the others are asked for in the page
_NOT_HERE = {"emotion", "voice_model", "restart", "keep_job", "keyframes_only"}
CHOICES = tuple(name for name in options_of(Job) if name not in _NOT_HERE)


@options.taking(Job, *CHOICES)
def edit(
    curve: Annotated[
        Path, typer.Argument(metavar="CURVE", help="The CSV or JSON file; made where missing.")
    ],
    audio: Annotated[
        Path, typer.Option("--audio", "-a", metavar="AUDIO", help="The recording it belongs to.")
    ],
    portrait: Annotated[
        Path | None,
        typer.Option(
            "--portrait", "-p", metavar="PORTRAIT", help="Show the keyframes of this face, live."
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option(help="Open the page; its address is printed in any case.")
    ] = True,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page.", show_default="a free one")
    ] = 0,
    output: options.OutputOption = None,
    model: options.ModelOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    vae_dtype: options.VaeDtypeOption = None,
    memory: options.MemoryOption = "auto",
    *,
    choices: dict[str, Any],
) -> None:
    """Draw a curve over the sound, in a page that only this machine can open.

    With --portrait the page shows the keyframes under the curve, as animate would make them with
    the same options, makes parts of the video to look at, and the whole.
    """
    import tempfile
    import webbrowser

    import soundfile

    from keyface_cli.config import SAMPLE_RATE
    from keyface_cli.editor.lock import editing
    from keyface_cli.editor.page import Editor
    from keyface_cli.jobs.runner import ComputeOptions
    from keyface_cli.media.audio import load_waveform

    check_free(curve, force=True, inputs=[audio, *([portrait] if portrait else [])])
    if portrait is None:
        _refuse({**choices, "output": output, "model": model})
    waveform = load_waveform(audio, choices["start"], choices["duration"])
    with ExitStack() as stack:
        stack.enter_context(editing(curve))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="keyface-"))
        sound = Path(folder) / "sound.wav"  # what any browser plays, whatever the recording is
        soundfile.write(sound, waveform, SAMPLE_RATE, subtype="PCM_16")
        worker = None
        if portrait is not None:
            target = output or default_output(portrait, audio)
            emotion = str(curve) if curve.exists() else "neutral"
            job = Job(portrait=portrait, audio=audio, output=target, emotion=emotion, **choices)
            compute = ComputeOptions(device, dtype, vae_dtype, memory)
            worker = stack.enter_context(_worker(job, compute, model))
        editor = Editor(curve, waveform, sound, worker)
        page = stack.enter_context(editor.page(port=port))
        console.say(f"editing {curve}: {page.url} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(page.url)
        try:
            page.serve()
        finally:
            if editor.draft.exists():
                console.say(f"what was not saved is kept in {editor.draft}")
    if editor.saves:
        typer.echo(curve)
    for path in worker.finished if worker is not None else ():
        typer.echo(path)


def _refuse(given: dict[str, Any]) -> None:
    """Refuse options of animate where nothing is animated; start and duration cut the sound."""
    defaults = {one.name: one.default for one in dataclasses.fields(Job)}
    for name, value in given.items():
        usual = None if name in ("output", "model") else defaults[name]
        if value != usual and name not in ("start", "duration"):
            raise typer.BadParameter("means nothing without --portrait", param_hint=flag(name))


def _worker(job: Job, compute: Any, model: str | None) -> Worker:
    """Look at the job's files, and return what samples its keyframes."""
    from keyface_cli.checkpoints.checkpoint import Checkpoint
    from keyface_cli.checkpoints.installed import resolve_model
    from keyface_cli.editor.worker import Worker
    from keyface_cli.errors import VideoError
    from keyface_cli.jobs.plan import make_plan, read
    from keyface_cli.output.formats import STDOUT

    if job.output == STDOUT:
        raise VideoError("the page writes no pipe", "name a file with -o")
    # whether the video may be replaced is asked when it is made
    plan = make_plan(dataclasses.replace(job, force=True))
    checkpoint = Checkpoint.open(resolve_model(model))
    plan = dataclasses.replace(plan, job=job)
    return Worker(plan, read(plan, checkpoint), checkpoint, compute, is_default=model is None)
