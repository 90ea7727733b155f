"""Read a curve from JSON: a list of keys, or an object with such a list under "keys"."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from keyface_cli.emotion.cells import ALIASES, FIELDS, TIMES, check_order, parse_key, short
from keyface_cli.emotion.names import nearest
from keyface_cli.emotion.table import NOTES
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.errors import EmotionError

logger = logging.getLogger(__name__)

JSON_HINT = (
    'for example: [{"time": 0, "emotion": "happy"}, {"time": 2, "valence": 0, "arousal": 0}]'
)


def parse_json(text: str, where: str) -> tuple[EmotionTrack, str]:
    """Read the keys of a curve from JSON.

    Args:
        text: the file's content.
        where: its name, for errors.

    Returns:
        The curve, and how its times are written (one of cells.TIMES, or "clock").

    Raises:
        EmotionError: names the file, the number of the key, counted from 1, and the field.
    """
    items = _items(_load(text, where), where)
    keys: list[Key] = []
    style = TIMES[0]
    for number, item in enumerate(items, start=1):
        start = f"{where}: key {number}"
        cells = _cells(item, start)

        def place(name: str, start: str = start) -> str:
            return start

        key = parse_key(cells, place)
        check_order(key, keys[-1] if keys else None, start)
        keys.append(key)
        style = next(name for name in TIMES if name in cells)
        style = "clock" if style == "time" and ":" in cells["time"] else style
    if not keys:
        raise EmotionError(f"{where}: holds no keys", JSON_HINT)
    return EmotionTrack(tuple(keys)), style


def _load(text: str, where: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise EmotionError(f"{where}: not a number: {word}", "fill it in, or remove the key")

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise EmotionError(f"{where}: duplicate field in one object: {short(name)}")
        return dict(pairs)

    try:
        return json.loads(
            text.removeprefix("\ufeff"), parse_constant=refuse, object_pairs_hook=once
        )
    except json.JSONDecodeError as error:
        raise EmotionError(
            f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits; too deep
        raise EmotionError(f"{where}: not JSON that can be read: {error}") from error


def _items(data: Any, where: str) -> list[Any]:
    items = data.get("keys") if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise EmotionError(f"{where}: holds no list of keys", JSON_HINT)
    return items


def _cells(item: Any, place: str) -> dict[str, str]:
    """Return the fields of one key as cells of text."""
    if not isinstance(item, dict):
        raise EmotionError(f"{place}: is not an object", JSON_HINT)
    cells: dict[str, str] = {}
    for given, value in item.items():
        name = ALIASES.get(given.strip().lower(), given.strip().lower())
        if name not in FIELDS:
            if not name.startswith(NOTES):
                near = nearest(name, FIELDS).strip()
                hint = f" ({near})" if near else ""
                logger.warning("%s: field ignored: %s%s", place, short(given), hint)
            continue
        if name in cells:
            raise EmotionError(f"{place}: duplicate field: {name}")
        if isinstance(value, bool | list | dict):
            raise EmotionError(f"{place}: {name} is neither a number nor text")
        cells[name] = "" if value is None else " ".join(str(value).split())
    times = [name for name in TIMES if name in cells]
    if len(times) != 1:
        said = " and ".join(times) or "no time"
        raise EmotionError(f"{place}: holds {said}, not one time", JSON_HINT)
    if "intensity" in cells and not cells["intensity"]:
        del cells["intensity"]
    if not any(name in cells for name in ("emotion", "valence", "arousal")):
        raise EmotionError(f"{place}: neither an emotion nor valence and arousal", JSON_HINT)
    return cells
