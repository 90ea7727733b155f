"""The named emotions of the published model and their valence and arousal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from keyface_cli.errors import EmotionError

# name -> (valence, arousal), both in [-1, 1]
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


def find_name(text: str, place: str = "") -> str:
    """Return the name that `text` means, whatever its case.

    Args:
        text: what the user wrote.
        place: where, as in "curve.csv:2:1: ", before the message of an error.

    Raises:
        EmotionError: no such name; the nearest is named.
    """
    name = text.strip().lower()
    if name in NAMED:
        return name
    raise EmotionError(
        f"{place}unknown emotion: {text.strip()[:40] or '(empty)'}",
        f"{nearest(name, NAMED)}the names: {', '.join(NAMED)}",
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean ...? ", or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
