"""The record of a training: a plain CSV, and event files that TensorBoard reads.

    RUN/NAME.csv                     one row every so many updates, with the seconds in all
    RUN/NAME-samples.csv             one row for each sample of held-out clips
    RUN/samples/NAME-000400.png      its frames, made above and true below
    RUN/tensorboard/NAME/events...   the same numbers and pictures; a file for each start

The event format is TensorFlow's: records with checksums that hold protocol buffers, of which the
few fields needed here are written out by hand, so that a training needs no TensorBoard.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class TrainingLog:
    """Writes the record of one network's training.

    Args:
        folder: the run.
        name: of the network.
        update: the updates done before; what an earlier start has written beyond them is dropped.
    """

    def __init__(self, folder: Path, name: str, update: int = 0) -> None:
        self.folder, self.name = folder, name
        for path in (self.csv_path, self.samples_path):
            _drop_rows_after(path, update)
        _, rows = _read(self.csv_path)
        self._seconds = float(rows[-1]["seconds"]) if rows else 0.0  # of earlier starts
        place = folder / "tensorboard" / name
        place.mkdir(parents=True, exist_ok=True)
        stamp = f"{time.time():.3f}"
        self._events = (place / f"events.out.tfevents.{stamp}.{os.getpid()}").open("wb")
        self._event(_text(3, "brain.Event:2"), 0)
        # the start of a session: TensorBoard forgets what it read of later updates
        self._event(_message(7, _integer(1, 1)), update + 1)

    @property
    def csv_path(self) -> Path:
        """Where the rows of `write` go."""
        return self.folder / f"{self.name}.csv"

    @property
    def samples_path(self) -> Path:
        """Where the rows of `sample` go."""
        return self.folder / f"{self.name}-samples.csv"

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

        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "PNG")
        path = self.folder / "samples" / f"{self.name}-{update:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        _add_row(self.samples_path, {"update": update} | dict(values))
        self._scalars(update, {f"held out/{key}": value for key, value in values.items()})
        height, width = strip.shape[:2]
        image = _integer(1, height) + _integer(2, width) + _integer(3, 3)
        image += _bytes(4, buffer.getvalue())
        self._event(_message(5, _message(1, _text(1, "held out") + _message(4, image))), update)
        return path

    def close(self) -> None:
        """Close the event file."""
        self._events.close()

    def _scalars(self, update: int, values: Mapping[str, float]) -> None:
        summary = b"".join(
            _message(1, _text(1, name) + _key(2, 5) + struct.pack("<f", value))
            for name, value in values.items()
        )
        self._event(_message(5, summary), update)

    def _event(self, content: bytes, update: int) -> None:
        event = _key(1, 1) + struct.pack("<d", time.time()) + _integer(2, update) + content
        length = struct.pack("<Q", len(event))
        self._events.write(length + _checksum(length) + event + _checksum(event))
        self._events.flush()


def _add_row(path: Path, row: Mapping[str, float]) -> None:
    """Append to a CSV; where its columns are others, it is written anew with all of them."""
    rows: list[Mapping[str, object]] = [{key: f"{value:.8g}" for key, value in row.items()}]
    path.touch()
    with path.open("r+", newline="", encoding="utf-8") as file:
        if file.readline().strip() == ",".join(row):
            file.seek(0, os.SEEK_END)
            csv.DictWriter(file, list(row)).writerows(rows)
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
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, path)


# Protocol buffers: a field is a key, its number and wire type, and a value.
def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


_message = _bytes


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _castagnoli_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _castagnoli_table()


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as in TensorFlow's record files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
