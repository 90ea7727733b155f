"""Where ffmpeg is and what it said when it failed: shared by `audio` and `video`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import imageio_ffmpeg

from keyface_cli.errors import VideoError

_PREFIX = re.compile(r"^(\[[^\]]*\] )+")  # "[aac @ 0x55e6] ", which means nothing to a user
_NOISE = re.compile(r"Task finished with error|Terminating thread|Conversion failed")
_SHOWN_LINES = 3


def find_ffmpeg() -> str:
    """Return the ffmpeg program: `IMAGEIO_FFMPEG_EXE`, else the bundled one, else the system's.

    Raises:
        VideoError: there is none that can be run.
    """
    try:
        found = shutil.which(str(imageio_ffmpeg.get_ffmpeg_exe()))
    except RuntimeError:
        found = None
    if found is None:
        raise VideoError(
            "ffmpeg was not found",
            "reinstall imageio-ffmpeg, which brings one, or name one in IMAGEIO_FFMPEG_EXE",
        )
    return found


def file_url(path: Path) -> str:
    """Return `path` so that ffmpeg takes it for a file, whatever characters it holds."""
    return f"file:{path}"


def last_words(stderr: str) -> str:
    """Return the last lines of ffmpeg's messages as one line, without its internal noise."""
    lines: list[str] = []
    for line in stderr.splitlines():
        text = _PREFIX.sub("", line.strip())
        if text and text not in lines and not _NOISE.search(text):
            lines.append(text)
    return "; ".join(lines[-_SHOWN_LINES:]) or "no message"
