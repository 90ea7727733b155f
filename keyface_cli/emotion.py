"""Valence and arousal over time: the named emotions and the CSV curve."""

from __future__ import annotations

import csv
import difflib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS
from keyface_cli.errors import EmotionError

logger = logging.getLogger(__name__)

# (valence, arousal) of the published model's names (SPEC 4)
NAMED: dict[str, tuple[float, float]] = {
    "neutral": (0.0, 0.0),
    "happy": (0.85, 0.75),
    "sad": (-0.85, -0.35),
    "angry": (-0.443, 0.908),
    "surprised": (0.0, 0.85),
    "fear": (0.181, 0.949),
    "disgusted": (-0.8, 0.5),
    "contempt": (0.307, 0.535),
    "calm": (0.65, -0.5),
    "excited": (0.9, 0.9),
    "bored": (-0.6, -0.9),
    "confused": (-0.3, 0.4),
    "anxious": (-0.85, 0.9),
    "confident": (0.7, 0.4),
    "frustrated": (-0.8, 0.6),
    "amused": (0.7, 0.5),
    "proud": (0.8, 0.4),
    "ashamed": (-0.8, -0.3),
    "grateful": (0.7, 0.2),
    "jealous": (-0.7, 0.5),
    "hopeful": (0.7, 0.3),
    "disappointed": (-0.7, -0.3),
    "curious": (0.5, 0.5),
    "overwhelmed": (-0.6, 0.8),
}
COLUMNS = ("time", "valence", "arousal")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NUMERIC_WORDS = {"nan", "inf", "-inf", "+inf", "infinity", "#n/a", "#div/0!"}


@dataclass(frozen=True)
class Key:
    """One point of a curve: seconds from the start of the video, both values in [-1, 1]."""

    time_s: float
    valence: float
    arousal: float


@dataclass(frozen=True)
class EmotionTrack:
    """A curve of valence and arousal: at least one key, in order of time."""

    keys: tuple[Key, ...]

    @classmethod
    def constant(cls, valence: float, arousal: float) -> EmotionTrack:
        """Return the track that holds one state."""
        return cls((Key(0.0, valence, arousal),))

    def sample(self, num_frames: int) -> NDArray[np.float32]:
        """Return (num_frames, 2) valence and arousal at 25 frames a second.

        Linear between the keys; before the first and after the last the value holds.
        """
        times = np.arange(num_frames) / FPS
        keys = np.array([(key.time_s, key.valence, key.arousal) for key in self.keys])
        curves = [np.interp(times, keys[:, 0], keys[:, column]) for column in (1, 2)]
        return np.stack(curves, axis=1).astype(np.float32)


def load_emotion(text: str) -> EmotionTrack:
    """Return the track that `--emotion` means: one of the 24 names, or a CSV file.

    Raises:
        EmotionError: neither a name nor a file, or the file is not a curve.
    """
    name = text.strip().lower()
    if name in NAMED:
        return EmotionTrack.constant(*NAMED[name])
    path = Path(text)
    if name and (path.suffix or path.name != text or os.path.exists(text)):
        return read_curve(path)
    near = difflib.get_close_matches(name, NAMED, n=1)
    advice = f"did you mean {near[0]}? " if near else ""
    raise EmotionError(
        f"unknown emotion: {text or '(empty)'}",
        f"{advice}the names: {', '.join(NAMED)}; or a file: FILE.csv",
    )


