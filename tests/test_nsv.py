"""The classifier of non-speech vocalisations: its data, its training, and its use as a metric."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import moving, write_video

from keyface_cli.errors import KeyFaceError, WeightsError
from keyface_cli.evaluation.metrics.vocalisation import VocalisationClassifier
from keyface_cli.models.classifier_input import IMAGENET, pick_frames, prepare, read_normalisation
from keyface_cli.training.nsv import NsvOptions, find_clips, split, train_nsv

Main = Callable[..., tuple[int, str, str]]
SIZES = (
    *(("image_size", 32), ("num_frames", 4), ("hidden_size", 32), ("num_hidden_layers", 1)),
    *(("num_attention_heads", 2), ("intermediate_size", 32)),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark sighs and bright laughs, five clips of each."""
    folder = tmp_path_factory.mktemp("data")
    for label, level in (("Laugh", 1.0), ("Sigh", 0.3)):
        for i in range(5):
            frames = (moving(6, seed=i, side=40) * level).astype(np.uint8)
            write_video(folder / label / f"{i}.mp4", frames)
    return folder


@pytest.mark.slow
def test_a_classifier_is_trained_and_used(data: Path, tmp_path: Path) -> None:
    options = NsvOptions(updates=60, batch_size=4, learning_rate=3e-3, sizes=SIZES)
    lines: list[str] = []
    facts = train_nsv(data, tmp_path / "nsv", options, report=lines.append)
    assert lines[0] == "8 clips to train on, 2 held out, 2 labels"
    assert facts["accuracy"] == 1
    assert facts["confusion"] == [[1, 0], [0, 1]]
    assert json.loads((tmp_path / "nsv" / "nsv.json").read_text()) == facts
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nsv"]
    classifier = VocalisationClassifier(tmp_path / "nsv")
    assert (classifier.labels, classifier.frames, classifier.side) == (["Laugh", "Sigh"], 4, 32)
    bright = moving(4, seed=9, side=50)
    assert classifier.classify(bright) == "Laugh"
    assert classifier.classify((bright * 0.3).astype(np.uint8)) == "Sigh"
    with pytest.raises(KeyFaceError, match="exists already"):
        train_nsv(data, tmp_path / "nsv", options)
    # fine-tuning one keeps its network
    few = NsvOptions(updates=1, batch_size=1, learning_rate=1e-6)
    again = train_nsv(data, tmp_path / "more", few, start=tmp_path / "nsv")
    assert again["accuracy"] == 1
    assert again["started_from"] == "nsv"


def test_the_split_takes_its_share_of_each_class() -> None:
    targets = [0] * 20 + [1] * 10 + [2] * 2
    train, held = split(targets, 0.2, seed=1)
    assert sorted(train + held) == list(range(32))
    assert [targets[i] for i in held] == [0] * 4 + [1] * 2 + [2]
    assert split(targets, 0.2, seed=1) == (train, held)
    assert split(targets, 0.2, seed=2)[1] != held


def test_frames_are_even_and_pixels_normalised() -> None:
    assert pick_frames(100, 4) == [0, 33, 66, 99]
    assert pick_frames(2, 4) == [0, 0, 1, 1]
    white = torch.full((2, 3, 20, 60), 255, dtype=torch.uint8)
    white[:, :, :, 40:] = 0  # beside the middle
    x = prepare(white, 10, *IMAGENET)
    assert x.shape == (1, 2, 3, 10, 10)
    assert x[0, 0, :, 5, 3].numpy() == pytest.approx(
        [(1 - m) / s for m, s in zip(*IMAGENET, strict=True)], abs=1e-4
    )


def test_bad_data_and_bad_folders_are_one_line(data: Path, tmp_path: Path, main: Main) -> None:
    code, _, err = main("train", "nsv", "--data", tmp_path / "none", "-o", tmp_path / "x")
    assert (code, "none: no such folder" in err) == (1, True)
    (tmp_path / "one" / "Laugh").mkdir(parents=True)
    (tmp_path / "one" / "Laugh" / "a.mp4").touch()
    with pytest.raises(KeyFaceError, match="holds one clip"):
        find_clips(tmp_path / "one")
    (tmp_path / "one" / "Laugh" / "b.mp4").touch()
    with pytest.raises(KeyFaceError, match="holds 1 labels"):
        find_clips(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no video classifier that transformers can read"):
        VocalisationClassifier(tmp_path / "empty")
    (tmp_path / "empty" / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(WeightsError, match="need three values"):
        read_normalisation(tmp_path / "empty")
