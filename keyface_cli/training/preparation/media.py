"""A video's pictures at 25 a second and its sound at 16 kHz, on one clock, a piece at a time."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS, SAMPLE_RATE
from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import input_of
from keyface_cli.media.frames import VIDEO_SUFFIXES, decode


def find_videos(places: list[Path]) -> list[Path]:
    """Return the video files that are named or lie in the folders named, in order.

    Raises:
        VideoError: a place is missing, or there is no video in any.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = (path for path in place.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
            found += sorted(path for path in files if path.is_file())
        elif place.is_file():
            found.append(place)
        else:
            raise VideoError(f"no such file or folder: {place}")
    if not found:
        raise VideoError(
            f"no video in {', '.join(map(str, places))}",
            f"it looks for {', '.join(VIDEO_SUFFIXES)}",
        )
    return list(dict.fromkeys(found))


def frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Decode pictures at 25 a second, upright: RGB (H, W, 3).

    The first is that of the moment at which the file's clock begins, which is also when its sound
    in `sound` begins; a picture that starts later is repeated up to there.

    Raises:
        VideoError: the file is no video, or is damaged before its first picture.
    """
    return decode(path, [f"fps={FPS}:start_time=0"], whole=False)


@contextmanager
def sound(path: Path) -> Iterator[NDArray[np.float32]]:
    """Decode a video's sound to a file that is read as an array: (S,) mono in [-1, 1] at 16 kHz.

    It begins when the file's clock does; what is missing there, or in between, is silence. A video
    without sound gives an empty array.
    """
    resample = f"aresample={SAMPLE_RATE}:async=1:first_pts=0"
    options = ["-map", "0:a:0?", "-vn", "-ac", "1", "-af", resample, "-f", "f32le"]
    with tempfile.TemporaryFile() as file:
        command = [*input_of(path), *options, "pipe:1"]
        quiet = subprocess.DEVNULL
        subprocess.run(command, stdin=quiet, stdout=file, stderr=quiet, check=False)
        size = os.fstat(file.fileno()).st_size // 4
        if size:
            yield np.memmap(file, np.float32, "r", shape=(size,))
        else:
            yield np.zeros(0, np.float32)
