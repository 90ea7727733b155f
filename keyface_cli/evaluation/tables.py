"""The table of an evaluation: one row a method, one column a figure, in four formats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.measures import Column
from keyface_cli.evaluation.runner import MethodResult
from keyface_cli.evaluation.statistics import Estimate, estimate
from keyface_cli.files import csv_text, read_rows

REFERENCE = "reference"  # the row of the true videos, measured by themselves


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        method: its name.
        cells: column -> figure; a column that is not here is empty.
        published: taken from a file, not measured.
    """

    method: str
    cells: dict[str, Estimate]
    published: bool = False

    @property
    def competes(self) -> bool:
        """Whether the row can be the best."""
        return not self.published and self.method != REFERENCE


@dataclass(frozen=True)
class Table:
    """Rows and the columns in which any of them has a figure."""

    columns: list[Column]
    rows: list[Row]

    def best(self, column: Column) -> set[int]:
        """Return the rows whose figure is the best as printed, if there are two to compare."""
        values = {
            i: round(row.cells[column.key].value, column.digits)
            for i, row in enumerate(self.rows)
            if row.competes and column.key in row.cells
        }
        if column.better == "neither" or len(values) < 2:
            return set()
        top = max(values.values()) if column.better == "higher" else min(values.values())
        return {i for i, value in values.items() if value == top}


def make_table(
    results: Sequence[MethodResult],
    columns: Sequence[Column],
    published: Sequence[Row] = (),
) -> Table:
    """Return the table of what was measured, published rows last."""
    rows = []
    for result in results:
        found = {column.key: estimate(result, column) for column in columns}
        rows.append(Row(result.name, {key: value for key, value in found.items() if value}))
    rows += published
    used = [column for column in columns if any(column.key in row.cells for row in rows)]
    return Table(used, rows)


def read_published(path: Path, columns: Sequence[Column]) -> list[Row]:
    """Read published figures: a CSV file with the column method and others named as in ours.

    Raises:
        KeyFaceError: the file cannot be read, or a column or a figure is none.
    """
    names = {name.lower(): c.key for c in columns for name in (c.key, c.label)}
    rows = []
    for line, cells in read_rows(path)[1]:
        figures = {}
        for name, cell in cells.items():
            if name == "method" or not cell:
                continue
            key = names.get(name)
            if key is None:
                known = ", ".join(c.key for c in columns)
                raise KeyFaceError(f"{path}: unknown column: {name}", f"use method, {known}")
            try:
                value = float(cell)
            except ValueError:
                raise KeyFaceError(f"{path}:{line}: {name} is not a number: {cell}") from None
            figures[key] = Estimate(value, math.nan, math.nan, 0)
        rows.append(Row(cells.get("method") or "?", figures, published=True))
    return rows


def markdown(table: Table) -> str:
    """Return the table for a README, the best in bold, intervals in brackets."""
    heads = ["method", *(f"{c.label} {c.arrow}".strip() for c in table.columns)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row, cells in zip(table.rows, _cells(table, "**", "**"), strict=True):
        lines.append(_line([row.method + (" (published)" if row.published else ""), *cells]))
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """Return the table as a LaTeX tabular of booktabs."""
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}
    heads = ["Method", *(_escape(c.label) + arrows[c.better] for c in table.columns)]
    lines = [
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for row, cells in zip(table.rows, _cells(table, r"\textbf{", "}"), strict=True):
        method = _escape(row.method) + (r"$^\dagger$" if row.published else "")
        lines.append(" & ".join([method, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if any(row.published for row in table.rows):
        lines.append(r"% $^\dagger$ as published")
    return "\n".join(lines) + "\n"


def table_csv(table: Table) -> str:
    """Return the table with a column each for figure, interval and number of clips."""
    heads = [f"{c.key}{end}" for c in table.columns for end in ("", "_low", "_high", "_clips")]
    rows = []
    for row in table.rows:
        cells: list[object] = [row.method, int(row.published)]
        for column in table.columns:
            found = row.cells.get(column.key)
            if found is None:
                cells += [""] * 4
            else:
                ends = ["" if math.isnan(x) else f"{x:.6g}" for x in (found.low, found.high)]
                cells += [f"{found.value:.6g}", *ends, found.clips or ""]
        rows.append(cells)
    return csv_text(["method", "published", *heads], rows)


def clips_csv(results: Sequence[MethodResult], columns: Sequence[Column]) -> str:
    """Return one row a clip and method; a figure that was not scored is empty, its reason last."""
    rows: list[list[object]] = []
    keys = [c.key for c in columns if any(c.key in r.values for m in results for r in m.clips)]
    for result in results:
        for clip in result.clips:
            cells = [f"{clip.values[key]:.6g}" if key in clip.values else "" for key in keys]
            why = "; ".join(f"{key}: {reason}" for key, reason in clip.reasons.items())
            rows.append([result.name, clip.name, clip.frames, f"{clip.seconds:.2f}", *cells, why])
        for name, reason in result.failed.items():
            rows.append([result.name, name, 0, "0.00", *[""] * len(keys), reason])
    return csv_text(["method", "clip", "frames", "seconds", *keys, "not_scored"], rows)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _cells(table: Table, before: str, after: str) -> Iterator[list[str]]:
    """Yield each row's figures and intervals as text, the best figure between two marks."""
    best = {column.key: table.best(column) for column in table.columns}
    for i, row in enumerate(table.rows):
        texts = []
        for column in table.columns:
            found, digits = row.cells.get(column.key), column.digits
            text = "-" if found is None else f"{found.value:.{digits}f}"
            if i in best[column.key]:
                text = f"{before}{text}{after}"
            if found is not None and not math.isnan(found.low):
                text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
            texts.append(text)
        yield texts


def _escape(text: str) -> str:
    return "".join(rf"\{c}" if c in "&%$#_{}" else c for c in text)