def read_curve(path: Path) -> EmotionTrack:
    """Read a curve from a CSV file with the columns time (seconds), valence and arousal.

    Columns stand in any order, separated by comma, semicolon or tab; capitals, spaces, empty
    rows and columns, a byte order mark, decimal commas and lines that begin with # are all
    accepted. Every row needs all three values; the times rise.

    Raises:
        EmotionError: names the file, the line and the column, both counted from 1.
    """
    text = _read_text(path)
    header: list[str] = []
    columns: dict[str, int] = {}
    keys: list[Key] = []
    for line, cells in _rows(path, text):
        if columns:
            _check_width(path, line, cells, header)
            key = _parse_row(path, line, cells, columns)
            if keys and key.time_s <= keys[-1].time_s:
                raise _disorder(_place(path, line, columns["time"]), key, keys[-1])
            keys.append(key)
        else:
            header, columns = cells, _parse_header(path, line, cells)
    if not columns:
        raise EmotionError(f"{path}: holds no rows", "the first line is: time,valence,arousal")
    if not keys:
        raise EmotionError(f"{path}: holds a header but no rows")
    return EmotionTrack(tuple(keys))


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise EmotionError(
            f"{path}: no such emotion file", f"or one of the names: {', '.join(NAMED)}"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EmotionError(f"{path}: cannot be read: {reason}") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EmotionError(
            f"{path}:{line}: not UTF-8 text", "save it as CSV with UTF-8 encoding"
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is neither empty nor a comment."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the stripped cells of each row that holds anything.

    The separator is the one of the first row: tab, semicolon or comma.
    """
    separator = ""
    for number, line in _lines(text):
        separator = separator or next((mark for mark in "\t;" if mark in line), ",")
        try:
            reader = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
            cells = [cell.strip() for cell in next(reader)]
        except csv.Error as error:
            raise EmotionError(f"{path}:{number}: not a CSV row: {error}") from error
        if any(cells):
            yield number, cells


def _parse_header(path: Path, line: int, cells: list[str]) -> dict[str, int]:
    columns: dict[str, int] = {}
    unknown: dict[int, str] = {}
    for index, cell in enumerate(cells):
        name = cell.lower()
        if name in columns:
            raise EmotionError(f"{_place(path, line, index)}: the column stands twice: {name}")
        if name in COLUMNS:
            columns[name] = index
        elif name:
            unknown[index] = cell
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise EmotionError(
            f"{path}:{line}: the header lacks: {', '.join(missing)}",
            "the first line is: time,valence,arousal",
        )
    for index, cell in unknown.items():
        logger.warning("%s: column ignored: %s", _place(path, line, index), cell)
    return columns


def _check_width(path: Path, line: int, cells: list[str], header: list[str]) -> None:
    """Refuse values under no header: most often decimal commas in a comma-separated file."""
    for index, cell in enumerate(cells):
        if cell and not "".join(header[index : index + 1]):
            raise EmotionError(
                f"{_place(path, line, index)}: a value under no column: {cell}",
                "with decimal commas, separate the columns by semicolons",
            )


def _parse_row(path: Path, line: int, cells: list[str], columns: dict[str, int]) -> Key:
    values: dict[str, float] = {}
    for name, index in columns.items():
        cell = cells[index] if index < len(cells) else ""
        values[name] = _parse_number(_place(path, line, index), name, cell)
    return Key(values["time"], values["valence"], values["arousal"])


def _parse_number(place: str, name: str, cell: str) -> float:
    if not cell:
        raise EmotionError(f"{place}: {name} is missing")
    text = cell.replace(",", ".") if "." not in cell else cell  # a decimal comma
    if not _NUMBER.fullmatch(text):
        hint = "remove the row or fill it in" if cell.lower() in _NUMERIC_WORDS else None
        raise EmotionError(f"{place}: {name} is not a number: {cell}", hint)
    value = float(text)
    if name == "time" and not 0.0 <= value < float("inf"):
        raise EmotionError(f"{place}: time is not a number of seconds from 0 up: {cell}")
    if name != "time" and not -1.0 <= value <= 1.0:
        raise EmotionError(f"{place}: {name} is out of range [-1, 1]: {cell}")
    return value


def _disorder(place: str, key: Key, previous: Key) -> EmotionError:
    if key.time_s == previous.time_s:
        return EmotionError(f"{place}: the time stands twice: {key.time_s:g}")
    return EmotionError(
        f"{place}: time {key.time_s:g} comes after {previous.time_s:g}", "sort the rows by time"
    )


def _place(path: Path, line: int, index: int) -> str:
    return f"{path}:{line}:{index + 1}"
