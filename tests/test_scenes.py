"""Held-out avatars as files: what `animate` and `evaluate videos` then take."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from keyface_cli.avatars import rig
from keyface_cli.avatars.scene import Scene
from keyface_cli.avatars.voices import Voice
from keyface_cli.emotion import load_emotion
from keyface_cli.evaluation.avatars import scenes
from keyface_cli.media.audio import load_waveform
from keyface_cli.media.frames import probe, read_frames

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """Scenes without a synthesiser: a mouth that opens over one second; and what was asked for."""
    asked: list[tuple[int, dict[str, Any]]] = []

    def scene(seed: int, **options: Any) -> Scene:
        asked.append((seed, options))
        tracks = torch.tensor([rig.REST]).repeat(25, 1)
        tracks[:, rig.INDEX["jaw"]] = torch.linspace(0, 1, 25)
        emotion = torch.linspace(-0.5, 0.5, 50).view(25, 2)
        wave = 0.1 * torch.sin(torch.arange(16_000) / 20)
        return Scene(wave, [], emotion, tracks, "", Voice("flite", "awb", held_out=True), acts=[])

    monkeypatch.setattr(scenes, "random_scene", scene)
    return asked


def test_scenes_are_files_that_fit_each_other(
    main: Main, tmp_path: Path, drawn: list[tuple[int, dict[str, Any]]]
) -> None:
    folder = tmp_path / "scenes"
    command = ("evaluate", "scenes", "-o", folder, "--clips", "2", "--size", "64", "--seconds", "1")
    code, out, err = main(*command)
    assert (code, out) == (0, f"{folder}\n"), err
    assert drawn == [(1000 + i, {"held_out": True, "duration_s": 1.0}) for i in range(2)]
    video = folder / "reference" / "001.mp4"
    assert (probe(video).frames, probe(video).size) == (25, (64, 64))
    assert len(load_waveform(video)) == pytest.approx(16_000, abs=1100)  # AAC pads
    jobs = list(csv.DictReader((folder / "jobs.csv").read_text().splitlines()))
    assert [job["output"] for job in jobs] == ["000.mp4", "001.mp4"]
    assert all((folder / jobs[1][key]).is_file() for key in ("portrait", "audio", "emotion"))
    assert jobs[0]["crop"] == "none"  # results lie where the reference does
    wave = load_waveform(folder / "sounds" / "001.wav")
    assert wave.std() == pytest.approx(0.1 / np.sqrt(2), rel=0.01)
    curve = load_emotion(str(folder / "emotions" / "001.csv")).sample(25)
    assert curve.ravel() == pytest.approx(np.linspace(-0.5, 0.5, 50), abs=1e-4)
    portrait = np.asarray(Image.open(folder / "portraits" / "001.png")).astype(int)
    frames = np.concatenate(list(read_frames(video))).astype(int)
    assert np.abs(frames[0] - portrait).mean() < 6  # both at rest
    assert np.abs(frames[24] - frames[0])[40:60, 20:44].mean() > 6  # the mouth has opened
    other = np.asarray(Image.open(folder / "portraits" / "000.png")).astype(int)
    assert np.abs(other - portrait).mean() > 10  # another head


def test_what_is_there_is_not_made_again(
    main: Main, tmp_path: Path, drawn: list[tuple[int, dict[str, Any]]]
) -> None:
    command = ("evaluate", "scenes", "-o", tmp_path, "--size", "64", "--seconds", "1")
    assert main(*command, "--clips", "1")[0] == 0
    assert main(*command, "--clips", "2")[0] == 0
    assert [seed for seed, _ in drawn] == [1000, 1001]
    (tmp_path / "file").touch()
    code, _, err = main("evaluate", "scenes", "-o", tmp_path / "file", "--clips", "1")
    assert (code, "cannot be written to" in err) == (1, True)
    assert main("evaluate", "scenes", "-o", tmp_path, "--size", "65")[0] == 2
