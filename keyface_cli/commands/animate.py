"""`keyface animate`: a portrait and a recording become a video."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from keyface_cli import __version__
from keyface_cli.checkpoint import Checkpoint, encoder_names, resolve_model
from keyface_cli.commands import console, options
from keyface_cli.config import FPS
from keyface_cli.errors import VideoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from keyface_cli.pipeline import KeyFacePipeline

logger = logging.getLogger(__name__)

EXAMPLES = """\
[bold]Examples[/bold]

keyface animate examples/avatar.png examples/speech.wav -o talk.mp4

keyface animate examples/avatar.png examples/speech.wav -e examples/curve.csv --duration 4 --json
"""


@dataclass(frozen=True)
class Job:
    """One video to make: the files and every choice, as `animate` was given them."""

    portrait: Path
    audio: Path
    output: Path
    emotion: str
    start_s: float
    duration_s: float | None
    seed: int
    steps: int | None
    audio_guidance: float | None
    identity_guidance: float | None
    autoguidance: float | None
    chunk: int
    crf: int
    force: bool
    features: Path | None
    crop: str
    face: str
    require_face: bool
    portrait_time_s: float | None
    background: str | None


class Machine(NamedTuple):
    """Where and how to compute: see `KeyFacePipeline.load`."""

    device: str
    dtype: str
    vae_dtype: str | None
    memory: str
    compile: bool


class Inputs(NamedTuple):
    """What the pipeline takes: see `KeyFacePipeline.stream`."""

    portrait: NDArray[np.float32]
    waveform: NDArray[np.float32]
    emotion: NDArray[np.float32]
    features: dict[str, Tensor] | None


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
    crf: options.CrfOption = 18,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    crop: options.CropOption = "auto",
    face: options.FaceOption = "largest",
    require_face: options.RequireFaceOption = False,
    portrait_time: options.PortraitTimeOption = None,
    background: options.BackgroundOption = None,
    emotion: options.EmotionOption = "neutral",
    start: options.StartOption = 0.0,
    duration: options.DurationOption = None,
    features: options.FeaturesOption = None,
    model: options.ModelOption = None,
    seed: options.SeedOption = 0,
    steps: options.StepsOption = None,
    audio_guidance: options.AudioGuidanceOption = None,
    identity_guidance: options.IdentityGuidanceOption = None,
    autoguidance: options.AutoguidanceOption = None,
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
        portrait,
        audio,
        output or Path(f"{portrait.stem}-{audio.stem}.mp4"),
        emotion,
        start,
        duration,
        seed,
        steps,
        audio_guidance,
        identity_guidance,
        autoguidance,
        chunk,
        crf,
        force,
        features,
        crop,
        face,
        require_face,
        portrait_time,
        background,
    )
    check_files(job)
    checkpoint = Checkpoint.open(resolve_model(model))
    inputs = read_inputs(job, checkpoint)
    machine = Machine(device, dtype, vae_dtype, memory, compile_networks)
    hear = inputs.features is None
    pipeline = load_pipeline(checkpoint, machine, is_default=model is None, hear=hear)
    timings = make_video(job, inputs, pipeline)
    timings["total"] = time.perf_counter() - started
    result = describe(job, len(inputs.emotion), pipeline, timings)
    console.say(summary(result))
    typer.echo(json.dumps(result) if as_json else str(job.output))


def check_files(job: Job) -> None:
    """Check what can be checked in an instant.

    Raises:
        VideoError: the output cannot be written, is one of the inputs, or ffmpeg is absent.
    """
    from keyface_cli.ffmpeg import find_ffmpeg
    from keyface_cli.video import check_output

    for source in (job.portrait, job.audio):
        if source.exists() and job.output.exists() and source.samefile(job.output):
            raise VideoError(f"{job.output}: is an input, and would be replaced by the output")
    check_output(job.output, job.force)
    find_ffmpeg()


def read_inputs(job: Job, checkpoint: Checkpoint) -> Inputs:
    """Read the emotion, the portrait and the recording, in the order of what they cost.

    Raises:
        EmotionError, PortraitError, AudioError, FeaturesError: one of them cannot be used.
    """
    from keyface_cli.audio import count_frames, load_waveform
    from keyface_cli.emotion import load_emotion

    track = load_emotion(job.emotion)
    portrait = read_portrait(job, checkpoint)
    waveform = load_waveform(job.audio, job.start_s, job.duration_s)
    N = count_frames(len(waveform))
    features = None
    if job.features is not None:
        from keyface_cli.features import load_features, origin

        names = encoder_names(checkpoint.config)
        belongs = origin(job.audio, job.start_s, job.duration_s, checkpoint, names)
        features = load_features(job.features, belongs, N)
    return Inputs(portrait, waveform, track.sample(N), features)


def read_portrait(job: Job, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Read the portrait and cut out the square that the model will see, (3, R, R) in [-1, 1].

    Raises:
        PortraitError: it cannot be read, or has no such face or crop.
    """
    from keyface_cli.framing import (
        FRAMES,
        PUBLISHED,
        choose_crop,
        cut,
        to_network,
        warn_of_few_pixels,
    )
    from keyface_cli.portrait import parse_colour, read_picture

    config = checkpoint.config
    colour = None if job.background is None else parse_colour(job.background)
    picture = read_picture(job.portrait, colour, job.portrait_time_s)
    frame = FRAMES.get(config.preset, PUBLISHED)
    crop = choose_crop(job.portrait, picture, job.crop, job.face, frame, job.require_face)
    warn_of_few_pixels(job.portrait, crop, config.resolution)
    return to_network(cut(picture, crop, config.resolution))


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
        console.say(f"memory: {pipeline.residency.level}")
    pipeline.timings["load"] = time.perf_counter() - started  # with the imports
    return pipeline


