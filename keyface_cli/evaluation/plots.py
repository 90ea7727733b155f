"""Plots and contact sheets of an evaluation, as PNG files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from keyface_cli.evaluation.measures import Column
from keyface_cli.evaluation.runner import ClipResult, MethodResult
from keyface_cli.media.frames import read_frames
from keyface_cli.plotting import new_figure

_SHEET_FRAMES, _SHEET_SIDE = 8, 160  # pictures in a row, pixels of each


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def plot_distribution(path: Path, results: Sequence[MethodResult], column: Column) -> Path | None:
    """Draw every clip's figure and each method's quartiles; None where nothing was scored."""
    found = {
        r.name: [c.values[column.key] for c in r.clips if column.key in c.values] for r in results
    }
    found = {name: values for name, values in found.items() if values}
    if not found:
        return None
    figure = new_figure(1.5 + 1.2 * len(found), 3.5)
    axes = figure.subplots()
    axes.boxplot(list(found.values()), tick_labels=list(found), showfliers=False, widths=0.5)
    generator = np.random.default_rng(0)
    for place, values in enumerate(found.values(), start=1):
        x = place + generator.uniform(-0.15, 0.15, len(values))
        axes.plot(x, values, ".", alpha=0.6)
    axes.set_ylabel(f"{column.label} {column.arrow}".strip())
    return _save(figure, path)


def plot_over_time(path: Path, tracks: Path, methods: Sequence[str], name: str) -> Path | None:
    """Draw a track's mean over clips against time, from the files that the run wrote.

    Args:
        path: the picture.
        tracks: folder with one folder a method, one CSV file a clip.
        methods: which.
        name: of the track.
    """
    figure = new_figure(6, 3)
    axes = figure.subplots()
    drawn = False
    for method in methods:
        times, mean = _mean_track(sorted((tracks / method).glob("*.csv")), name)
        if len(mean):
            axes.plot(times, mean, label=method)
            drawn = True
    if not drawn:
        return None
    axes.set_xlabel("seconds")
    axes.set_ylabel(name)
    axes.legend()
    return _save(figure, path)


def track_names(tracks: Path) -> list[str]:
    """Return the names of all tracks that a run wrote, in order."""
    names: dict[str, None] = {}
    for path in sorted(tracks.glob("*/*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            names |= dict.fromkeys(next(csv.reader(file))[1:])
    return list(names)


def _mean_track(
    files: Sequence[Path], name: str
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    clips = []
    step = 0.04
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get(name)]
        clips.append([float(row[name]) for row in rows])
        if len(rows) > 1:
            step = float(rows[1]["time"]) - float(rows[0]["time"])
    mean = [np.mean([v for v in at_once if v is not None]) for at_once in zip_longest(*clips)]
    return np.arange(len(mean)) * step, np.array(mean)


def worst_clips(result: MethodResult, column: Column, count: int) -> list[ClipResult]:
    """Return the clips with the worst figures, the worst first."""
    scored = [clip for clip in result.clips if column.key in clip.values]
    high = column.better == "lower"
    return sorted(scored, key=lambda clip: clip.values[column.key], reverse=high)[:count]


def contact_sheet(path: Path, clip: ClipResult, title: str) -> Path:
    """Draw evenly spaced frames of a clip, and of its reference below.

    Raises:
        VideoError: a file is gone or damaged since it was measured.
    """
    rows = [_strip(clip.generated, clip.frames)]
    if clip.reference is not None:
        rows.append(_strip(clip.reference, clip.frames))
    width, height = max(r.width for r in rows), sum(r.height for r in rows)
    sheet = Image.new("RGB", (width, height + 20), "white")
    top = 20
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    ImageDraw.Draw(sheet).text((4, 4), title, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _strip(video: Path, frames: int) -> Image.Image:
    """Lay evenly spaced frames side by side, each _SHEET_SIDE high."""
    wanted = set(np.linspace(0, frames - 1, _SHEET_FRAMES).round().astype(int).tolist())
    taken = []
    start = 0
    for block in read_frames(video):
        for i, frame in enumerate(block, start):
            if i in wanted:
                picture = Image.fromarray(frame)
                width = max(round(picture.width * _SHEET_SIDE / picture.height), 1)
                resized = picture.resize((width, _SHEET_SIDE), Image.Resampling.LANCZOS)
                taken.append(np.asarray(resized))
        start += len(block)
    return Image.fromarray(np.hstack(taken))
