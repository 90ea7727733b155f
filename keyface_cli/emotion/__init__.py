"""Valence and arousal over time: names, curves, their files, and what a model reads of them."""

from keyface_cli.emotion.checks import warn_of_curve
from keyface_cli.emotion.load import (
    AUTO,
    check_emotion,
    estimate_curve,
    load_emotion,
    read_curve,
)
from keyface_cli.emotion.names import NAMED
from keyface_cli.emotion.track import EASES, EmotionTrack, Key

__all__ = [
    "AUTO",
    "EASES",
    "NAMED",
    "EmotionTrack",
    "Key",
    "check_emotion",
    "estimate_curve",
    "load_emotion",
    "read_curve",
    "warn_of_curve",
]
