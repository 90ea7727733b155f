"""Files that are whole or not there at all, their hashes, and what is said of a full disk."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
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
        target = Path(os.path.realpath(path))  # of a link in a circle too, which is told below
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
def making_folder(
    path: Path, error: type[KeyFaceError] = KeyFaceError, *, force: bool = False
) -> Iterator[Path]:
    """Fill a folder under another name, and give it its own when the block has ended well.

    Args:
        path: the folder, which is absent or empty by then; folders above it are made. Of a link
            the folder that it leads to.
        error: what to raise where it cannot be written.
        force: replace a folder that holds something, see `take_name`.

    Yields:
        Where to write: an empty folder beside `path`; what a killed run left there is gone.

    Raises:
        error: it cannot be written.
    """
    part: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        part = target.with_name(f".{target.name}.part")
        _discard(part)
        part.mkdir(parents=True)
        yield part
        take_name(part, target, force=force)
    except OSError as problem:
        raise unwritable(path, problem, error) from problem
    finally:
        if part is not None:
            _discard(part)


def take_name(part: Path, path: Path, *, force: bool = False) -> None:
    """Give a finished file or folder its name, on the disk before it takes it.

    Args:
        part: the file or folder, on the same disk as `path`.
        path: its name. A file of that name is replaced.
        force: replace a folder that holds something too. That takes two steps: between them the
            old folder is `.NAME.old`, see `set_aside`; a later call removes what a kill left.

    Raises:
        OSError: it cannot be written, or a folder of that name is not empty. What was there
            before is there still.
    """
    for inner in part.rglob("*") if part.is_dir() else ():
        sync(inner)
    sync(part)
    old = set_aside(path) if force and part.is_dir() else None
    if old is not None and path.exists():
        _discard(old)
        os.replace(path, old)
        try:
            os.replace(part, path)
        except OSError:
            os.replace(old, path)
            raise
    else:
        os.replace(part, path)
    if old is not None:
        _discard(old)
    sync(path.parent)


def set_aside(path: Path) -> Path:
    """Return where the folder of a name is while another takes its name."""
    return path.with_name(f".{path.name[:80]}.old")


def remove_at_once(folder: Path) -> None:
    """Remove a folder and all that is in it, as far as it can be; its name is free at once."""
    gone = folder.with_name(f".{folder.name}.gone")
    _discard(gone)
    try:
        os.replace(folder, gone)
    except OSError:
        gone = folder  # on Windows, where a folder with an open file keeps its name
    _discard(gone)


def _discard(path: Path) -> None:
    """Remove whatever is there, as far as it can be."""
    if path.is_symlink() or path.is_file():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_text(
    path: Path, text: str, error: type[KeyFaceError] = KeyFaceError, hint: str | None = None
) -> None:
    """Write a whole file of UTF-8 text, see `replacing`; names that are no text go through."""
    with replacing(path, error, hint) as part:
        part.write_bytes(text.encode("utf-8", "surrogateescape"))


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return rows below the names of their columns as CSV."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([columns, *rows])
    return table.getvalue()


def plain(value: Any) -> Any:
    """Return what JSON can hold: None in the place of NaN, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def read_text(path: Path, error: type[KeyFaceError] = KeyFaceError) -> str:
    """Return a file's text: UTF-8, or UTF-16 where a mark of byte order says so.

    Raises:
        error: it is missing, cannot be read or holds no text.
    """
    try:
        data = path.read_bytes()
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not UTF-8 text", "save it with UTF-8 encoding") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read: {reason}") from problem


def read_rows(
    path: Path,
    error: type[KeyFaceError] = KeyFaceError,
    *,
    name_of: Callable[[str], str] = str.lower,
    comments: bool = False,
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a table as a spreadsheet writes one: separated by commas, semicolons or tabs.

    Args:
        path: the file.
        error: what is raised.
        name_of: the name of the column under a heading, stripped; empty where it is none.
        comments: leave out rows that begin with #.

    Returns:
        The names of its columns, and for each row that holds anything the line where it ends and
        its cells by column, stripped. A cell that is missing is empty; one under no column is
        that of "".

    Raises:
        error: no table, or two columns of one name; see `read_text`.
    """
    text = read_text(path, error)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    header: list[str] | None = None
    rows = []
    try:
        for line in reader:
            cells = [cell.strip() for cell in line]
            if not any(cells) or (comments and cells[0].startswith("#")):
                continue
            if header is None:
                header = [name_of(cell) for cell in cells]
                continue
            found = dict.fromkeys(header, "")
            for name, cell in zip(chain(header, repeat("")), cells, strict=False):
                found[name] = cell or found.get(name, "")
            rows.append((reader.line_num, found))
    except csv.Error as problem:
        raise error(f"{path}:{reader.line_num}: not a row of a table: {problem}") from problem
    columns = [name for name in header or [] if name]
    for name in columns:
        if columns.count(name) > 1:
            raise error(f"{path}: duplicate column: {name}")
    return columns, rows


def check_given(path: Path, kind: str, file: str, error: type[KeyFaceError]) -> None:
    """Refuse a file of the user's that cannot be read, or holds nothing.

    Args:
        path: the file.
        kind: what it should be: "a picture".
        file: what a file of that kind is called: "portrait file".
        error: what is raised.

    Raises:
        error: it is missing, a folder, a pipe, empty, or may not be read.
    """
    try:
        if path.is_dir():
            raise error(f"{path}: is a folder, not {kind}")
        if not path.is_file() and path.exists():
            raise error(
                f"{path}: is a pipe or a device, which can be read only once", "save it to a file"
            )
        with path.open("rb") as opened:
            empty = not opened.read(1)
    except FileNotFoundError:
        raise error(f"{path}: no such {file}") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read: {reason}") from problem
    if empty:
        raise error(f"{path}: the {file} is empty (0 bytes)")


def check_free(
    path: Path,
    error: type[KeyFaceError] = KeyFaceError,
    *,
    force: bool,
    inputs: Iterable[Path] = (),
) -> None:
    """Refuse, before anything is computed, a file that must not or cannot be written.

    Raises:
        error: it is an input, is there without `force`, or its folder is not there.
    """
    # os.path says no to names that are too long, which a curve in one line may be
    there = os.path.exists(path)
    if any(there and os.path.exists(other) and os.path.samefile(path, other) for other in inputs):
        raise error(f"{path}: is an input, and would be replaced")
    if os.path.isdir(path):
        raise error(f"{path}: is a folder")
    if os.path.lexists(path) and not force:
        raise error(f"{path}: exists already", "choose another name, or --force to replace it")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise error(f"{folder}: no such folder", f"make it first: mkdir -p {folder}")


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
