"""Where ffmpeg is and what it said when it failed: shared by `audio` and `video`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from keyface_cli.errors import VideoError

_PREFIX = re.compile(r"^(\[[^\]]*\] )+")  # "[aac @ 0x55e6] ", which means nothing to a user
_NOISE = re.compile(r"Task finished with error|Terminating thread|Conversion failed")
_SHOWN_LINES = 3
_TIMEOUT_S = 60.0


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


def input_of(path: Path) -> list[str]:
    """Return the program and its first arguments, which read a file and nothing else."""
    protocols = ["-protocol_whitelist", "file,pipe"]
    return [find_ffmpeg(), "-v", "error", "-nostdin", *protocols, "-i", file_url(path)]


@contextmanager
def decoding(command: list[str]) -> Iterator[tuple[IO[bytes], Callable[[], tuple[int, str]]]]:
    """Run ffmpeg while what it writes is read; left early, it is ended.

    Args:
        command: the program and its arguments.

    Yields:
        Its output, and what waits for its end and returns its exit code and its messages.

    Raises:
        VideoError: it cannot be run.
    """
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        except OSError as error:
            raise VideoError(f"ffmpeg cannot be run: {error.strerror or error}") from error
        assert process.stdout is not None

        def ended() -> tuple[int, str]:
            code = process.wait()
            log.seek(0)
            return code, log.read().decode("utf-8", "replace")

        try:
            yield process.stdout, ended
        finally:
            process.kill()  # where all was read it has ended by itself
            process.wait()
            process.stdout.close()


def read_tag(path: Path, name: str) -> str:
    """Return one field of a file's metadata; "" where it has none.

    Raises:
        VideoError: the file cannot be read, or there is no ffmpeg.
    """
    command = [*input_of(path), "-f", "ffmetadata", "pipe:1"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise VideoError(f"{path}: could not be read in a minute") from None
    if done.returncode != 0:
        said = last_words(done.stderr.decode("utf-8", "replace"))
        raise VideoError(f"{path}: not a video that can be read: {said}")
    text = done.stdout.decode("utf-8", "replace")
    found = re.search(rf"^{name}=(.*)$", text, re.MULTILINE | re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""


def last_words(stderr: str) -> str:
    """Return the last lines of ffmpeg's messages as one line, without its internal noise."""
    lines: list[str] = []
    for line in stderr.splitlines():
        text = _PREFIX.sub("", line.strip())
        if text and text not in lines and not _NOISE.search(text):
            lines.append(text)
    return "; ".join(lines[-_SHOWN_LINES:]) or "no message"