def make_video(job: Job, inputs: Inputs, pipeline: KeyFacePipeline) -> dict[str, float]:
    """Generate the frames and write the video while they come.

    Returns:
        Seconds of each stage; "encode" is how long the frames had to wait for ffmpeg, which runs
        beside the network.
    """
    from keyface_cli.stream import GenerationOptions
    from keyface_cli.video import SoundTrack, VideoWriter

    choices = GenerationOptions(
        job.seed,
        job.steps,
        job.audio_guidance,
        job.identity_guidance,
        job.autoguidance,
        job.chunk,
    )
    config = pipeline.checkpoint.config
    metadata = {
        "tool": f"keyface {__version__}",
        "model": pipeline.checkpoint.name,
        "seed": job.seed,
        **asdict(choices.sampling(config.sampling)),
        "emotion": Path(job.emotion).name,
    }
    with console.StageProgress() as progress:
        sound, features = inputs.waveform, inputs.features
        frames = pipeline.stream(
            inputs.portrait, sound, inputs.emotion, choices, progress, features
        )
        with VideoWriter(
            job.output,
            num_frames=len(inputs.emotion),
            size=(config.resolution, config.resolution),
            sound=SoundTrack(job.audio, job.start_s, job.duration_s),
            crf=job.crf,
            metadata=metadata,
            force=job.force,
        ) as writer:
            for piece in frames:
                writer.write(piece)
    stages = ("load", "audio", "keyframes", "interpolation", "decode")
    return {stage: pipeline.timings[stage] for stage in stages} | {"encode": writer.waited_s}


def describe(
    job: Job, num_frames: int, pipeline: KeyFacePipeline, timings: dict[str, float]
) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    checkpoint = pipeline.checkpoint
    return {
        "output": str(job.output),
        "frames": num_frames,
        "fps": FPS,
        "seconds": num_frames / FPS,
        "width": checkpoint.config.resolution,
        "height": checkpoint.config.resolution,
        "model": checkpoint.name,
        "seed": job.seed,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "timings": {stage: round(seconds, 3) for stage, seconds in timings.items()},
    }


def summary(result: dict[str, Any]) -> str:
    """Say in one line what took how long."""
    timings = result["timings"]
    parts = (f"{stage} {seconds:.1f}" for stage, seconds in timings.items() if stage != "total")
    return (
        f"{result['seconds']:.2f} s of video in {timings['total']:.1f} s "
        f"({result['frames'] / timings['total']:.1f} frames/s): {', '.join(parts)}"
    )
