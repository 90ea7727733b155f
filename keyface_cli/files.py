"""Files that are whole or not there at all, their hashes, and what is said of a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyface_cli.errors import KeyFaceError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAME = "done.jsonl"  # in a ledger's folder


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
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    except Exception as problem:
        if not isinstance(problem, (OSError, *also)):
            raise
        raise unwritable(path, problem, error, hint) from problem
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_text(
    path: Path,
    text: str,
    error: type[KeyFaceError] = KeyFaceError,
    hint: str | None = None,
    *,
    shared: bool = False,
) -> None:
    """Write a whole file of UTF-8 text, see `replacing`; names that are no text go through."""
    with replacing(path, error, hint, shared=shared) as part:
        part.write_bytes(text.encode("utf-8", "surrogateescape"))


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


class Ledger:
    """Files that are finished, in a folder.

    A file is written under another name, moved to its own, and then noted with its hash in
    `done.jsonl`; each step is on the disk before the next. What is not noted, or no longer what
    was noted, does not count. Safe to use from several threads.

    Args:
        folder: where the files are; it exists.

    Raises:
        OSError: it cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._noted = self._read()
        self._checked: dict[str, bool] = {}

    @property
    def names(self) -> list[str]:
        """The names of the files that were noted."""
        return list(self._noted)

    def path(self, name: str) -> Path:
        """Return where a file of this name is, or would be."""
        return self.folder / name

    def part(self, name: str) -> Path:
        """Return where to write a file before it is finished."""
        return self.folder / f"{name}.part"

    def holds(self, name: str) -> bool:
        """Whether a file is finished and still what it was; its bytes are read once."""
        with self._lock:
            if name not in self._checked:
                noted = self._noted.get(name)
                self._checked[name] = noted is not None and noted == _describe(self.path(name))
            return self._checked[name]

    def add(self, name: str) -> None:
        """Take over the finished file `part(name)`."""
        part, path = self.part(name), self.path(name)
        described = _describe(part)
        assert described is not None
        _sync(part)
        os.replace(part, path)
        _sync(self.folder)
        line = json.dumps({"name": name, "bytes": described[0], "sha256": described[1]})
        with self._lock, self.path(_NAME).open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._noted[name], self._checked[name] = described, True

    def _read(self) -> dict[str, tuple[int, str]]:
        """What is noted; a last line that was cut short is cut off."""
        path, noted, good = self.path(_NAME), {}, 0
        if not path.exists():
            return {}
        data = path.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n"):
                    break
                noted[str(entry["name"])] = int(entry["bytes"]), str(entry["sha256"])
            except (ValueError, KeyError, TypeError):
                break
            good += len(line)
        if good < len(data):
            os.truncate(path, good)
        return noted


def _describe(path: Path) -> tuple[int, str] | None:
    """Size and hash of a file, None where there is none."""
    try:
        return path.stat().st_size, file_hash(path)
    except FileNotFoundError:
        return None


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
