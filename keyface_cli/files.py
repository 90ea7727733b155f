"""Files that are whole or not there at all, their hashes, and what is said of a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.errors import KeyFaceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FULL = (errno.ENOSPC, errno.EDQUOT)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(
    path: Path,
    error: type[KeyFaceError] = KeyFaceError,
    hint: str | None = None,
    *,
    also: tuple[type[Exception], ...] = (),
    shared: bool = False,
) -> Iterator[Path]:
    """Write a file under another name, and give it its own when the block has ended well.

    It is on the disk before it takes the name; a link is followed, not replaced. A block that
    fails leaves what was there before.

    Args:
        path: the file.
        error: what to raise where it cannot be written.
        hint: what to do then.
        also: what the block may raise, besides `OSError`, where the disk is full.
        shared: others may write the same file at the same time; the last to end well wins.

    Yields:
        Where to write: a file beside `path`, which is there and empty.

    Raises:
        error: it cannot be written.
    """
    part: Path | None = None
    try:
        target = path.resolve()
        mark = f"-{secrets.token_hex(4)}" if shared else ""
        part = target.with_name(f".{target.name[:80]}{mark}.part")
        part.unlink(missing_ok=True)
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(mode)  # some writers make files that only their owner can read
        take_name(part, target)
    except Exception as problem:
        if not isinstance(problem, (OSError, *also)):
            raise
        raise unwritable(path, problem, error, hint) from problem
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path, error: type[KeyFaceError] = KeyFaceError) -> Iterator[Path]:
    """Fill a folder under another name, and give it its own when the block has ended well.

    Args:
        path: the folder, which is absent or empty by then; folders above it are made.
        error: what to raise where it cannot be written.

    Yields:
        Where to write: an empty folder beside `path`; what a killed run left there is gone.

    Raises:
        error: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        take_name(part, path)
    except OSError as problem:
        raise unwritable(path, problem, error) from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)


def take_name(part: Path, path: Path, *, force: bool = False) -> None:
    """Give a finished file or folder its name, on the disk before it takes it.

    Args:
        part: the file or folder, on the same disk as `path`.
        path: its name. A file of that name is replaced.
        force: replace a folder that holds something too. That takes two steps: between them the
            old folder is `.NAME.old`, and a later call removes what a kill left there.

    Raises:
        OSError: it cannot be written, or a folder of that name is not empty. What was there
            before is there still.
    """
    for inner in part.rglob("*") if part.is_dir() else ():
        sync(inner)
    sync(part)
    if force and part.is_dir() and path.exists():
        old = path.with_name(f".{path.name[:80]}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        try:
            os.replace(part, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(part, path)
    sync(path.parent)


def write_text(
    path: Path, text: str, error: type[KeyFaceError] = KeyFaceError, hint: str | None = None
) -> None:
    """Write a whole file of UTF-8 text, see `replacing`; names that are no text go through."""
    with replacing(path, error, hint) as part:
        part.write_bytes(text.encode("utf-8", "surrogateescape"))


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a whole `.npy` file, see `replacing`."""
    import numpy as np

    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def append(path: Path, data: bytes) -> None:
    """Append to a file, made where it is missing; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def is_full(error: BaseException | str) -> bool:
    """Whether an error, or a program's message, says that the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(os.strerror(code) in str(error) for code in _FULL)


def unwritable(
    place: Path,
    error: Exception,
    kind: type[KeyFaceError] = KeyFaceError,
    hint: str | None = None,
) -> KeyFaceError:
    """Return what to say of a place that could not be written to."""
    if is_full(error):
        return kind(f"{place}: the disk is full", hint or "free some space and run it again")
    reason = getattr(error, "strerror", None) or error
    return kind(f"{place}: cannot be written to: {reason}", hint)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
