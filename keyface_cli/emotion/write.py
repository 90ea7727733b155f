"""Write a curve as a table, as JSON or in one line; each is read back as the same curve."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from keyface_cli.config import FPS
from keyface_cli.emotion.table import Style
from keyface_cli.emotion.thin import thin
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.errors import EmotionError
from keyface_cli.files import check_free, replacing

MAX_LINE = 16_000  # characters: ffmpeg takes the metadata as one argument


def write_table(track: EmotionTrack, style: Style | None = None) -> str:
    """Return a curve as a table with the columns that it needs and those of the style.

    Raises:
        EmotionError: the style's times are frames, and two keys fall on the same one.
    """
    style = style or Style()
    times = [format_time(key.time_s, style.time) for key in track.keys]
    _check_distinct(track, times, style.time)
    time_column = "time" if style.time == "clock" else style.time
    rows = [{time_column: time} | _fields(key) for time, key in zip(times, track.keys, strict=True)]
    order = ("valence", "arousal", "emotion", "intensity", "ease")
    needed = [name for name in order if any(name in row for row in rows)]
    columns = list(dict.fromkeys([time_column, *style.fields, *needed]))
    output = io.StringIO()
    for comment in style.comments:
        output.write(f"{comment}\n")
    writer = csv.writer(output, delimiter=style.separator, lineterminator="\n")
    writer.writerow([*columns, *style.columns])
    for key, row in zip(track.keys, rows, strict=True):
        cells = [row.get(name, "") for name in columns]
        cells = [cell.replace(".", style.decimal) for cell in cells]
        notes = style.notes.get(key.time_s, ("",) * len(style.columns))
        writer.writerow([*cells, *notes])
    return output.getvalue()


def write_json(track: EmotionTrack, time: str = "time") -> str:
    """Return a curve as JSON, one key a line.

    Raises:
        EmotionError: times are frames, and two keys fall on the same one.
    """
    times = [format_time(key.time_s, time) for key in track.keys]
    _check_distinct(track, times, time)
    name = "time" if time == "clock" else time
    plain = time in ("time", "frame")
    objects = [
        {name: json.loads(text) if plain else text, **to_object(key)}
        for text, key in zip(times, track.keys, strict=True)
    ]
    lines = ",\n".join(f"  {json.dumps(item)}" for item in objects)
    return f"[\n{lines}\n]\n"


def to_object(key: Key) -> dict[str, Any]:
    """Return a key without its time as the fields that JSON holds."""
    return {
        name: text if name in ("emotion", "ease") else float(text)
        for name, text in _fields(key).items()
    }


def to_record(track: EmotionTrack, num_frames: int) -> dict[str, Any]:
    """Return a curve and what a model reads of it, as JSON can hold them."""
    keys = [{"time": key.time_s, **to_object(key)} for key in track.keys]
    keyframes = [
        {
            "frame": h.frame,
            "time": h.time_s,
            "valence": round(h.valence, 4),
            "arousal": round(h.arousal, 4),
        }
        for h in track.at_keyframes(num_frames)
    ]
    return {"keys": keys, "at_keyframes": keyframes}


def to_metadata(track: EmotionTrack) -> dict[str, Any]:
    """Return a curve in one line, for the metadata of a video.

    A curve of very many keys is thinned until it fits, and how far it may then be off is told.
    """
    line = write_line(track)
    if len(line) <= MAX_LINE:
        return {"emotion_curve": line}
    times = np.arange(int(track.end_s * FPS) + 1) / FPS
    values = track.at(times)
    tolerance = 0.01
    while len(line := write_line(thin(times, values, tolerance))) > MAX_LINE:
        tolerance *= 2
    return {"emotion_curve": line, "emotion_curve_tolerance": tolerance}


def write_line(track: EmotionTrack) -> str:
    """Return a curve in one line, as `--emotion` takes it."""
    return " ".join(map(_word, track.keys))


def _word(key: Key) -> str:
    cells = _fields(key)
    if key.emotion is None:
        state = f"{cells['valence']},{cells['arousal']}"
    else:
        state = ":".join(cells[name] for name in ("emotion", "intensity") if name in cells)
    ease = f":{key.ease}" if "ease" in cells else ""
    return f"{state}@{format_time(key.time_s, 'time')}{ease}"


def _fields(key: Key) -> dict[str, str]:
    """Return a key's cells without its time, those left out that would say the default."""
    if key.emotion is None:
        cells = {"valence": format_number(key.valence), "arousal": format_number(key.arousal)}
    else:
        cells = {"emotion": key.emotion}
        if key.intensity != 1:
            cells["intensity"] = format_number(key.intensity)
    if key.ease != "linear":
        cells["ease"] = key.ease
    return cells


def format_number(value: float) -> str:
    """Return the shortest decimal that is read as the same number."""
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0") if value else "0"


def format_time(seconds: float, form: str) -> str:
    """Return a time as "time", "clock", "frame" or "timecode", the last two the nearest frame."""
    if form == "time":
        return format_number(seconds)
    if form == "clock":
        minutes, rest = divmod(Decimal(repr(seconds)), 60)
        whole, _, decimals = format(rest, "f").partition(".")
        decimals = decimals.rstrip("0")
        return f"{minutes:f}:{whole:>02}" + (f".{decimals}" if decimals else "")
    frame = round(seconds * FPS)
    if form == "frame":
        return str(frame)
    total, frames = divmod(frame, FPS)
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}:{frames:02}"


def _check_distinct(track: EmotionTrack, times: list[str], form: str) -> None:
    for one, other, time in zip(track.keys, track.keys[1:], times[1:], strict=False):
        if format_time(one.time_s, form) == time:
            raise EmotionError(
                f"two keys fall on one {form}: {one.time_s:g} s and {other.time_s:g} s are {time}",
                "write the times in seconds",
            )


def save_text(path: Path, text: str, *, force: bool) -> None:
    """Write a text as UTF-8 under another name and move it into place.

    Raises:
        EmotionError: the file is there and `force` is not set, or cannot be written.
    """
    check_free(path, EmotionError, force=force)
    with replacing(path, EmotionError, shared=True) as part:
        part.write_bytes(text.encode())
