"""An evaluation from folders to a report: tables, plots, the worst clips, and every setting."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation import tables
from keyface_cli.evaluation.measures import Clip, Column
from keyface_cli.evaluation.pairing import Pair, make_clip
from keyface_cli.evaluation.plots import (
    contact_sheet,
    plot_distribution,
    plot_over_time,
    track_names,
    worst_clips,
)
from keyface_cli.evaluation.registry import Absent, Settings, all_columns, build_measures
from keyface_cli.evaluation.runner import SET_RESAMPLES, MethodResult, run_method
from keyface_cli.evaluation.statistics import RESAMPLES
from keyface_cli.files import plain, unwritable, write_text

PACKAGES = ("torch", "numpy", "opencv-python-headless", "torchmetrics", "transformers")
# by which clips are called the worst: the first that was measured
_JUDGES = (
    "lipscore",
    "lipscore_four_points",
    "lpips_alex",
    "lpips_vgg",
    "psnr",
    "sync_correlation",
)


@dataclass
class Evaluation:
    """Everything that an evaluation found.

    Args:
        results: of each method, the true videos' own row first where it was wanted.
        columns: all that were measured.
        absent: metrics whose weights are missing.
        notes: what was done about differences, and what could not be read.
        networks: network -> file and hash.
        settings: as given.
        table: the figures.
    """

    results: list[MethodResult]
    columns: list[Column]
    absent: list[Absent]
    notes: list[str]
    networks: dict[str, Any]
    settings: Settings
    table: tables.Table

    @property
    def failed(self) -> int:
        """How many clips could not be read."""
        return sum(len(result.failed) for result in self.results)


def evaluate_videos(
    pairs: Sequence[Pair],
    settings: Settings,
    *,
    fps: float | None = None,
    reference_row: bool = True,
    tracks: Path | None = None,
    published: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure the clips of all methods.

    Args:
        pairs: from `pairing`.
        settings: which metrics, and how.
        fps: rate to bring all clips to; None is each reference's.
        reference_row: measure the true videos too, by the metrics that need no reference.
        tracks: folder for the values over time.
        published: CSV file with published figures.
        progress: told of frames done and in all.

    Raises:
        KeyFaceError: a file cannot be used; found before anything is measured, except damage
            in the middle of a video, which the results name.
    """
    measures, absent, networks = build_measures(settings)
    if not measures:
        raise KeyFaceError(
            "none of the metrics can be computed", f"{absent[0].reason}: {absent[0].hint}"
        )
    columns = all_columns(measures)
    rows = tables.read_published(published, columns) if published else []
    clips, notes = _make_clips(_with_reference(pairs) if reference_row else pairs, fps)
    total = sum(clip.frames for group in clips.values() for clip in group)
    done = 0

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        progress(min(done, total), total)

    results = []
    for method, group in clips.items():
        own = [m for m in measures if method != tables.REFERENCE or not m.needs_reference]
        place = tracks / method if tracks else None
        results.append(run_method(method, group, own, place, advance))
    progress(total, total)
    notes += [f"{r.name}/{name}: {why}" for r in results for name, why in r.failed.items()]
    table = tables.make_table(results, columns, rows)
    return Evaluation(results, columns, absent, notes, networks, settings, table)


def _make_clips(
    pairs: Sequence[Pair], fps: float | None
) -> tuple[dict[str, list[Clip]], list[str]]:
    """Return the clips of each method, and what is noteworthy about them."""
    clips: dict[str, list[Clip]] = {}
    notes: list[str] = []
    for pair in pairs:
        clip, remarks = make_clip(pair, fps)
        clips.setdefault(pair.method, []).append(clip)
        notes += [f"{pair.method}/{pair.name}: {remark}" for remark in remarks]
    return clips, notes


def _with_reference(pairs: Sequence[Pair]) -> list[Pair]:
    """Put the true videos in front, each once, as a method of their own."""
    truth = {p.reference: p for p in pairs if p.reference is not None}
    own = [
        Pair(tables.REFERENCE, p.name, path, None, p.emotion, p.label) for path, p in truth.items()
    ]
    return [*own, *pairs]


