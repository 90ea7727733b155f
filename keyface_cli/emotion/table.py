"""Read a curve from a table in text, as every spreadsheet writes one: CSV and its relatives."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from keyface_cli.emotion.cells import (
    ALIASES,
    FIELDS,
    NO_VALUE,
    TIMES,
    check_order,
    parse_key,
    short,
)
from keyface_cli.emotion.names import nearest
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.errors import EmotionError

logger = logging.getLogger(__name__)

SEPARATORS = (",", ";", "\t")
HEADER_HINT = "the first row is, for example: time,valence,arousal"
# columns for people, ignored without a word
NOTES = ("loudness", "note", "notes", "comment", "comments", "#")
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)


@dataclass(frozen=True)
class Style:
    """How a file writes its curve, so that it can be written back in the same way."""

    time: str = "time"  # one of cells.TIMES, or "clock": time as minutes:seconds
    separator: str = ","  # one of SEPARATORS
    decimal: str = "."  # or ","
    fields: tuple[str, ...] = ()  # columns of values that are written even where they are empty
    comments: tuple[str, ...] = ()  # lines that begin with #, without their ends
    columns: tuple[str, ...] = ()  # names of the columns that are no curve
    notes: dict[float, tuple[str, ...]] = field(default_factory=dict)  # their cells, by key's time


def parse_table(text: str, where: str) -> tuple[EmotionTrack, Style]:
    """Read a table of keys: a header, and one key a row.

    Args:
        text: the file's content.
        where: its name, for errors.

    Raises:
        EmotionError: names the file, the line and the column, both counted from 1.
    """
    rows = _Rows(text, where)
    header, line = rows.header, rows.header_line
    columns = _parse_header(header, f"{where}:{line}")
    extra = {i: name for i, name in enumerate(header) if name and i not in columns.values()}
    keys: list[Key] = []
    notes: dict[float, tuple[str, ...]] = {}
    comma = clock = False
    for number, cells in rows:
        _check_width(f"{where}:{number}", cells, header)
        found = {name: cells[i] if i < len(cells) else "" for name, i in columns.items()}

        def place(name: str, number: int = number) -> str:
            return f"{where}:{number}:{columns[name] + 1}"

        key = parse_key(found, place)
        check_order(key, keys[-1] if keys else None, place(_time_field(columns)))
        keys.append(key)
        comma = comma or any("," in cell for cell in found.values())
        clock = clock or ":" in found.get("time", "")
        if extra:
            notes[key.time_s] = tuple(cells[i] if i < len(cells) else "" for i in extra)
    if not keys:
        raise EmotionError(f"{where}: holds a header but no rows")
    style = Style(
        "clock" if clock else _time_field(columns),
        rows.separator,
        "," if comma and rows.separator != "," else ".",
        tuple(name for name in columns if name not in TIMES),
        tuple(rows.comments),
        tuple(extra.values()),
        notes,
    )
    return EmotionTrack(tuple(keys)), style


def _time_field(columns: dict[str, int]) -> str:
    return next(name for name in TIMES if name in columns)


class _Rows:
    """The rows of a table after its header, each with the line it begins at.

    Empty lines and rows, lines that begin with # and Excel's `sep=;` are left out.
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.comments: list[str] = []
        self.separator = ","
        self._lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
        self._next = 0  # index of the line that is read next
        self._inside = False  # a cell in quotes, which goes on over the end of a line
        self._begun = 1  # number of the line that a row begins at
        self._start()

    def _start(self) -> None:
        """Read the header; the separator is the one that finds the most columns in it."""
        while self._next < len(self._lines):
            line = self._lines[self._next]
            if found := _EXCEL_SEPARATOR.fullmatch(line.strip()):
                logger.debug("%s: Excel's separator: %r", self.where, found[1])
            elif line.strip('\t ,;"') and not self._is_comment(line):
                break
            self._next += 1
        if self._next < len(self._lines):
            self.separator = max(SEPARATORS, key=lambda s: _known(line, s))
        self._reader = csv.reader(
            self._feed(), delimiter=self.separator, skipinitialspace=True, strict=True
        )
        header = next(iter(self), None)
        if header is None:
            raise EmotionError(f"{self.where}: holds no rows", HEADER_HINT)
        self.header_line, self.header = header

    def _is_comment(self, line: str) -> bool:
        text = line.strip().lstrip('"').lstrip()
        if not text.startswith("#") or NO_VALUE.match(text):
            return False
        text = line.strip("\t ,;")
        self.comments.append(text.strip('"').replace('""', '"') if text[0] == '"' else text)
        return True

    def _feed(self) -> Iterator[str]:
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if self._inside or (line.strip() and not self._is_comment(line)):
                if not self._inside:
                    self._begun = self._next
                self._inside = True
                yield f"{line}\n"

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            self._inside = False
            try:
                cells = [" ".join(cell.split()) for cell in next(self._reader)]
            except StopIteration:
                return
            except csv.Error as error:
                raise EmotionError(
                    f"{self.where}:{self._begun}: not a row of a table: {error}",
                    "a quotation mark may be missing",
                ) from error
            if any(cells):
                yield self._begun, cells


def _known(line: str, separator: str) -> int:
    """Count the columns that a header names when it is cut at a separator."""
    names = (cell.strip(' "').lower() for cell in line.split(separator))
    return sum(ALIASES.get(name, name) in FIELDS for name in names)


def _parse_header(header: list[str], where: str) -> dict[str, int]:
    """Return field -> index of its column, and warn of columns that mean nothing to us."""
    columns: dict[str, int] = {}
    unknown: dict[int, str] = {}
    for index, cell in enumerate(header):
        name = ALIASES.get(cell.lower(), cell.lower())
        if name in columns:
            raise EmotionError(f"{where}:{index + 1}: duplicate column: {name}")
        if name in FIELDS:
            columns[name] = index
        elif name and not name.startswith(NOTES):
            unknown[index] = cell
    advice = "".join(nearest(cell.lower(), FIELDS) for cell in unknown.values())
    _check_columns(columns, where, advice + HEADER_HINT)
    for index, cell in unknown.items():
        near = nearest(cell.lower(), [f for f in FIELDS if f not in columns and f not in TIMES])
        hint = f" ({near.strip()})" if near else ""
        logger.warning("%s:%d: column ignored: %s%s", where, index + 1, short(cell), hint)
    return columns


def _check_columns(columns: dict[str, int], where: str, hint: str) -> None:
    """Refuse a header without a time or without values, or with two times."""
    times = [name for name in TIMES if name in columns]
    if len(times) > 1:
        raise EmotionError(
            f"{where}:{columns[times[1]] + 1}: two columns of time: {' and '.join(times)}",
            "keep one of them",
        )
    missing = [] if times else ["time"]
    values = [name for name in ("valence", "arousal") if name not in columns]
    if "emotion" not in columns or len(values) == 1:
        missing += values
    if missing:
        raise EmotionError(f"{where}: the header lacks: {', '.join(missing)}", hint)
    if "intensity" in columns and "emotion" not in columns:
        raise EmotionError(f"{where}: the header lacks: emotion, which intensity belongs to", hint)


def _check_width(where: str, cells: list[str], header: list[str]) -> None:
    """Refuse values under no header: most often decimal commas in a comma-separated file."""
    for index, cell in enumerate(cells):
        if cell and not "".join(header[index : index + 1]) and not cell.startswith("#"):
            raise EmotionError(
                f"{where}:{index + 1}: a value under no column: {short(cell)}",
                "with decimal commas, separate the columns by semicolons",
            )
