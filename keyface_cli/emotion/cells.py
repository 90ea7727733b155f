"""The cells of one key, in whatever file they are: times, numbers, names, and what is refused.

The table, the JSON and the one-line reader bring cells as text and say where each one is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from keyface_cli.config import FPS
from keyface_cli.emotion.names import find_name, nearest
from keyface_cli.emotion.track import EASES, Key
from keyface_cli.errors import EmotionError

# how times are written: seconds or clock, frame, timecode; a file has one of them
TIMES = ("time", "frame", "timecode")
FIELDS = (*TIMES, "valence", "arousal", "emotion", "intensity", "ease")
ALIASES = {"seconds": "time", "frames": "frame"}
LONGEST_S = 360_000  # a hundred hours
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,4}):(?=\d\d:))?(\d{1,4}):(\d\d(?:\.\d*)?)", re.ASCII)
_TIMECODE = re.compile(r"(\d{1,3}):(\d\d):(\d\d):(\d\d)", re.ASCII)
_FRAME = re.compile(r"\d+(\.0*)?", re.ASCII)
# what spreadsheets write where a formula failed; some begin as a comment does
NO_VALUE = re.compile(r"#(N/A|NV|[A-Z0-9/]+[!?])|Err:\d+|[+-]?nan|[+-]?inf(inity)?", re.IGNORECASE)

Place = Callable[[str], str]


def parse_key(cells: Mapping[str, str], place: Place) -> Key:
    """Return the key that one row means.

    Args:
        cells: stripped text of the fields of FIELDS that the file has; empty where a cell is.
        place: field -> where it is, as in "curve.csv:2:1"; "" -> the row.

    Raises:
        EmotionError: something is missing, no number, out of range, or said twice.
    """
    time_field = next(field for field in TIMES if field in cells)
    text = cells[time_field]
    if not text:
        raise EmotionError(f"{place(time_field)}: {time_field} is missing")
    time_s = _READ_TIME[time_field](text, place(time_field))
    ease = _parse_ease(cells.get("ease", ""), place)
    name, intensity = cells.get("emotion", ""), cells.get("intensity", "")
    given = [field for field in ("valence", "arousal") if cells.get(field)]
    if name:
        if given:
            raise EmotionError(
                f"{place(given[0])}: an emotion and a {given[0]} in one row: {short(name)}",
                "leave one of them empty",
            )
        emotion = find_name(name, f"{place('emotion')}: ")
        share = parse_number("intensity", intensity, place, 0.0) if intensity else 1.0
        return Key.named(time_s, emotion, share, ease)
    if intensity:
        raise EmotionError(
            f"{place('intensity')}: an intensity without an emotion: {short(intensity)}"
        )
    if not given and "emotion" in cells:
        raise EmotionError(f"{place('emotion')}: neither an emotion nor valence and arousal")
    valence, arousal = (
        parse_number(field, cells.get(field, ""), place, -1.0) for field in ("valence", "arousal")
    )
    return Key(time_s, valence, arousal, ease)


def parse_number(field: str, cell: str, place: Place, lowest: float) -> float:
    """Return a number between `lowest` and 1; a decimal comma is read as a point."""
    if not cell:
        raise EmotionError(f"{place(field)}: {field} is missing")
    text = plain(cell)
    if not _NUMBER.fullmatch(text):
        raise _no_number(field, cell, place(field))
    value = float(text)
    if not lowest <= value <= 1.0:
        raise EmotionError(
            f"{place(field)}: {field} is out of range [{lowest:g}, 1]: {short(cell)}"
        )
    return value


def short(cell: str) -> str:
    """Return a cell as an error shows it."""
    return cell if len(cell) <= 40 else f"{cell[:37]}..."


def plain(cell: str) -> str:
    """Return a number as a program writes it: a decimal point, and a minus of ASCII."""
    text = cell.replace("\N{MINUS SIGN}", "-")
    return text if "." in text else text.replace(",", ".")


def _no_number(field: str, cell: str, place: str) -> EmotionError:
    hint = "fill the cell in, or remove the row" if NO_VALUE.fullmatch(cell) else None
    return EmotionError(f"{place}: {field} is not a number: {short(cell)}", hint)


def _parse_ease(cell: str, place: Place) -> str:
    ease = cell.lower() or EASES[0]
    if ease not in EASES:
        raise EmotionError(
            f"{place('ease')}: unknown ease: {short(cell)}",
            f"{nearest(ease, EASES)}the eases: {', '.join(EASES)}",
        )
    return ease


def parse_time(cell: str, place: str) -> float:
    """Return the seconds of `12.5`, `1:02.5` (minutes) or `0:01:02.5` (hours), exactly.

    Raises:
        EmotionError: it is none of these, negative, or more than a hundred hours.
    """
    text = plain(cell)
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (Decimal(part or 0) for part in clock.groups())
        if seconds >= 60 or (clock[1] and minutes >= 60):
            raise EmotionError(f"{place}: minutes and seconds go to 59: {short(cell)}")
        return _bounded(float(hours * 3600 + minutes * 60 + seconds), cell, place)
    if not _NUMBER.fullmatch(text):
        hint = "fill the cell in, or remove the row" if NO_VALUE.fullmatch(cell) else None
        if re.search(r"[ap]m$", text, re.IGNORECASE):
            hint = "format the column as text, or as seconds"
        elif _TIMECODE.fullmatch(text):
            hint = "name the column timecode for hours:minutes:seconds:frames"
        raise EmotionError(
            f"{place}: time is neither seconds nor minutes:seconds: {short(cell)}", hint
        )
    return _bounded(float(text), cell, place)


def _bounded(seconds: float, cell: str, place: str) -> float:
    if seconds < 0:
        raise EmotionError(f"{place}: time is before the start: {short(cell)}")
    if seconds > LONGEST_S:
        raise EmotionError(f"{place}: time is beyond a hundred hours: {short(cell)}")
    return seconds


def parse_frame(cell: str, place: str) -> float:
    """Return the seconds of a frame's number at 25 frames a second, the first being 0."""
    text = plain(cell)
    if not _FRAME.fullmatch(text):
        hint = "name the column time for seconds" if _NUMBER.fullmatch(text) else None
        raise EmotionError(f"{place}: frame is not a whole number from 0 up: {short(cell)}", hint)
    return _bounded(float(Decimal(text) / FPS), cell, place)


