"""The record of a training: a plain CSV, and files for TensorBoard.

    RUN/NAME.csv                     one row every so many updates, with the seconds in all
    RUN/NAME-samples.csv             one row for each sample of held-out clips
    RUN/samples/NAME-000400.png      its frames, made above and true below
    RUN/tensorboard/NAME/events...   the same numbers and pictures; a file for each start

The last are written where tensorboard is installed.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.files import csv_text, write_text


class TrainingLog:
    """Writes the record of one network's training.

    Args:
        folder: the run.
        name: of the network.
        update: the updates done before; what an earlier start has written beyond them is dropped.
    """

    def __init__(self, folder: Path, name: str, update: int = 0) -> None:
        self.folder, self.name = folder, name
        self.csv_path = folder / f"{name}.csv"  # of the rows of `write`
        self.samples_path = folder / f"{name}-samples.csv"  # of the rows of `sample`
        for path in (self.csv_path, self.samples_path):
            _drop_rows_after(path, update)
        _, rows = _read(self.csv_path)
        self._seconds = float(rows[-1]["seconds"]) if rows else 0.0  # of earlier starts
        self._board = _open_board(folder / "tensorboard" / name, update)

    def write(self, update: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add a row of named numbers.

        Args:
            update: the updates done.
            seconds: since this start of the training; those of earlier starts are added.
            values: their means since the last row.
        """
        row = {"update": update, "seconds": round(self._seconds + seconds, 1)}
        _add_row(self.csv_path, row | dict(values))
        self._scalars(update, values)

    def sample(self, update: int, strip: NDArray[np.uint8], values: Mapping[str, float]) -> Path:
        """Add a sample of held-out clips: its picture (H, W, 3) and what was measured."""
        from PIL import Image

        path = self.folder / "samples" / f"{self.name}-{update:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(strip).save(path)
        _add_row(self.samples_path, {"update": update} | dict(values))
        self._scalars(update, {f"held out/{key}": value for key, value in values.items()})
        if self._board is not None:
            self._board.add_image("held out", strip, update, dataformats="HWC")
            self._board.flush()
        return path

    def close(self) -> None:
        """Close the files of TensorBoard."""
        if self._board is not None:
            self._board.close()

    def _scalars(self, update: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, update)
            self._board.flush()


def _open_board(place: Path, update: int) -> Any:
    """Open the files of TensorBoard for what follows an update; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TensorBoard's own imports
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # what an earlier start has written beyond the update is forgotten
    return SummaryWriter(str(place), purge_step=update + 1)


def _add_row(path: Path, row: Mapping[str, float]) -> None:
    """Append to a CSV; where its columns are others, it is written anew with all of them."""
    rows: list[Mapping[str, object]] = [{key: f"{value:.8g}" for key, value in row.items()}]
    path.touch()
    with path.open("r+", newline="", encoding="utf-8") as file:
        if file.readline().strip() == ",".join(row):
            file.seek(0, os.SEEK_END)
            csv.DictWriter(file, list(row), lineterminator="\n").writerows(rows)
            return
    header, before = _read(path)
    _write(path, list(dict.fromkeys([*header, *row])), [*before, *rows])


def _drop_rows_after(path: Path, update: int) -> None:
    header, rows = _read(path)
    _write(path, header, [row for row in rows if float(row["update"]) <= update])


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV; a last row that was cut off is left out."""
    if not path.is_file():
        return [], []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    return list(reader.fieldnames or []), list(reader)


def _write(
    path: Path, columns: list[str], rows: list[Mapping[str, object]] | list[dict[str, str]]
) -> None:
    if not columns:
        return
    write_text(path, csv_text(columns, ([row.get(name, "") for name in columns] for row in rows)))
