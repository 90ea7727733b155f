"""A video's pictures at 25 a second and its sound at 16 kHz, on one clock, a piece at a time."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS, SAMPLE_RATE
from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import file_url, find_ffmpeg, last_words

SUFFIXES = {".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi"}
_READ = 1 << 18  # samples


def find_videos(places: list[Path]) -> list[Path]:
    """Return the video files that are named or lie in the folders named, in order.

    Raises:
        VideoError: a place is missing, or there is no video in any.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
            found += sorted(path for path in files if path.is_file())
        elif place.is_file():
            found.append(place)
        else:
            raise VideoError(f"no such file or folder: {place}")
    if not found:
        raise VideoError(
            f"no video in {', '.join(map(str, places))}",
            f"it looks for {', '.join(sorted(SUFFIXES))}",
        )
    return list(dict.fromkeys(found))


def frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Decode pictures at 25 a second, upright: RGB (H, W, 3).

    The first is that of the moment at which the file's clock begins, which is also when its sound
    in `sound` begins; a picture that starts later is repeated up to there.

    Raises:
        VideoError: the file is no video, or is damaged before its first picture.
    """
    options = ["-map", "0:v:0", "-vf", f"fps={FPS}:start_time=0", "-c:v", "ppm"]
    given = 0
    with _ffmpeg(path, [*options, "-f", "image2pipe"]) as pipe:
        while (picture := _read_ppm(pipe)) is not None:
            yield picture
            given += 1
    if given == 0:
        raise VideoError(f"{path}: holds no picture that can be read")


def _read_ppm(pipe: IO[bytes]) -> NDArray[np.uint8] | None:
    if pipe.readline() != b"P6\n":
        return None
    width, height = map(int, pipe.readline().split())
    pipe.readline()  # the greatest value, 255
    data = pipe.read(width * height * 3)
    if len(data) < width * height * 3:  # the file was cut off
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@contextmanager
def sound(path: Path) -> Iterator[NDArray[np.float32]]:
    """Decode a video's sound to a file that is read as an array: (S,) mono in [-1, 1] at 16 kHz.

    It begins when the file's clock does; what is missing there, or in between, is silence. A video
    without sound gives an empty array.
    """
    resample = f"aresample={SAMPLE_RATE}:async=1:first_pts=0"
    options = ["-map", "0:a:0?", "-vn", "-ac", "1", "-af", resample, "-f", "f32le"]
    with tempfile.TemporaryFile() as file:
        with suppress(VideoError), _ffmpeg(path, options) as pipe:
            while data := pipe.read(4 * _READ):
                file.write(data)
        size = file.tell() // 4
        file.flush()
        if size:
            yield np.memmap(file, np.float32, "r", shape=(size,))
        else:
            yield np.zeros(0, np.float32)


@contextmanager
def _ffmpeg(path: Path, options: list[str]) -> Iterator[IO[bytes]]:
    """Run ffmpeg on a file and give its output."""
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-protocol_whitelist", "file,pipe"]
    command += ["-i", file_url(path), *options, "pipe:1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
        assert process.stdout is not None
        empty = True
        try:
            if empty := not process.stdout.peek(1):  # type: ignore[attr-defined]
                process.wait()
            yield process.stdout
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        if empty:
            log.seek(0)
            said = last_words(log.read().decode("utf-8", "replace"))
            raise VideoError(f"{path}: not a video that can be read: {said}")
