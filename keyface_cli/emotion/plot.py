"""Pictures of curves, with their values at the keyframes, and of the named emotions.

Each is written as a PNG or SVG file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS, SAMPLE_RATE
from keyface_cli.emotion.names import NAMED
from keyface_cli.emotion.track import EmotionTrack
from keyface_cli.errors import EmotionError
from keyface_cli.files import replacing
from keyface_cli.plotting import new_figure, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
# told apart by people who see colours otherwise, and in grey
VALENCE, AROUSAL, SOUND = "#c1440e", "#1f6fb2", "#b9bec4"
_MOST_POINTS = 4000  # of a line


def check_suffix(path: Path) -> None:
    """Refuse a file name that is no kind of picture that is drawn.

    Raises:
        EmotionError: it ends in something else than .png or .svg.
        KeyFaceError: matplotlib, which draws, is not installed.
    """
    require_matplotlib()
    if path.suffix.lower() not in SUFFIXES:
        raise EmotionError(f"{path}: a plot ends in {' or '.join(SUFFIXES)}")


def envelope(waveform: NDArray[np.float32], bins: int) -> NDArray[np.float64]:
    """Return the largest amplitude in each of `bins` equal parts of a waveform: (bins,)."""
    edges = np.linspace(0, len(waveform), bins, endpoint=False).astype(int)
    return np.maximum.reduceat(np.abs(waveform), edges).astype(np.float64)


def _times(seconds: float) -> NDArray[np.float64]:
    return np.linspace(0.0, seconds, min(_MOST_POINTS, max(2, int(seconds * FPS) + 1)))


def _clock(seconds: float, _: object = None) -> str:
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}:{rest:04.1f}".removesuffix(".0")


def draw_curve(
    track: EmotionTrack, num_frames: int, waveform: NDArray[np.float32] | None = None
) -> Figure:
    """Draw valence and arousal over the sound, and dots at the keyframes.

    Args:
        track: the curve.
        num_frames: how much of it, at 25 a second.
        waveform: (S,) at 16 kHz, or None.
    """
    seconds = num_frames / FPS
    figure = new_figure(10, 4)
    axes = figure.subplots()
    if waveform is not None:
        end = len(waveform) / SAMPLE_RATE
        height = envelope(waveform, min(2000, len(waveform)))
        x = np.linspace(0, end, len(height))
        axes.fill_between(x, -height, height, color=SOUND, linewidth=0, label="sound")
    times = _times(seconds)
    values = track.at(times)
    keyframes = track.at_keyframes(num_frames)
    for column, (name, colour) in enumerate((("valence", VALENCE), ("arousal", AROUSAL))):
        axes.plot(times, values[:, column], color=colour, label=name, linewidth=1.8)
        dots = [(h.time_s, getattr(h, name)) for h in keyframes]
        axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4)
    axes.plot([], [], "o", color="black", markersize=4, label="at keyframes")
    keys = [key.time_s for key in track.keys if key.time_s <= seconds]
    axes.plot(keys, [-1.06] * len(keys), "|", color="black", markersize=8, label="keys")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(ylim=(-1.12, 1.08), xlim=(0, max(seconds, 1 / FPS)), xlabel="time")
    axes.xaxis.set_major_formatter(_clock)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=5, frameon=False)
    return figure


def draw_names() -> Figure:
    """Draw where the named emotions lie on valence and arousal (Russell's circumplex, 1980)."""
    from matplotlib.patches import Circle

    figure = new_figure(7, 7)
    axes = figure.subplots()
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=SOUND))
    axes.axhline(0, color=SOUND, linewidth=0.8)
    axes.axvline(0, color=SOUND, linewidth=0.8)
    axes.plot(*zip(*NAMED.values(), strict=True), "o", color=VALENCE, markersize=5)
    for (valence, arousal), names in places().items():
        side = "right" if valence > 0.4 else "left"
        offset = (-6 if side == "right" else 6, 3 if arousal >= 0 else -10)
        axes.annotate(
            ", ".join(names), (valence, arousal), offset, textcoords="offset points", ha=side
        )
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xlabel="valence", ylabel="arousal", aspect=1)
    return figure


def places() -> dict[tuple[float, float], list[str]]:
    """Return the names by place; those too near for two labels share the first one's."""
    found: dict[tuple[float, float], list[str]] = {}
    for name, place in NAMED.items():
        near = [p for p in found if abs(p[0] - place[0]) < 0.13 and abs(p[1] - place[1]) < 0.045]
        found.setdefault(near[0] if near else place, []).append(name)
    return found


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure under another name and move it into place.

    Raises:
        EmotionError: the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    # no date, so that the same curve gives the same file
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with replacing(path, EmotionError, shared=True) as part:
        figure.savefig(part, format=kind, dpi=150, metadata=metadata)
