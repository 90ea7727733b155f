"""A curve in one line, for the command line: `neutral@0 happy@3.5 sad:0.6@8:smooth`."""

from __future__ import annotations

import re

from keyface_cli.emotion.cells import check_order, parse_key
from keyface_cli.emotion.names import NAMED
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.errors import EmotionError

LINE_HINT = "as in: neutral@0 happy@3.5 sad:0.6@8 0.2,-0.5@1:02:smooth"
# NAME[:INTENSITY] or VALENCE,AROUSAL, then [@TIME], then [:EASE]
_WORD = re.compile(r"(?P<state>[^@]*?)(@(?P<time>[^@]*?)(:(?P<ease>[A-Za-z]+))?)?")
_VALUES = re.compile(r"[-+.\d][^,]*,[^,]*")


def is_line(text: str) -> bool:
    """Say whether a text is meant as a curve in one line, rather than a name or a file."""
    name, mark, _ = text.strip().partition(":")
    named = bool(mark) and name.lower() in NAMED
    return "@" in text or named or bool(_VALUES.fullmatch(text.strip()))


def parse_line(text: str) -> EmotionTrack:
    """Read a curve from one line; one state alone needs no time.

    Raises:
        EmotionError: names the number of the key, counted from 1, and shows it.
    """
    words = text.split()
    keys: list[Key] = []
    for number, word in enumerate(words, start=1):
        shown = word if len(word) <= 40 else f"{word[:37]}..."
        start = f"emotion: key {number} ({shown})"
        parts = _WORD.fullmatch(word)
        if not parts or not parts["state"] or (parts["time"] is None and len(words) > 1):
            raise EmotionError(f"{start}: is not STATE@TIME", LINE_HINT)
        time = "0" if parts["time"] is None else parts["time"]
        cells = {"time": time, "ease": parts["ease"] or ""} | _state(parts["state"])

        def place(name: str, start: str = start) -> str:
            return start

        key = parse_key(cells, place)
        check_order(key, keys[-1] if keys else None, start)
        keys.append(key)
    return EmotionTrack(tuple(keys))


def _state(text: str) -> dict[str, str]:
    if _VALUES.fullmatch(text):
        valence, _, arousal = text.partition(",")
        return {"valence": valence, "arousal": arousal}
    name, _, intensity = text.partition(":")
    return {"emotion": name, "intensity": intensity}
