"""`keyface animate`: a portrait and a recording become a video."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.commands import console, options
from keyface_cli.jobs.job import Job, check, identity, read, recipe
from keyface_cli.output.formats import STDOUT

if TYPE_CHECKING:
    from keyface_cli.jobs.jobfolder import JobFolder
    from keyface_cli.pipeline import KeyFacePipeline

logger = logging.getLogger(__name__)

EXAMPLES = """\
[bold]Examples[/bold]

keyface animate examples/avatar.png examples/speech.wav -o talk.mp4

keyface animate examples/avatar.png examples/speech.wav -e examples/curve.csv --duration 4 --json
"""


class Machine(NamedTuple):
    """Where and how to compute: see `KeyFacePipeline.load`."""

    device: str
    dtype: str
    vae_dtype: str | None
    memory: str
    compile: bool


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
    paste_back: options.PasteBackOption = False,
    size: options.SizeOption = None,
    fps: options.FpsOption = 25,
    crf: options.CrfOption = 18,
    restart: options.RestartOption = False,
    keep_job: options.KeepJobOption = False,
    keyframes_only: options.KeyframesOnlyOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    crop: options.CropOption = "auto",
    face: options.FaceOption = "largest",
    require_face: options.RequireFaceOption = False,
    portrait_time: options.PortraitTimeOption = None,
    background: options.BackgroundOption = None,
    emotion: options.EmotionOption = "neutral",
    emotion_strength: options.EmotionStrengthOption = 1.0,
    voice_model: options.VoiceModelOption = None,
    start: options.StartOption = 0.0,
    duration: options.DurationOption = None,
    audio_offset: options.AudioOffsetOption = 0.0,
    features: options.FeaturesOption = None,
    model: options.ModelOption = None,
    seed: options.SeedOption = 0,
    steps: options.StepsOption = None,
    audio_guidance: options.AudioGuidanceOption = None,
    identity_guidance: options.IdentityGuidanceOption = None,
    autoguidance: options.AutoguidanceOption = None,
    emotion_guidance: options.EmotionGuidanceOption = None,
    detail: options.DetailOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    vae_dtype: options.VaeDtypeOption = None,
    memory: options.MemoryOption = "auto",
    compile_networks: options.CompileOption = False,
    chunk: options.ChunkOption = 2,
) -> None:
    """Make the face in a portrait speak a recording."""
    started = time.perf_counter()
    if quiet:
        console.hush()
    job = Job(
        portrait=portrait,
        audio=audio,
        output=output or Path(f"{portrait.stem}-{audio.stem}.mp4"),
        crop=crop,
        face=face,
        require_face=require_face,
        portrait_time=portrait_time,
        background=background,
        paste_back=paste_back,
        size=size,
        fps=fps,
        crf=crf,
        emotion=emotion,
        emotion_strength=emotion_strength,
        voice_model=voice_model,
        start=start,
        duration=duration,
        audio_offset=audio_offset,
        features=features,
        seed=seed,
        steps=steps,
        audio_guidance=audio_guidance,
        identity_guidance=identity_guidance,
        autoguidance=autoguidance,
        emotion_guidance=emotion_guidance,
        detail=detail,
        chunk=chunk,
        force=force,
        restart=restart,
        keep_job=keep_job,
        keyframes_only=keyframes_only,
    )
    if as_json and job.output == STDOUT:
        raise typer.BadParameter("stdout is taken by the frames", param_hint="--json")
    check(job)
    machine = Machine(device, dtype, vae_dtype, memory, compile_networks)
    result = run(job, model, machine)
    result["timings"]["total"] = time.perf_counter() - started
    result["timings"] = {stage: round(s, 3) for stage, s in result["timings"].items()}
    if not keyframes_only:
        console.say(summary(result))
    if as_json:
        typer.echo(json.dumps(result))
    elif job.output != STDOUT:
        typer.echo(result["output"])


def run(job: Job, model: str | None, machine: Machine) -> dict[str, Any]:
    """Read a job's files, load the model and make the video, or its keyframes.

    Raises:
        KeyFaceError: of any kind.
    """
    checkpoint = Checkpoint.open(resolve_model(model))
    prepared = read(job, checkpoint)
    with job_folder(job, checkpoint, machine) as folder:
        level = None if folder is None else folder.notes.get("memory")
        if machine.memory == "auto" and level is not None:
            machine = machine._replace(memory=level)  # another one gives other bits
        hear = prepared.features is None
        pipeline = load_pipeline(checkpoint, machine, is_default=model is None, hear=hear)
        if folder is not None:
            folder.note(memory=pipeline.memory)
        from keyface_cli.jobs.make_video import make_keyframes, make_video

        facts = {
            "model": checkpoint.name,
            "seed": job.seed,
            "device": str(pipeline.device),
            "dtype": str(pipeline.dtype).removeprefix("torch."),
        }
        with console.StageProgress() as progress:
            if job.keyframes_only and folder is not None:
                place = make_keyframes(job, prepared, pipeline, folder, progress)
                return {"output": str(place), **facts, "timings": dict(pipeline.timings)}
            made = make_video(job, prepared, recipe(job, checkpoint), pipeline, folder, progress)
    timings = made.pop("timings")
    return {**made, **facts, "timings": timings}


@contextmanager
def job_folder(job: Job, checkpoint: Checkpoint, machine: Machine) -> Iterator[JobFolder | None]:
    """Open the folder beside the output that keeps what is finished; a pipe has none.

    Raises:
        JobError: it was begun with something else.
        DeviceError: the device is not there.
    """
    if job.output == STDOUT:
        yield None
        return
    from keyface_cli.device import resolve_device, resolve_dtype
    from keyface_cli.jobs.jobfolder import JobFolder

    place = resolve_device(machine.device)
    dtype = str(resolve_dtype(machine.dtype, place)).removeprefix("torch.")
    belongs = identity(job, recipe(job, checkpoint), str(place), dtype, machine.vae_dtype)
    with JobFolder(job.output, belongs, job.restart) as folder:
        if folder.resumed:
            console.say(f"going on with what is finished in {folder.path}")
        try:
            yield folder
        except BaseException:
            if folder.finished:
                console.say(f"kept in {folder.path}: the same command goes on from there")
            raise


def load_pipeline(
    checkpoint: Checkpoint, machine: Machine, *, is_default: bool, hear: bool = True
) -> KeyFacePipeline:
    """Load a model and say which; the device is looked at before anything slow is imported.

    Raises:
        DeviceError: the device is not there.
        WeightsError: a file of the model is damaged.
    """
    started = time.perf_counter()
    from keyface_cli.device import resolve_device, resolve_dtype

    place = resolve_device(machine.device)
    kind = str(resolve_dtype(machine.dtype, place)).removeprefix("torch.")
    note = ""
    if is_default and checkpoint.name != "keyface":
        note = " (the published weights are not installed)"
    logger.info("model folder: %s", checkpoint.folder)
    console.say(f"model: {checkpoint.name}{note}, on {place} in {kind}")

    with console.waiting("loading the model"):
        from keyface_cli.pipeline import KeyFacePipeline

        pipeline = KeyFacePipeline.load(
            checkpoint,
            str(place),
            kind,
            vae_dtype=machine.vae_dtype,
            memory=machine.memory,
            compile=machine.compile,
            hear=hear,
        )
    if place.type != "cpu":
        console.say(f"memory: {pipeline.memory}")
    pipeline.timings["load"] = time.perf_counter() - started  # with the imports
    return pipeline


def summary(result: dict[str, Any]) -> str:
    """Say in one line what took how long."""
    timings = result["timings"]
    parts = (f"{stage} {seconds:.1f}" for stage, seconds in timings.items() if stage != "total")
    return (
        f"{result['seconds']:.2f} s of video in {timings['total']:.1f} s "
        f"({result['frames'] / timings['total']:.1f} frames/s): {', '.join(parts)}"
    )
