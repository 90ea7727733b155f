"""Captured faces as curves: Live Link Face's blend shapes and OpenFace's action units.

Neither says valence and arousal. A fair guess is taken from the muscles that facial action coding
ties to them: smiling against frowning for valence, raised brows, wide eyes and the strength of the
whole expression for arousal. Mouth opening is left out, because it is speech.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyface_cli.emotion.names import nearest
from keyface_cli.errors import EmotionError

# channel -> (weight for valence, weight for arousal), of activations in [0, 1]
_LIVE_LINK = {
    "mouthsmileleft": (0.6, 0.2),
    "mouthsmileright": (0.6, 0.2),
    "cheeksquintleft": (0.2, 0.1),
    "cheeksquintright": (0.2, 0.1),
    "mouthfrownleft": (-0.6, 0.0),
    "mouthfrownright": (-0.6, 0.0),
    "browdownleft": (-0.4, 0.3),
    "browdownright": (-0.4, 0.3),
    "nosesneerleft": (-0.3, 0.2),
    "nosesneerright": (-0.3, 0.2),
    "browinnerup": (-0.1, 0.3),
    "browouterupleft": (0.0, 0.3),
    "browouterupright": (0.0, 0.3),
    "eyewideleft": (0.0, 0.4),
    "eyewideright": (0.0, 0.4),
}
# intensities from 0 to 5
_OPENFACE = {
    "au12_r": (1.2, 0.4),
    "au06_r": (0.4, 0.2),
    "au15_r": (-1.0, 0.0),
    "au04_r": (-0.8, 0.5),
    "au09_r": (-0.6, 0.4),
    "au01_r": (-0.1, 0.4),
    "au02_r": (0.0, 0.5),
    "au05_r": (0.0, 0.8),
}
_TIMECODE = re.compile(r"(\d+):(\d\d):(\d\d)[:;](\d+(?:\.\d+)?)", re.ASCII)
_RATES = (24, 25, 30, 50, 60, 120)  # frames a second that a phone captures at
_DAY_S = 86_400
_REST = 0.15  # the most that a face at rest shows in a channel
CONFIDENT = 0.7  # of OpenFace's tracker


@dataclass(frozen=True)
class Captured:
    """A dense track read from a capture: times (N,) from 0, valence and arousal (N, 2)."""

    source: str
    times: NDArray[np.float64]
    values: NDArray[np.float64]


def _header(text: str) -> list[str]:
    first, _, _ = text.lstrip("\ufeff").partition("\n")
    return [cell.strip().lower() for cell in first.split(",")]


def capture_of(text: str) -> str | None:
    """Return the program that wrote a capture, None where the text is something else."""
    header = _header(text)
    if {"timecode", "blendshapecount"} <= set(header):
        return "Live Link Face"
    if "timestamp" in header and any(re.fullmatch(r"au\d\d_[rc]", cell) for cell in header):
        return "OpenFace"
    return None


def read_captured(text: str, where: str) -> Captured:
    """Read a text that `capture_of` knows.

    Raises:
        EmotionError: columns that the guess needs are missing, or a row is damaged.
    """
    source = capture_of(text)
    weights = _OPENFACE if source == "OpenFace" else _LIVE_LINK
    return _read(text, where, _header(text), str(source), weights)


def _read(
    text: str, where: str, header: list[str], source: str, weights: dict[str, tuple[float, float]]
) -> Captured:
    missing = [name for name in weights if name not in header]
    if missing:
        near = nearest(missing[0], header).strip()
        raise EmotionError(
            f"{where}:1: {source} without the columns for a fair guess: {', '.join(missing[:4])}",
            near or "export it with all of its channels",
        )
    index = {name: i for i, name in enumerate(header)}
    times: list[float | tuple[int, float]] = []
    rows: list[list[float]] = []
    reader = csv.reader(io.StringIO(text.lstrip("\ufeff")), skipinitialspace=True)
    next(reader)
    for cells in reader:
        line = reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < len(header):
            raise EmotionError(f"{where}:{line}: the row has {len(cells)} of {len(header)} cells")
        if source == "OpenFace" and not _is_tracked(cells, index):
            continue
        if source == "OpenFace":
            times.append(_number(cells[index["timestamp"]], f"{where}:{line}", "timestamp"))
        else:
            times.append(_timecode(cells[index["timecode"]], f"{where}:{line}"))
        rows.append([_number(cells[index[name]], f"{where}:{line}", name) for name in weights])
    if not rows:
        raise EmotionError(f"{where}: holds no frame with a face")
    seconds = _seconds(times)
    order = np.argsort(seconds, kind="stable")
    seconds, first = np.unique(seconds[order], return_index=True)
    scale = 5.0 if source == "OpenFace" else 1.0
    activations = np.clip(np.array(rows)[order][first] / scale, 0.0, 1.0)
    activations -= np.minimum(np.percentile(activations, 5, axis=0), _REST)
    values = np.tanh(np.maximum(activations, 0.0) @ np.array(list(weights.values())))
    start = 0.0 if source == "OpenFace" else seconds[0]  # a timecode is the time of day
    return Captured(source, seconds - start, values)


def _is_tracked(cells: list[str], index: dict[str, int]) -> bool:
    """Say whether OpenFace saw a face; other faces than the first are left out."""

    def cell(name: str, default: float) -> float:
        return float(cells[index[name]]) if name in index else default

    try:
        seen = cell("success", 1) == 1 and cell("confidence", 1) >= CONFIDENT
        return seen and cell("face_id", 0) == 0
    except ValueError:
        return False


def _number(cell: str, where: str, name: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise EmotionError(f"{where}: {name} is not a number: {cell[:40]}")
    return value


def _timecode(cell: str, where: str) -> tuple[int, float]:
    """Return whole seconds and the frame within the second, which may have a fraction."""
    if not (parts := _TIMECODE.fullmatch(cell.strip())):
        raise EmotionError(f"{where}: timecode is not HH:MM:SS:FF: {cell[:40]}")
    hours, minutes, seconds = (int(part) for part in parts.groups()[:3])
    return (hours * 60 + minutes) * 60 + seconds, float(parts[4])


def _seconds(times: list[float | tuple[int, float]]) -> NDArray[np.float64]:
    """Return times in seconds; a timecode's rate is the lowest that has all of its frames."""
    codes = [time for time in times if isinstance(time, tuple)]
    if not codes:
        return np.array(times, dtype=np.float64)
    highest = max(frame for _, frame in codes)
    rate = next((rate for rate in _RATES if int(highest) < rate), int(highest) + 1)
    seconds = np.array([second + frame / rate for second, frame in codes])
    wraps = np.concatenate([[0], np.cumsum(np.diff(seconds) < -_DAY_S / 2)])
    return np.asarray(seconds + _DAY_S * wraps)  # a take over midnight
