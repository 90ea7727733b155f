"""A curve to fill in: rows where a recording does something, with its loudness beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS
from keyface_cli.emotion.checks import clock
from keyface_cli.emotion.table import Style
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.emotion.voice import FLOOR_DB, Waveform, loudness, phrases

COLUMNS = ("emotion", "intensity", "valence", "arousal", "ease")
_BAR_DB = 3.0  # of loudness for one stroke


def make_template(
    waveform: Waveform,
    name: str | None,
    every: float | None,
    track: EmotionTrack | None,
    style: Style,
    title: str,
) -> tuple[EmotionTrack, Style]:
    """Return a curve to edit, and the style that writes it with notes.

    Args:
        waveform: (S,) at 16 kHz.
        name: the emotion of every row, where `track` is None.
        every: seconds from row to row; None puts one where speech begins after a pause.
        track: the curve to write, or None to make rows.
        style: separator, decimal mark and form of the times.
        title: what the recording is called.
    """
    level = loudness(waveform)
    if track is None:
        starts = _starts(level, every)
        track = EmotionTrack(tuple(Key.named(time, str(name)) for time in starts))
    ends = [*(key.time_s for key in track.keys[1:]), len(level) / FPS]
    notes: dict[float, tuple[str, ...]] = {
        key.time_s: (_describe(level, key.time_s, end),)
        for key, end in zip(track.keys, ends, strict=True)
    }
    comment = f"# {title}: {clock(len(level) / FPS)} long"
    fields = COLUMNS if any(key.emotion for key in track.keys) else COLUMNS[2:]
    return track, replace(
        style, fields=fields, comments=(comment,), columns=("loudness",), notes=notes
    )


def _starts(level: NDArray[np.float64], every: float | None) -> list[float]:
    seconds = len(level) / FPS
    if every is not None:
        return [round(i * every, 3) for i in range(int(np.ceil(seconds / every - 1e-9)))]
    return sorted({0.0, *(round(start, 2) for start, _ in phrases(level))})


def _describe(level: NDArray[np.float64], start_s: float, end_s: float) -> str:
    """Return the mean loudness between two times, as a bar and as a number."""
    part = level[int(start_s * FPS) : max(int(start_s * FPS) + 1, int(end_s * FPS))]
    power = float(np.mean(10 ** (part / 10))) if len(part) else 0.0
    decibels = max(FLOOR_DB, 10 * np.log10(max(power, 1e-8)))
    # the bar first: what begins with a minus looks like a formula
    return f"{'|' * int((decibels - FLOOR_DB) / _BAR_DB)} {decibels:.0f} dB".strip()
