"""Videos prepared by several workers: each into a folder of its own, then put together in order.

What comes out is what `prepare` makes on one machine: the same shards, index and report.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyface_cli.errors import KeyFaceError
from keyface_cli.training import shards
from keyface_cli.training.preparation.prepare import (
    Limits,
    Piece,
    Report,
    facts_of,
    fingerprint_of,
    finish,
    load_encoders,
    prepare,
)
from keyface_cli.training.preparation.writer import ShardWriter

FOLDER = "parts"  # in the folder of the shards


@dataclass(frozen=True)
class Part:
    """A video, and the folder that its shards go to."""

    video: Path
    folder: Path


def set_up(
    model: str | None, affect: Path | None, device: str, limits: Limits
) -> Callable[[Part], Part]:
    """Load what a worker needs, once; see `prepare.load_encoders`.

    Returns:
        What prepares a part. One that another worker has begun is gone on with.
    """
    encoders = load_encoders(model, affect, device)
    made_with = facts_of(encoders, limits)

    def make(part: Part) -> Part:
        prepare([part.video], part.folder, encoders, limits, made_with)
        return part

    return make


def prepare_parts(
    videos: list[Path],
    folder: Path,
    made_with: Mapping[str, Any],
    make: Callable[[Iterator[Part]], Iterable[Part]],
    report: Report,
) -> list[Piece]:
    """Have videos prepared in any order, and make shards of them in theirs.

    Args:
        videos: files, each once.
        folder: of the shards; made where it is missing.
        made_with: as for `prepare`.
        make: prepares each part, somewhere, and gives it back when it is done.
        report: told of each video when its clips are in the shards.

    Returns:
        What became of every stretch of every video, of those of earlier runs too.

    Raises:
        KeyFaceError: the folder's shards or a part were made otherwise, or the disk is full.
    """
    writer = ShardWriter(folder, made_with)
    keys = {fingerprint_of(video): video for video in videos}
    left = [key for key in keys if key not in writer.videos]
    places = {key: folder.resolve() / FOLDER / key for key in left}
    ready: set[Path] = set()
    report(len(keys) - len(left), len(keys), "")
    for part in make(Part(keys[key].resolve(), places[key]) for key in tuple(left)):
        ready.add(part.folder)
        while left and places[left[0]] in ready:
            key = left.pop(0)
            _take(writer, key, keys[key], places[key])
            report(len(keys) - len(left), len(keys), keys[key].name)
            for written in writer.videos.keys() & places.keys():
                shutil.rmtree(places.pop(written), ignore_errors=True)
    pieces = finish(writer)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    return pieces


def _take(writer: ShardWriter, key: str, video: Path, place: Path) -> None:
    """Move a part's clips, and what became of its stretches, into the shards."""
    index = shards.read_index(place)
    if index["made_with"] != writer.made_with:
        raise KeyFaceError(
            f"{place} was made with another model or other options",
            "every machine needs the same keyface and the same model",
        )
    for name, source, clip in shards.read_clips(place):
        if name not in writer.known:
            writer.add(name, source, clip)
    writer.finish(key, [{**row, "video": str(video)} for row in index["videos"][key]])
