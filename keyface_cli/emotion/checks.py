"""What is right in a curve and yet hardly meant: remarks for whoever draws one."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np

from keyface_cli.config import FPS
from keyface_cli.emotion.track import EmotionTrack
from keyface_cli.emotion.write import format_time

logger = logging.getLogger(__name__)

CHANNELS = ("valence", "arousal")
UNREAD = 0.2  # by how much a curve leaves, between two keyframes, what is read at them
JUMP = 1.0  # from one keyframe to the next: half of the whole range in 0.52 s
EARLY_S = 5.0  # the curve ends so long before the sound
_MOST = 5  # remarks of one kind


def clock(seconds: float) -> str:
    """Return a time for people, in hundredths: 0:03.5."""
    return format_time(round(seconds, 2), "clock")


def remarks(track: EmotionTrack, num_frames: int | None = None) -> list[str]:
    """Return what is remarkable about a curve, each in one line, at most five of a kind.

    Args:
        track: the curve.
        num_frames: of the sound at 25 a second; None where there is none to compare with.
    """
    frames = num_frames or int(track.end_s * FPS) + 1
    found = [] if num_frames is None else against_sound(track, num_frames / FPS)
    keyframes = track.at_keyframes(frames)
    missed, jumps = [], []
    for one, other in pairwise(keyframes):
        times = np.arange(one.frame, other.frame + 1) / FPS
        values = track.at(times)
        span = f"between {clock(one.time_s)} and {clock(other.time_s)}"
        for column, channel in enumerate(CHANNELS):
            ends = (getattr(one, channel), getattr(other, channel))
            track_part = values[:, column]
            over, under = track_part.max() - max(ends), min(ends) - track_part.min()
            if max(over, under) > UNREAD:
                far = track_part.max() if over > under else track_part.min()
                missed.append(
                    f"{span} {channel} goes to {far:.2f}, but the model reads "
                    f"{ends[0]:.2f} and {ends[1]:.2f}: shorter than a keyframe's 0.52 s"
                )
            if abs(ends[1] - ends[0]) > JUMP:
                jumps.append(
                    f"{span} {channel} jumps from {ends[0]:.2f} to {ends[1]:.2f}: "
                    "a face takes longer"
                )
    return found + _few(missed) + _few(jumps)


def against_sound(track: EmotionTrack, seconds: float) -> list[str]:
    """Return what is remarkable where a curve ends, beside a sound of so many seconds."""
    if track.end_s >= seconds:
        beyond = sum(key.time_s >= seconds for key in track.keys)
        return [
            f"{beyond} of {len(track.keys)} keys lie after the end of the sound "
            f"({clock(seconds)}), the last at {clock(track.end_s)}"
        ]
    if len(track.keys) > 1 and seconds - track.end_s > EARLY_S:
        return [
            f"the last key is at {clock(track.end_s)}, the sound lasts to {clock(seconds)}: "
            "its value holds until then"
        ]
    return []


def _few(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST:
        return lines
    return [*lines[:_MOST], f"and {len(lines) - _MOST} more like this"]


def warn_of_curve(track: EmotionTrack, num_frames: int) -> None:
    """Warn, before a video is made, of a curve that hardly means what it says."""
    for remark in against_sound(track, num_frames / FPS):
        logger.warning("emotion curve: %s", remark)
    others = len(remarks(track, num_frames)) - len(against_sound(track, num_frames / FPS))
    if others:
        logger.warning(
            "emotion curve: %d places that the model may miss or a face may not follow; "
            "see keyface emotion check",
            others,
        )