def parse_timecode(cell: str, place: str) -> float:
    """Return the seconds of HH:MM:SS:FF at 25 frames a second, counted from 00:00:00:00."""
    if not (parts := _TIMECODE.fullmatch(cell)):
        hint = "drop-frame timecode does not exist at 25 fps" if ";" in cell else None
        raise EmotionError(f"{place}: timecode is not HH:MM:SS:FF: {short(cell)}", hint)
    hours, minutes, seconds, frames = map(int, parts.groups())
    if minutes >= 60 or seconds >= 60:
        raise EmotionError(f"{place}: minutes and seconds go to 59: {short(cell)}")
    if frames >= FPS:
        raise EmotionError(f"{place}: frames of a timecode at 25 fps go to 24: {short(cell)}")
    return _bounded((((hours * 60 + minutes) * 60 + seconds) * FPS + frames) / FPS, cell, place)


_READ_TIME = {"time": parse_time, "frame": parse_frame, "timecode": parse_timecode}


def check_order(key: Key, before: Key | None, place: str) -> None:
    """Refuse a key that is not after the one before it.

    Raises:
        EmotionError: duplicate times, or the rows are not sorted.
    """
    if before is None or key.time_s > before.time_s:
        return
    if key.time_s == before.time_s:
        raise EmotionError(f"{place}: duplicate time: {key.time_s:g} s")
    raise EmotionError(
        f"{place}: {key.time_s:g} s comes after {before.time_s:g} s", "sort the rows by time"
    )
