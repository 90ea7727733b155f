"""Runs metrics over clips: each video is decoded once, block by block, for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import VideoError
from keyface_cli.evaluation.measures import Block, Clip, Figures, Frames, Measure, SetMeasure
from keyface_cli.files import csv_text, write_text
from keyface_cli.media.frames import read_frames

SET_RESAMPLES = 20  # of the bootstrap of whole sets, as FID
BLOCK = 16  # frames that are decoded and measured together
Progress = Callable[[int], None]  # told how many more frames are done


@dataclass(frozen=True)
class ClipResult:
    """The figures of one clip of one method."""

    name: str
    frames: int
    seconds: float
    values: dict[str, float]
    reasons: dict[str, str]  # column -> why it was not scored
    generated: Path
    reference: Path | None


@dataclass
class MethodResult:
    """The figures of one method.

    Args:
        name: of the method.
        clips: in the order in which they were measured.
        overall: figures of the whole set, as FID.
        spread: their standard error by bootstrap over clips.
        protocols: metric -> what is needed to repeat it.
        failed: clip -> why it could not be read.
    """

    name: str
    clips: list[ClipResult] = field(default_factory=list)
    overall: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run_method(
    name: str,
    clips: Sequence[Clip],
    measures: Sequence[Measure],
    tracks: Path | None = None,
    progress: Progress = lambda frames: None,
) -> MethodResult:
    """Measure all clips of a method.

    Args:
        name: of the method.
        clips: from `pairing.make_clip`; those without a reference skip metrics that need one.
        measures: what an earlier method left in them is dropped.
        tracks: folder for one CSV file a clip with the values over time.
        progress: told of frames that are done.

    Returns:
        The results; a clip that turns out to be damaged is in `failed`, and counts in no set.
    """
    result = MethodResult(name)
    for measure in measures:
        if isinstance(measure, SetMeasure):
            measure.restart()
    for clip in clips:
        fitting = [m for m in measures if clip.reference is not None or not m.needs_reference]
        try:
            measured, figures = measure_clip(clip, fitting, progress)
        except VideoError as error:
            result.failed[clip.name] = str(error)
            continue
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for one in figures:
            values |= one.values
            reasons |= one.reasons
        count = measured.frames
        result.clips.append(
            ClipResult(
                clip.name, count, count / clip.fps, values, reasons, clip.generated, clip.reference
            )
        )
        if tracks is not None:
            write_tracks(tracks / f"{clip.name}.csv", clip.fps, figures)
    for measure in measures:
        if isinstance(measure, SetMeasure) and result.clips:
            result.overall |= measure.overall()
            result.spread |= _spread(measure, len(result.clips))
        result.protocols[measure.name] = result.protocols.get(measure.name, {}) | {
            column.key: measure.protocol() for column in measure.columns
        }
    return result


def measure_clip(
    clip: Clip, measures: Sequence[Measure], progress: Progress = lambda frames: None
) -> tuple[Clip, list[Figures]]:
    """Decode one clip once and let every metric see it.

    Returns:
        The clip with the number of frames that there really were, and each metric's answer.

    Raises:
        VideoError: one of its files is damaged.
    """
    for measure in measures:
        measure.begin(clip)
    start = 0
    try:
        for generated, reference in _blocks(clip):
            block = Block(start, generated, reference)
            for measure in measures:
                measure.add(block)
            start += len(generated)
            progress(len(generated))
        return replace(clip, frames=start), [measure.end() for measure in measures]
    except VideoError:
        for measure in measures:
            measure.forget()
        raise


def _blocks(clip: Clip) -> Iterator[tuple[Frames, Frames | None]]:
    """Yield blocks of both sides, equally long, as far as the shorter one goes."""
    conform = replace(clip.conform, frames=clip.frames)
    generated = read_frames(clip.generated, conform, BLOCK)
    if clip.reference is None:
        for frames in generated:
            yield frames, None
        return
    conform = replace(clip.reference_conform, frames=clip.frames)
    reference = read_frames(clip.reference, conform, BLOCK)
    try:
        for a, b in zip(generated, reference, strict=False):
            count = min(len(a), len(b))
            yield a[:count], b[:count]
            if len(a) != len(b):
                return
    finally:
        generated.close()
        reference.close()


def _spread(measure: SetMeasure, clips: int) -> dict[str, float]:
    """Return the standard deviation of a set's figures over resampled clips."""
    if clips < 2:
        return {}
    generator = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(SET_RESAMPLES):
        weights = np.bincount(generator.integers(0, clips, clips), minlength=clips)
        for key, value in measure.overall(weights.astype(np.float64)).items():
            drawn.setdefault(key, []).append(value)
    return {key: float(np.std(values, ddof=1)) for key, values in drawn.items() if len(values) > 1}


def write_tracks(path: Path, fps: float, figures: Sequence[Figures]) -> None:
    """Write values over time as CSV: time in seconds, and a column for each track."""
    columns: dict[str, NDArray[np.floating]] = {}
    for one in figures:
        columns |= one.tracks
    if not columns:
        return
    rows = [
        [f"{t / fps:.4f}", *(f"{v[t]:.6g}" if t < len(v) else "" for v in columns.values())]
        for t in range(max(map(len, columns.values())))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, csv_text(["time", *columns], rows))
