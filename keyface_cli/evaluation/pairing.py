"""Which generated clip belongs to which true one, and how the two are made comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keyface_cli.errors import VideoError
from keyface_cli.evaluation.measures import Clip
from keyface_cli.files import read_rows
from keyface_cli.media.frames import AS_IT_IS, Conform, list_videos, probe

_SHOWN = 5  # names in a message
_RATE_TOLERANCE = 0.01  # frames a second
PAIR_COLUMNS = ("generated", "reference", "method", "name", "emotion", "label")


@dataclass(frozen=True)
class Pair:
    """Files that belong together; see `measures.Clip`."""

    method: str
    name: str
    generated: Path
    reference: Path | None = None
    emotion: Path | None = None
    label: str | None = None


def pair_folders(
    generated: dict[str, Path],
    reference: Path | None,
    emotions: Path | None = None,
    *,
    common: bool = False,
) -> list[Pair]:
    """Pair the videos of folders by name, without extension.

    Args:
        generated: method -> folder.
        reference: folder of the true videos.
        emotions: folder of the curves, NAME.csv, that were asked for.
        common: use the names that are everywhere; else every method needs every name.

    Raises:
        VideoError: a folder is missing or empty, or names are not the same everywhere.
    """
    sides = {folder: list_videos(folder) for folder in generated.values()}
    truth = list_videos(reference) if reference else None
    everywhere = set.intersection(*(set(videos) for videos in sides.values()))
    wanted = set.union(*(set(videos) for videos in sides.values()))
    if truth is not None:
        everywhere &= set(truth)
        sides[reference] = truth  # type: ignore[index]
    if not everywhere:
        folders = ", ".join(map(str, sides))
        raise VideoError(f"no name is in all of {folders}", "name the pairs in a file: --pairs")
    for folder, videos in sides.items():
        missing = sorted(wanted - set(videos))
        if missing and not common:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            raise VideoError(
                f"{folder}: lacks {len(missing)} of {len(wanted)} clips: {shown}",
                "use --common to compare the others, or --pairs FILE.csv",
            )
    pairs = []
    for method, folder in generated.items():
        for name in sorted(everywhere):
            curve = emotions / f"{name}.csv" if emotions else None
            found = curve if curve and curve.is_file() else None
            true = truth[name] if truth else None
            pairs.append(Pair(method, name, sides[folder][name], true, found))
    return pairs


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs from a CSV file; relative paths start at its folder.

    Columns: generated; and, where wanted, reference, method, name, emotion (a curve) and label
    (a class of non-speech sound).

    Raises:
        VideoError: the file is missing or holds no pairs; or a row has no generated video, a name
            that no file could have, or the name of another clip.
    """
    header, rows = read_rows(path, VideoError)
    unknown = [name for name in header if name not in PAIR_COLUMNS]
    if "generated" not in header or unknown:
        what = f"unknown column {unknown[0]}" if unknown else "no column generated"
        raise VideoError(f"{path}: {what}", f"the columns are {', '.join(PAIR_COLUMNS)}")
    pairs: list[Pair] = []
    named: dict[str, list[Pair]] = {}
    for line, cells in rows:
        place = f"{path}:{line}"
        if not cells["generated"]:
            raise VideoError(f"{place}: no generated video")
        for column in ("method", "name"):
            _check_name(place, column, cells.get(column, ""))
        files = {
            key: path.parent / cells[key] if cells.get(key) else None
            for key in ("generated", "reference", "emotion")
        }
        generated = files["generated"]
        assert generated is not None
        pair = Pair(
            cells.get("method") or "generated",
            cells.get("name") or generated.stem,
            generated,
            files["reference"],
            files["emotion"],
            cells.get("label") or None,
        )
        alike = named.setdefault(pair.name, [])
        _check_unique(place, pair, alike)
        alike.append(pair)
        pairs.append(pair)
    if not pairs:
        raise VideoError(f"{path}: holds no pairs")
    return pairs


def _check_name(place: str, column: str, name: str) -> None:
    """Refuse a name under which no file could be written, or one elsewhere."""
    if name in (".", "..") or any(character in name for character in "/\\\0"):
        raise VideoError(
            f"{place}: no such {column}: {name!r}",
            "it names files of the report: leave out / and \\",
        )


def _check_unique(place: str, pair: Pair, alike: Sequence[Pair]) -> None:
    """Refuse a pair that would overwrite what the report holds of one of the same name."""
    for other in alike:
        if other.method == pair.method or other.reference != pair.reference:
            raise VideoError(
                f"{place}: another row's clip is called {pair.name} as well",
                "give each a name of its own in the column name",
            )


def make_clip(pair: Pair, fps: float | None = None) -> tuple[Clip, list[str]]:
    """Look at a pair's files and decide how they are made comparable.

    The rate is `fps`, else the reference's; the size is the reference's; the length is the
    shorter one's.

    Returns:
        The clip, and what is done about differences, a line each.

    Raises:
        VideoError: a file is missing, damaged or no video.
    """
    generated = probe(pair.generated)
    reference = probe(pair.reference) if pair.reference else None
    leader = reference or generated
    rate = fps or _round(leader.fps)
    notes = []
    lengths = []
    conforms = {"reference": AS_IT_IS}
    for side, info in (("generated", generated), ("reference", reference)):
        if info is None:
            continue
        changes = info.variable or abs(info.fps - rate) > _RATE_TOLERANCE
        if changes:
            kind = "a variable rate" if info.variable else f"{info.fps:.4g} frames a second"
            notes.append(f"{side} clip has {kind}: brought to {rate:g}")
        size = leader.size if info.size != leader.size else None
        if size:
            sizes = f"{info.size[0]}x{info.size[1]}: resized to {size[0]}x{size[1]} (Lanczos)"
            notes.append(f"{side} clip is {sizes}")
        conforms[side] = Conform(rate if changes else None, size)
        lengths.append(max(round(info.frames / info.fps * rate), 1) if changes else info.frames)
    if len(set(lengths)) > 1:
        notes.append(
            f"generated clip has {lengths[0]} frames, its reference {lengths[1]}: "
            f"cut to {min(lengths)}"
        )
    clip = Clip(
        pair.name,
        pair.generated,
        pair.reference,
        rate,
        min(lengths),
        leader.size,
        pair.emotion,
        pair.label,
        conforms["generated"],
        conforms["reference"],
    )
    return clip, notes


def _round(fps: float) -> float:
    """Return the nearest whole rate where timestamps are only rounded: 24.999 is 25."""
    return float(round(fps)) if abs(fps - round(fps)) < _RATE_TOLERANCE else fps
