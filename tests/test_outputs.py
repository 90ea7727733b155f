"""Every kind of result: what is in it, what it says of itself, and sound that stays in place."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.credentials.marks import COMPOSITE, Mark, read_mark
from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import find_ffmpeg
from keyface_cli.output.compose import Resize
from keyface_cli.output.formats import SoundTrack, check_output
from keyface_cli.output.metadata import read_metadata
from keyface_cli.output.writer import VideoWriter

SIZE = 64
METADATA = {"tool": "keyface 0", "seed": 3, "note": "quote ' \" = ; # \\ ü" + 300 * "x"}
Main = Callable[..., tuple[int, str, str]]


def make_frames(count: int) -> NDArray[np.uint8]:
    """Return frames whose brightness is their number."""
    frames = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    frames[:] = (20 + 3 * np.arange(count) % 200).astype(np.uint8)[:, None, None, None]
    return frames


def write(path: Path, sound: Path, frames: NDArray[np.uint8], **options: Any) -> Path:
    window = {key: options.pop(key) for key in ("start_s", "offset_s") if key in options}
    with VideoWriter(
        path,
        num_frames=len(frames),
        size=(SIZE, SIZE),
        sound=SoundTrack(sound, **window),
        metadata=METADATA,
        **options,
    ) as writer:
        for first in range(0, len(frames), 7):
            writer.write(frames[first : first + 7])
    return path


def ffmpeg(*arguments: object) -> bytes:
    command = [find_ffmpeg(), "-v", "error", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def brightness(path: Path, size: int = SIZE) -> NDArray[np.float64]:
    data = ffmpeg("-i", path, "-map", "0:v", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    frames = np.frombuffer(data, np.uint8).reshape(-1, size, size, 3)
    return frames.mean(axis=(1, 2, 3))


def sound_of(path: Path, rate: int) -> NDArray[np.float32]:
    data = ffmpeg("-i", path, "-map", "0:a", "-ac", "1", "-ar", rate, "-f", "f32le", "pipe:1")
    return np.frombuffer(data, "<f4")


def streams(path: Path) -> str:
    command = [find_ffmpeg(), "-hide_banner", "-nostdin", "-i", str(path)]
    return subprocess.run(command, capture_output=True, check=False).stderr.decode()


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "in.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (48_000, 2))
    soundfile.write(path, noise, 48_000)
    return path


@pytest.mark.parametrize(
    ("name", "video", "audio"),
    [
        ("a.mp4", "h264", "aac"),
        ("a.mov", "prores", "pcm_s24le"),
        ("a.webm", "vp9", "opus"),
        ("a.gif", "gif", None),
    ],
)
def test_kinds_of_video(
    tmp_path: Path, sound: Path, name: str, video: str, audio: str | None
) -> None:
    frames = make_frames(40)
    path = write(tmp_path / name, sound, frames)
    said = streams(path)
    assert f"Video: {video}" in said
    assert (f"Audio: {audio}" in said) if audio else ("Audio" not in said)
    shown = brightness(path)
    assert len(shown) == 40
    assert np.abs(shown - frames[:, 0, 0, 0]).max() < 5
    if audio:
        assert "48000 Hz, stereo" in said
        assert abs(len(sound_of(path, 48_000)) / 48_000 - 1.6) < 0.02
    assert read_metadata(path) == METADATA
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "in.wav"])


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.gif", "frames"])
def test_every_kind_says_that_it_is_synthetic(tmp_path: Path, sound: Path, name: str) -> None:
    for mark in (Mark(tool="keyface 1.2.3"), Mark(COMPOSITE, "keyface 1.2.3")):
        path = write(tmp_path / name, sound, make_frames(15), mark=mark, force=True)
        assert read_mark(path) == mark.source
        assert read_metadata(path) == METADATA
        if shutil.which("exiftool") is None:
            pytest.skip("exiftool is not installed")
        file = path / "000015.png" if path.is_dir() else path
        command = ["exiftool", "-j", "-DigitalSourceType", "-CreatorTool", str(file)]
        (found,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert found["DigitalSourceType"] == mark.uri
        assert found["CreatorTool"] == "keyface 1.2.3"


def test_a_seal_sees_the_whole_result_before_it_has_its_name(tmp_path: Path, sound: Path) -> None:
    path, seen = tmp_path / "a.mp4", []

    def seal(part: Path) -> None:
        assert not path.exists()
        seen.append(len(brightness(part)))

    write(path, sound, make_frames(15), seal=seal)
    assert seen == [15]

    def fail(part: Path) -> None:
        raise VideoError("no seal")

    before = path.read_bytes()
    with pytest.raises(VideoError, match="no seal"):
        write(path, sound, make_frames(20), seal=fail, force=True)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "in.wav"]


def test_folder_of_pictures_is_exact(tmp_path: Path, sound: Path) -> None:
    frames = make_frames(30)
    path = write(tmp_path / "frames", sound, frames)
    pictures = sorted(path.glob("*.png"))
    assert [p.name for p in pictures] == [f"{index:06d}.png" for index in range(1, 31)]
    for picture, frame in zip(pictures, frames, strict=True):
        assert np.array_equal(np.asarray(Image.open(picture)), frame)
    assert read_metadata(path) == METADATA
    with pytest.raises(VideoError, match="exists already"):
        check_output(path)
    write(path, sound, frames[:5], force=True)
    assert len(list(path.glob("*.png"))) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames", "in.wav"]


def test_pipe_takes_raw_frames(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.BytesIO()

    class Out:
        buffer = pipe

        @staticmethod
        def isatty() -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Out)
    frames = make_frames(30)
    write(Path("-"), sound, frames)
    assert pipe.getvalue() == frames.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["in.wav"]
    Out.isatty = staticmethod(lambda: True)  # type: ignore[method-assign]
    with pytest.raises(VideoError, match="not for a terminal"):
        check_output(Path("-"))


def test_pipe_that_is_closed_is_one_line(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    class Out:
        buffer = Closed()

    monkeypatch.setattr(sys, "stdout", Out)
    with pytest.raises(VideoError, match="the program that the frames were piped to has ended"):
        write(Path("-"), sound, make_frames(200))


@pytest.mark.parametrize("fps", [24, 30, 50, 60])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_other_rates_last_as_long(tmp_path: Path, sound: Path, fps: int, name: str) -> None:
    path = write(tmp_path / name, sound, make_frames(40), fps=fps)
    assert f" {fps} fps" in streams(path)
    assert len(brightness(path)) == round(40 * fps / 25)
    assert abs(len(sound_of(path, 48_000)) / 48_000 - 1.6) < 0.02


def test_size_of_the_result(tmp_path: Path, sound: Path) -> None:
    path = write(tmp_path / "a.mp4", sound, make_frames(10), composer=Resize((128, 128)))
    assert "128x128" in streams(path)
    assert len(brightness(path, 128)) == 10


def clicks(path: Path, rate: int, seconds: float) -> Path:
    """Write a click every half second, the first at 0.25 s."""
    samples = np.zeros(max(1, round(rate * seconds)), np.float32)
    for time_s in np.arange(0.25, seconds - 0.05, 0.5):
        at = round(time_s * rate)
        samples[at : at + max(8, rate // 500)] = 0.9  # 2 ms
    soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("seconds", [0.04, 1.0, 7.3, pytest.param(120.0, marks=pytest.mark.slow)])
def test_clicks_stay_at_their_frames(tmp_path: Path, rate: int, seconds: float) -> None:
    source = clicks(tmp_path / "a.wav", rate, seconds)
    count = -(-round(seconds * 16_000) // 640)
    path = write(tmp_path / "a.mp4", source, make_frames(count), piece_frames=650)
    track = sound_of(path, 16_000)
    assert abs(len(track) / 16_000 - count / 25) <= 0.04
    expected = np.arange(0.25, seconds - 0.05, 0.5)
    for time_s in expected[:: max(1, len(expected) // 20)]:
        first = round((time_s - 0.1) * 16_000)
        window = np.abs(track[first : first + 3200])
        assert abs((first + window.argmax()) / 16_000 - time_s - 0.001) < 0.02


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm"])
@pytest.mark.parametrize("offset_s", [-0.2, 0.0, 0.3])
def test_offset_moves_the_sound(tmp_path: Path, name: str, offset_s: float) -> None:
    source = clicks(tmp_path / "a.wav", 44_100, 2.0)
    path = write(tmp_path / name, source, make_frames(50), offset_s=offset_s)
    track = sound_of(path, 16_000)
    assert abs(len(track) / 16_000 - 2.0) <= 0.02
    for time_s in (0.75, 1.25):
        first = round((time_s + offset_s - 0.1) * 16_000)
        window = np.abs(track[first : first + 3200])
        assert abs((first + window.argmax()) / 16_000 - time_s - offset_s) < 0.005


def test_info_prints_how_it_was_made(
    tiny_checkpoint: Path, portrait_png: Path, tone_wav: Path, tmp_path: Path, main: Main
) -> None:
    path = tmp_path / "a b.mp4"
    fast = ("--steps", 1, "--crop", "center", "--device", "cpu", "--dtype", "float32")
    given = ("--duration", 0.2, "--emotion", "happy", "--fps", 30, "--size", 96, "-o", path)
    animate = ("animate", portrait_png, tone_wav, "-m", tiny_checkpoint, *fast, *given)
    assert main(*animate)[0] == 0
    code, out, _ = main("info", path)
    assert code == 0
    assert re.search("^seed: 0$", out, re.MULTILINE)
    assert out.splitlines()[-1] == (
        "keyface animate portrait.png tone.wav --model tiny --crop center --size 96 "
        "--emotion happy --duration 0.2 --fps 30 --steps 1 -o 'a b.mp4'"
    )
    described = json.loads(main("info", path, "--json")[1])
    assert described["command"] == out.splitlines()[-1]
    code, _, err = main("info", tone_wav)
    assert (code, "no keyface metadata found" in err) == (1, True)
    assert "no such file" in main("info", tmp_path / "absent")[2]
    assert "96x96" in streams(path)
    assert len(brightness(path, 96)) == 6


def test_the_whole_picture_comes_back(
    tiny_checkpoint: Path, tone_wav: Path, tmp_path: Path, main: Main
) -> None:
    picture = Image.effect_mandelbrot((301, 203), (-2, -1, 1, 1), 60).convert("RGB")
    picture.save(tmp_path / "wide.png")
    fast = ("--steps", 1, "--device", "cpu", "--dtype", "float32", "--duration", 0.12)
    given = ("--crop", "60,50,100,100", "--paste-back", "-o", tmp_path / "out")
    code, _, err = main(
        "animate", tmp_path / "wide.png", tone_wav, "-m", tiny_checkpoint, *fast, *given
    )
    assert code == 0, err
    original = np.asarray(picture)
    for name in ("000001.png", "000003.png"):
        result = np.asarray(Image.open(tmp_path / "out" / name))
        assert result.shape == original.shape
        changed = (result != original).any(axis=-1)
        rows, columns = np.nonzero(changed)
        assert (rows.min() >= 50, rows.max() < 150) == (True, True)
        assert (columns.min() >= 60, columns.max() < 160) == (True, True)
        assert changed.mean() > 0.08
