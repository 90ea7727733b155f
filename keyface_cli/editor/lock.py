"""One editor for a curve at a time: two would write the same draft."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from keyface_cli.errors import EmotionError
from keyface_cli.files import unwritable


@contextmanager
def editing(path: Path) -> Iterator[None]:
    """Keep a curve to this process, by a lock beside it that falls with the process.

    Args:
        path: the curve's file, which need not be there.

    Raises:
        EmotionError: another process has it, or no lock can be written beside it.
    """
    target = path.resolve()
    place = target.with_name(f".{target.name}.lock")
    owner = _read(place)  # before the lock is asked for: old releases of filelock empty the file
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
        place.write_text(
            f"process {os.getpid()} on {platform.node()} since {time.strftime('%H:%M:%S')}", "utf-8"
        )
    except Timeout:
        raise EmotionError(
            f"{path}: is open in another editor{owner and f': {owner}'}",
            "draw in its page, or end it first",
        ) from None
    except OSError as error:
        lock.release()
        raise unwritable(place, error, EmotionError) from error
    try:
        yield
    finally:
        place.unlink(missing_ok=True)  # while it is ours
        lock.release()


def _read(place: Path) -> str:
    try:
        return place.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""
