"""Whether a result can be written where it is to go, said before anything is computed."""

from __future__ import annotations

import errno
import sys
import tempfile
from pathlib import Path

from keyface_cli.errors import VideoError
from keyface_cli.formats import Format, format_of


def check_output(path: Path, force: bool = False) -> Format:
    """Check, before anything is computed, that a result can be written to `path`.

    Returns:
        What kind of result it is.

    Raises:
        VideoError: the extension is no known one; the file exists and `force` is not set; its
            folder is missing or cannot be written to.
    """
    kind = format_of(path)
    if kind.name == "pipe":
        if sys.stdout.isatty():
            raise VideoError("raw frames are not for a terminal", "pipe them: ... -o - | PROGRAM")
        return kind
    try:
        path.lstat()
        exists = True
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except OSError as error:  # a name that is too long, for example
        raise write_error(path, error) from error
    if kind.name == "folder":
        _check_folder(path, exists, force)
    elif path.is_dir():
        raise VideoError(f"{path}: is a folder")
    elif exists and not force:
        raise VideoError(f"{path}: exists already", "choose another name, or --force to replace it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise VideoError(f"{folder}: no such folder", f"make it first: mkdir -p {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".keyface-"):
            pass
    except OSError as error:
        raise write_error(folder, error) from error
    return kind


def _check_folder(path: Path, exists: bool, force: bool) -> None:
    """Refuse to replace what is not a folder of frames."""
    if not exists or (path.is_dir() and not any(path.iterdir())):
        return
    hint = "choose another name, or --force to replace it"
    if not path.is_dir():
        raise VideoError(f"{path}: is a file", "a name without a suffix is a folder of PNGs")
    if not (path / "000001.png").is_file():
        raise VideoError(f"{path}: is a folder that holds something else", "choose another name")
    if not force:
        raise VideoError(f"{path}: exists already", hint)


def write_error(place: Path, error: OSError) -> VideoError:
    """Return what to say of a place that could not be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VideoError(f"{place}: the disk is full", "free some space and run it again")
    return VideoError(f"{place}: cannot be written to: {error.strerror or error}")
