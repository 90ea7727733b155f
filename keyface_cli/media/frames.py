"""Video files as streams of frames: what they hold, checked before anything is computed."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import VideoError
from keyface_cli.files import check_given
from keyface_cli.media.ffmpeg import decoding, input_of, last_words

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
    check_given(path, "a video", "video", VideoError)
    command = [*input_of(path), "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
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
    filters, options = [], []
    if conform.fps is not None:
        filters.append(f"fps={Fraction(conform.fps).limit_denominator(1001)}")
    else:
        options += ["-fps_mode", "passthrough"]
    if conform.size is not None:
        filters.append(f"scale={conform.size[0]}:{conform.size[1]}:flags=lanczos")
    if conform.frames is not None:
        options += ["-frames:v", str(conform.frames)]
    pictures = decode(path, filters, options)
    while frames := list(islice(pictures, block)):
        yield np.stack(frames)


def decode(
    path: Path, filters: Sequence[str] = (), options: Sequence[str] = (), *, whole: bool = True
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode a video picture by picture, upright.

    Args:
        path: the file.
        filters: of ffmpeg, that the pictures go through.
        options: of ffmpeg, for its output.
        whole: refuse a file that is damaged or cut off; False takes what there is of it.

    Yields:
        uint8 (H, W, 3) RGB.

    Raises:
        VideoError: it is damaged, or holds no picture that can be read.
    """
    command = [*input_of(path), "-map", "0:v:0"]
    command += ["-vf", ",".join(filters)] if filters else []
    command += [*options, "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]
    total = 0
    with decoding(command) as (output, ended):
        while (frame := _read_ppm(output)) is not None:
            total += 1
            yield frame
        code, said = ended()
    if not total:
        raise _not_video(path, said)
    if whole and (code != 0 or said.strip()):
        raise VideoError(
            f"{path}: damaged after frame {total}: {last_words(said)}", "make or copy it again"
        )


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


def _read_ppm(pipe: IO[bytes]) -> NDArray[np.uint8] | None:
    """Read a picture as ffmpeg writes it: "P6", width and height, 255, each on a line."""
    if not pipe.readline():
        return None
    width, height = map(int, pipe.readline().split())
    pipe.readline()
    data = pipe.read(width * height * 3)
    if len(data) < width * height * 3:
        return None  # ffmpeg ended in the middle; its messages say why
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
