"""Recognising vocalisations on faces, and the report that says how often that is right."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import missing_engines
from safetensors.torch import save_file
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.avatars import reader, vocal
from keyface_cli.evaluation.avatars.measure import ClipResult
from keyface_cli.evaluation.avatars.reader import CONTROLS
from keyface_cli.evaluation.avatars.report import Report
from keyface_cli.evaluation.avatars.vocal import CLASSES, SPEECH, Recognition, VocalClassifier

ROWS = [rig.INDEX[name] for name in CONTROLS]


def tracks(kind: str, seed: int) -> Tensor:
    return vocal.scene_of(kind, seed, held_out=True).rig[:, ROWS]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_engines()), reason="a synthesiser is absent")
def test_a_classifier_names_performances_that_it_has_not_seen() -> None:
    few = vocal.train_classifier(each=10, updates=150, seed=3)
    kinds = [kind for kind in CLASSES if kind != SPEECH]
    named = [few.name(tracks(kind, 70_000 + i)) == kind for kind in kinds for i in range(3)]
    assert np.mean(named) > 0.8  # chance is 1 in 9


def test_a_still_face_and_a_loud_one_are_told_apart_by_their_motion_too() -> None:
    network = VocalClassifier().eval()
    still, moving = torch.zeros(1, 75, len(CONTROLS)), torch.rand(1, 75, len(CONTROLS))
    with torch.inference_mode():
        assert network(still).shape == (1, len(CLASSES))
        assert not torch.allclose(network(still), network(moving))


def test_a_file_of_something_else_is_replaced_by_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vocal.safetensors"
    save_file({"weight": torch.zeros(2)}, str(path))
    monkeypatch.setattr(vocal, "train_classifier", VocalClassifier)
    made = vocal.load_or_train(path).state_dict()
    monkeypatch.setattr(vocal, "train_classifier", None)
    again = vocal.load_or_train(path).state_dict()
    assert all(torch.equal(made[name], again[name]) for name in made)


def result(index: int, lip_sync: float) -> ClipResult:
    nan = float("nan")
    return ClipResult(
        index, "flite:awb", "text", lip_sync, 0, 0.5, 0.5, 0.2, 0.01, nan, nan, nan,
        12.0, 0.8, 1.5, 0.9, 25.0, 1.0, 0.5, 1.1, 2.0, {"lip_sync": 0.75, "valence": nan},
    )  # fmt: skip


def test_the_report_says_what_was_found_and_leaves_out_what_was_not(tmp_path: Path) -> None:
    report = Report(tmp_path / "report", {"jaw": 0.9})
    frames = np.zeros((20, 16, 16, 3), np.uint8)
    for index, lip_sync in enumerate((0.9, 0.5, 0.7)):
        report.keep(result(index, lip_sync), frames, frames + 50)
    report.recognitions += [
        Recognition("laugh", "laugh", "laugh", "speech"),
        Recognition("cough", "cough", "sigh", "sigh"),
    ]
    report.write()
    written = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert written["lip_sync"] == pytest.approx({"median": 0.7, "mean": 0.7, "low10": 0.54, "n": 3})
    assert "valence" not in written
    assert written["truth"] == {"lip_sync": {"median": 0.75, "mean": 0.75, "low10": 0.75, "n": 3}}
    assert written["clips"][0]["of_truth"] == {"lip_sync": 0.75, "valence": None}
    assert written["clips"][0]["valence"] is None
    assert written["worst"] == [1, 2, 0]
    assert written["nsv"] == {"truth": 1.0, "generated": 0.5, "without_beats": 0.0}
    assert written["nsv_accuracy"]["mean"] == 0.5
    table = (tmp_path / "report" / "vocal.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert {(row["kind"], row["named"]) for row in rows} == {("laugh", "laugh"), ("cough", "sigh")}
    for name in ("000.png", "sheet.png", "spread.png", "clips.csv", "summary.csv"):
        assert (tmp_path / "report" / name).stat().st_size > 0


def test_what_measuring_trains_is_whole_and_not_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYFACE_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert reader.own_path().is_relative_to(tmp_path / "home")
    monkeypatch.setattr(vocal, "train_classifier", vocal.VocalClassifier)
    path = vocal.default_path()

    def save(tensors: object, name: str, facts: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", save)
        with pytest.raises(WeightsError, match="the disk is full"):
            vocal.load_or_train(path)
    assert list((tmp_path / "home").rglob("*.*")) == []
    made = vocal.load_or_train(path).state_dict()
    monkeypatch.setattr(vocal, "train_classifier", None)
    again = vocal.load_or_train(path).state_dict()
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert list((tmp_path / "here").iterdir()) == []
