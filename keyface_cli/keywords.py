"""What Python may give for an option that is text on the command line."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from numbers import Integral
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from keyface_cli.emotion import EmotionTrack
from keyface_cli.emotion.write import write_line

_COUNTS = {"size": (1, 2), "face": (1,), "crop": (4,), "background": (3,)}


def as_options(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the fields of a dataclass have them.

    Args:
        kind: the dataclass, `options.InputOptions` or one of its.
        given: by name. `size` may be pixels or (width, height), `face` a number, `crop` (X, Y, W,
            H), `background` (R, G, B) in 0..255, `emotion` a path or a curve, and a path text. What
            is none of these stays as it is: the dataclass refuses it.
    """
    hints = typing.get_type_hints(kind)
    paths = {name for name, hint in hints.items() if Path in (hint, *typing.get_args(hint))}
    return {
        name: Path(value)
        if name in paths and isinstance(value, str | PathLike)
        else _as_text(name, value)
        for name, value in given.items()
    }


def _as_text(name: str, value: Any) -> Any:
    if name == "emotion":
        if isinstance(value, EmotionTrack):
            return write_line(value)
        return fspath(value) if isinstance(value, PathLike) else value
    numbers = value if isinstance(value, tuple | list) else (value,)
    whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in numbers)
    if len(numbers) not in _COUNTS.get(name, ()) or not whole:
        return value
    if name == "background":
        return f"rgb({','.join(map(str, numbers))})"
    return ("x" if name == "size" else ",").join(map(str, numbers))
