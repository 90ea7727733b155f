"""The measurement of how a face follows a curve: with faces that do, and with some that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.scene import Scene
from keyface_cli.avatars.voices import Phone, Voice
from keyface_cli.emotion import NAMED
from keyface_cli.evaluation.avatars import moods, reader

FRAMES = 60


class Actor:
    """A reader of frames that were never drawn: it knows the pose that is being acted."""

    def __init__(self, spoil: float = 0.0) -> None:
        self.pose = torch.zeros(FRAMES, len(rig.CONTROLS))
        self.spoil = spoil

    def read(self, frames: Tensor, portrait: Tensor) -> Tensor:
        columns = [self.pose[:, rig.INDEX[name]] for name in reader.CONTROLS]
        noise = torch.randn(FRAMES, len(columns), generator=torch.Generator().manual_seed(1))
        return torch.stack(columns, 1) * (1 - self.spoil) + self.spoil * noise


@pytest.fixture
def scene() -> Scene:
    phones = [
        Phone(name, 0.3 * n, 0.3 * (n + 1))
        for n, name in enumerate(["aa", "m", "iy", "p", "aa", "s", "uw", "b"])
    ]
    return Scene(
        waveform=torch.randn(FRAMES * 640, generator=torch.Generator().manual_seed(0)) * 0.1,
        phones=phones,
        emotion=torch.zeros(FRAMES, 2),
        rig=torch.tensor([rig.REST]).repeat(FRAMES, 1),
        text="a sentence",
        voice=Voice("flite", "awb", held_out=True),
        acts=[],
    )


def run(
    monkeypatch: pytest.MonkeyPatch, scene: Scene, actor: Actor
) -> tuple[list[moods.HeadResult], list[Any]]:
    def act(pipeline: Any, portrait: Any, acted: Scene, options: Any) -> np.ndarray:
        actor.pose = acted.rig.float()
        return np.zeros((FRAMES, 8, 8, 3), np.uint8)

    kept: list[Any] = []
    monkeypatch.setattr(moods, "animate", act)
    monkeypatch.setattr(moods.Material, "scene", lambda self, index: scene)
    pipeline: Any = type("Pipeline", (), {"config": type("Config", (), {"resolution": 16})})
    material = moods.Material(2, FRAMES / 25)
    results = moods.evaluate(
        pipeline,
        actor,
        material,
        None,
        lambda *given: kept.append(given),  # type: ignore[arg-type]
    )
    return list(results), kept


def test_faces_that_follow_are_found_to(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    results, kept = run(monkeypatch, scene, Actor())
    assert [result.index for result in results] == [0, 1]
    named = ["neutral", "happy", "calm", "sad", "angry"]
    assert [mood for _, mood, _ in kept[:6]] == [*named, "sad to happy"]
    for result in results:
        assert result.valence > 0.95
        assert result.arousal > 0.7
        assert all(value > 0.99 for value in result.lip_sync.values())
    summary = moods.summarise(results)
    assert summary["valence"] == results[0].valence
    assert abs(summary["lip_sync_loss"]) < 0.01


def test_faces_that_do_not_are_found_out(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    results, _ = run(monkeypatch, scene, Actor(spoil=1.0))
    assert abs(moods.summarise(results)["valence"]) < 0.3
    assert abs(moods.summarise(results)["arousal"]) < 0.3


def test_lips_that_a_mood_spoils_are_a_loss() -> None:
    lips = {"neutral": 0.9, "happy": 0.95, "sad": 0.7}
    results = [moods.HeadResult(0, "v", "t", 0.8, 0.7, lips)]
    assert moods.summarise(results)["lip_sync_loss"] == pytest.approx(0.2)


def test_curves_are_the_named_moods_and_a_sweep() -> None:
    found = moods.curves(2.0)
    np.testing.assert_allclose(found["angry"].sample(3), [NAMED["angry"]] * 3, rtol=1e-6)
    sweep = found["sad to happy"].sample(51)
    np.testing.assert_allclose(
        sweep[[0, 25, 50]], [NAMED["sad"], (0, 0.2), NAMED["happy"]], atol=1e-6
    )


def test_sheet_has_a_row_a_mood() -> None:
    clips = {name: np.full((9, 4, 4, 3), n, np.uint8) for n, name in enumerate("abc")}
    laid = moods.sheet(clips, 6)
    assert laid.shape == (12, 24, 3)
    assert laid[::4, 0, 0].tolist() == [0, 1, 2]
