"""The log of a training: CSV files and what TensorBoard reads."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keyface_cli.training.log import TrainingLog


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_beyond_the_resumed_update_are_dropped(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, "x")
    for update in (10, 20, 30):
        log.write(update, update / 10, {"loss": update / 7})
    log.close()
    with (tmp_path / "x.csv").open("a") as file:
        file.write("4")  # cut off by a crash
    again = TrainingLog(tmp_path, "x", 20)
    again.write(30, 2.0, {"loss": 0.5})
    again.close()
    found = rows(tmp_path / "x.csv")
    assert [row["update"] for row in found] == ["10", "20", "30"]
    assert float(found[0]["loss"]) == pytest.approx(10 / 7, rel=1e-6)
    assert found[-1]["loss"] == "0.5"
    assert [row["seconds"] for row in found] == ["1", "2", "4"]  # 2 s after update 20's 2 s


def test_new_columns_join_the_old_ones(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, "x")
    log.write(1, 0.0, {"loss": 1.0})
    log.write(2, 0.0, {"loss": 2.0, "pixel": 3.0})
    log.close()
    first, second = rows(tmp_path / "x.csv")
    assert first["pixel"] == ""
    assert (second["loss"], second["pixel"]) == ("2", "3")


def test_samples_are_written_beside_the_log(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, "x")
    strip = np.zeros((4, 6, 3), np.uint8)
    strip[..., 1] = 200
    path = log.sample(40, strip, {"lip_sync": 0.25})
    log.close()
    assert path == tmp_path / "samples" / "x-000040.png"
    assert np.array_equal(np.asarray(Image.open(path)), strip)
    assert rows(tmp_path / "x-samples.csv") == [{"update": "40", "lip_sync": "0.25"}]


def test_without_tensorboard_there_is_the_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = TrainingLog(tmp_path, "x")
    log.write(1, 0.0, {"loss": 1.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_log(tmp_path: Path) -> None:
    loader: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here"
    )
    log = TrainingLog(tmp_path, "keyframe_unet")
    log.write(100, 1.0, {"loss": 0.75, "mse": 0.5})
    log.write(200, 2.0, {"loss": 0.25, "mse": 0.5})
    log.sample(200, np.full((8, 12, 3), 99, np.uint8), {"lip_sync": 0.5})
    log.close()
    # files are read in the order of their names, which begin with the second of the start
    (events,) = (tmp_path / "tensorboard" / "keyframe_unet").iterdir()
    events.rename(events.with_name("events.out.tfevents.0000000001.first"))
    # a run that was killed after update 150 was saved is resumed
    log = TrainingLog(tmp_path, "keyframe_unet", 150)
    log.write(200, 1.0, {"loss": 0.125, "mse": 0.5})
    log.sample(200, np.full((8, 12, 3), 99, np.uint8), {"lip_sync": 0.5})
    log.close()
    read = loader.EventAccumulator(str(events.parent))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(100, 0.75), (200, 0.125)]
    assert [(e.step, e.value) for e in read.Scalars("held out/lip_sync")] == [(200, 0.5)]
    (image,) = read.Images("held out")
    assert (image.step, image.width, image.height) == (200, 12, 8)
    assert image.encoded_image_string.startswith(b"\x89PNG")