def describe(found: Evaluation) -> dict[str, Any]:
    """Return everything as plain data: figures, and what is needed to repeat them."""
    settings = asdict(found.settings)
    settings["weights"] = {name: str(path) for name, path in found.settings.weights.items()}
    settings["folder"] = str(found.settings.folder)
    return {
        "keyface": _version("keyface"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "settings": settings,
        "networks": found.networks,
        "absent": [asdict(one) for one in found.absent],
        "notes": found.notes,
        "protocols": {r.name: r.protocols for r in found.results},
        "methods": [
            {
                "method": row.method,
                "published": row.published,
                "figures": {key: plain(asdict(cell)) for key, cell in row.cells.items()},
            }
            for row in found.table.rows
        ],
        "clips": [
            {
                "method": result.name,
                "clip": clip.name,
                "frames": clip.frames,
                "seconds": clip.seconds,
                "values": clip.values,
                "not_scored": clip.reasons,
            }
            for result in found.results
            for clip in result.clips
        ],
        "failed": {r.name: r.failed for r in found.results if r.failed},
    }


def markdown_report(found: Evaluation, pictures: Sequence[str] = ()) -> str:
    """Return the report as Markdown: table, absent metrics, protocols, notes, pictures."""
    lines = ["# Evaluation", "", tables.markdown(found.table)]
    lines.append(
        f"Means over clips with 95 % bootstrap intervals ({RESAMPLES} resamples); of FID and "
        f"FVD normal intervals ({SET_RESAMPLES} resamples). The row {tables.REFERENCE} "
        "is the true videos measured by themselves."
    )
    if found.absent:
        lines += ["", "## Absent", ""]
        lines += [f"- {one.metric}: {one.reason}. To get it: {one.hint}." for one in found.absent]
    lines += ["", "## How it was measured", ""]
    for result in found.results[-1:]:
        for metric, columns in result.protocols.items():
            facts = next(iter(columns.values()))
            text = "; ".join(f"{key}: {value}" for key, value in facts.items())
            lines.append(f"- {metric}: {text}")
    lines += [
        f"- {name}: {facts['file']}, sha256 {facts['sha256']}"
        for name, facts in found.networks.items()
    ]
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    lines.append(f"- keyface {_version('keyface')}, Python {platform.python_version()}, {versions}")
    if found.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in found.notes)]
    if pictures:
        lines += ["", "## Pictures", "", *(f"![{Path(p).stem}]({p})" for p in pictures)]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, found: Evaluation, worst: int = 3) -> None:
    """Write report.md, report.json, table.csv, table.tex, clips.csv, plots/ and worst/.

    Args:
        folder: made where it is missing; its `tracks` are read where the run wrote them.
        found: what to write.
        worst: contact sheets a method.

    Raises:
        KeyFaceError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [str(p.relative_to(folder)) for p in _draw(folder, found, worst)]
        texts = {
            "table.csv": tables.table_csv(found.table),
            "table.tex": tables.latex(found.table),
            "clips.csv": tables.clips_csv(found.results, found.columns),
            "report.json": json.dumps(describe(found), indent=2) + "\n",
            "report.md": markdown_report(found, pictures),
        }
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise unwritable(folder, error) from error


def _draw(folder: Path, found: Evaluation, worst: int) -> list[Path]:
    drawn = [
        plot_distribution(folder / "plots" / f"{column.key}.png", found.results, column)
        for column in found.columns
    ]
    tracks = folder / "tracks"
    if tracks.is_dir():
        methods = [result.name for result in found.results]
        for name in track_names(tracks):
            path = folder / "plots" / f"time-{name.replace(' ', '-')}.png"
            drawn.append(plot_over_time(path, tracks, methods, name))
    by_key = {column.key: column for column in found.columns}
    for result in found.results:
        judge = next((by_key[k] for k in _JUDGES if any(k in c.values for c in result.clips)), None)
        if judge is None or result.name == tables.REFERENCE:
            continue
        for rank, clip in enumerate(worst_clips(result, judge, worst), start=1):
            value = clip.values[judge.key]
            title = f"{result.name} {clip.name}: {judge.label} {value:.{judge.digits}f}"
            path = folder / "worst" / f"{result.name}-{rank}-{clip.name}.png"
            drawn.append(contact_sheet(path, clip, title))
    return [path for path in drawn if path is not None]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
