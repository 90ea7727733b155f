"""Video files as streams of frames: what they hold, checked before anything is computed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import file_url, find_ffmpeg, last_words

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
_UNEVEN = 0.25  # of a frame: timestamps further from an even grid make the rate variable
_RATES = (1.0, 240.0)  # frames a second: outside these the header is damaged


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Args:
        path: the file.
        frames: how many pictures.
        fps: their rate; of a variable one the mean.
        variable: whether the pictures come at uneven times.
        size: width and height in pixels, upright.
    """

    path: Path
    frames: int
    fps: float
    variable: bool
    size: tuple[int, int]


@dataclass(frozen=True)
class Conform:
    """How a video is made comparable while it is read; None leaves as it is."""

    fps: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None


AS_IT_IS = Conform()


def probe(path: Path) -> VideoInfo:
    """Read a file's timestamps and its first picture.

    Raises:
        VideoError: it is missing, empty, no video, or cut off.
    """
    _check_file(path)
    command = [*_input(path), "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise _not_video(path, done.stderr)
    if done.stderr.strip():
        raise VideoError(
            f"{path}: truncated or damaged: {last_words(done.stderr)}", "make or copy it again"
        )
    times = _timestamps(done.stdout)
    if not times:
        raise VideoError(f"{path}: holds no pictures")
    gaps = np.diff(times)
    span = (times[-1] - times[0]) / max(len(gaps), 1)
    fps = 1 / span if len(gaps) and span > 0 else 25.0
    if not _RATES[0] <= fps <= _RATES[1]:
        raise VideoError(f"{path}: damaged: a rate of {fps:.3g} frames a second")
    grid = times[0] + np.arange(len(times)) * span
    variable = bool(np.abs(np.asarray(times) - grid).max() > _UNEVEN * span)
    first = next(read_frames(path, Conform(frames=1), block=1))
    return VideoInfo(path, len(times), fps, variable, (first.shape[2], first.shape[1]))


def read_frames(
    path: Path, conform: Conform | None = None, block: int = 16
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode a video block by block.

    Args:
        path: the file.
        conform: rate, size and number of frames to bring it to; pictures are repeated or left
            out by time, and resized by Lanczos.
        block: frames that are yielded together, fewer at the end.

    Yields:
        uint8 (n, H, W, 3) RGB.

    Raises:
        VideoError: it cannot be decoded, or ends early.
    """
    conform = conform or Conform()
    filters = []
    if conform.fps is not None:
        rate = Fraction(conform.fps).limit_denominator(1001)
        filters.append(f"fps={rate}")
    if conform.size is not None:
        filters.append(f"scale={conform.size[0]}:{conform.size[1]}:flags=lanczos")
    command = [*_input(path), "-map", "0:v:0"]
    if filters:
        command += ["-vf", ",".join(filters)]
    if conform.frames is not None:
        command += ["-frames:v", str(conform.frames)]
    if conform.fps is None:
        command += ["-fps_mode", "passthrough"]
    command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
        assert process.stdout is not None
        try:
            frames: list[NDArray[np.uint8]] = []
            total = 0
            while (frame := _read_ppm(process.stdout)) is not None:
                frames.append(frame)
                total += 1
                if len(frames) == block:
                    yield np.stack(frames)
                    frames = []
            if frames:
                yield np.stack(frames)
            code = process.wait()
            log.seek(0)
            words = log.read().decode("utf-8", "replace")
            if code != 0 or words.strip() or not total:
                raise VideoError(
                    f"{path}: damaged after frame {total}: {last_words(words)}",
                    "make or copy it again",
                )
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def list_videos(folder: Path) -> dict[str, Path]:
    """Return the videos of a folder by name without extension, in order.

    Raises:
        VideoError: no such folder, nothing in it, or two files of one name.
    """
    if not folder.is_dir():
        raise VideoError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise VideoError(f"{folder}: two files of one name: {found[path.stem]}, {path}")
            found[path.stem] = path
    if not found:
        raise VideoError(f"{folder}: holds no videos", f"{', '.join(VIDEO_SUFFIXES)} are read")
    return found


def _input(path: Path) -> list[str]:
    protocols = ["-protocol_whitelist", "file,pipe"]
    return [find_ffmpeg(), "-v", "error", "-nostdin", *protocols, "-i", file_url(path)]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise VideoError(f"{path}: is a folder, not a video")
    try:
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the video is empty (0 bytes)")
    except FileNotFoundError:
        raise VideoError(f"{path}: no such video") from None
    except OSError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from error


def _not_video(path: Path, stderr: str) -> VideoError:
    if "matches no streams" in stderr:
        return VideoError(f"{path}: holds no picture")
    return VideoError(f"{path}: not a video that can be read: {last_words(stderr)}")


def _timestamps(text: str) -> list[float]:
    """Return the sorted times in seconds of framecrc's lines, `stream, dts, pts, ...`."""
    unit = Fraction(1)
    times = []
    for line in text.splitlines():
        if line.startswith("#tb"):
            unit = Fraction(line.split(":")[1].strip())
        elif line and not line.startswith("#"):
            times.append(float(int(line.split(",")[2]) * unit))
    return sorted(times)


def _read_ppm(pipe: object) -> NDArray[np.uint8] | None:
    readline, read = pipe.readline, pipe.read  # type: ignore[attr-defined]
    if not readline():  # "P6"
        return None
    width, height = map(int, readline().split())
    readline()  # "255"
    data = read(width * height * 3)
    if len(data) < width * height * 3:
        return None  # ffmpeg ended in the middle; its messages say why
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
