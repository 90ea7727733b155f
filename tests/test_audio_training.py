"""Training of the audio encoders: what they are shown, and that nothing of them is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from keyface_cli.avatars import rig
from keyface_cli.avatars.shards import SCENE_FRAMES
from keyface_cli.avatars.voices import PHONES
from keyface_cli.checkpoints.checkpoint import Checkpoint, build
from keyface_cli.config import SAMPLES_PER_FRAME
from keyface_cli.errors import WeightsError
from keyface_cli.presets import PRESETS
from keyface_cli.training.audio import (
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    AudioEncoderTraining,
    AudioTraining,
    train_audio,
)
from keyface_cli.training.options import TrainOptions

TINY = PRESETS["tiny"]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Sound, labels and motion of two scenes, of noise."""
    folder = tmp_path / "data" / "000"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    np.save(folder / "waveforms.npy", draw.integers(-3000, 3000, (2, SCENE_FRAMES * 640), np.int16))
    np.save(folder / "labels.npy", draw.integers(0, len(PHONES), (2, 2 * SCENE_FRAMES), np.uint8))
    np.save(folder / "rigs.npy", draw.random((2, SCENE_FRAMES, 16), np.float32))
    return folder


def test_training_goes_on_from_another_run(tmp_path: Path, shard: Path) -> None:
    options = TrainOptions(updates=2, batch_size=2, warmup=1, precision="float32")
    train_audio("wavlm", TINY, [shard], tmp_path / "first", options)
    still = TrainOptions(
        updates=1, batch_size=2, learning_rate=1e-12, warmup=1, precision="float32"
    )
    train_audio("wavlm", TINY, [shard], tmp_path / "next", still, start_from=tmp_path / "first")
    first, following = (
        Checkpoint.open(tmp_path / folder).load("wavlm").state_dict()
        for folder in ("first", "next")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(following[name], tensor)
    train_audio("wavlm", TINY, [shard], tmp_path / "on", options, start_from=tmp_path / "first")
    trained = Checkpoint.open(tmp_path / "on").load("wavlm").state_dict()
    assert any(not torch.equal(trained[name], tensor) for name, tensor in first.items())
    with pytest.raises(WeightsError, match="no beats yet"):
        train_audio("beats", TINY, [shard], tmp_path / "x", still, start_from=tmp_path / "first")


def test_heads_answer_every_half_frame_and_frame() -> None:
    model = AudioEncoderTraining("wavlm", build("wavlm", TINY), TINY.wavlm["hidden_size"])
    phones, mouth = model(torch.zeros(1, WINDOW_FRAMES * SAMPLES_PER_FRAME))
    assert phones.shape == (1, WINDOW_FRAMES, 2, len(PHONES))
    assert mouth.shape == (1, WINDOW_FRAMES, 7)


def test_sound_labels_and_mouth_are_stretched_together(tmp_path: Path) -> None:
    frames = 175
    ramp = np.arange(frames * 640) / 640  # the sound's level says which frame it is
    np.save(tmp_path / "waveforms.npy", (ramp * 50).astype(np.int16)[None])
    np.save(tmp_path / "labels.npy", (np.arange(2 * frames) // 10).astype(np.uint8)[None])
    rigs = np.repeat((np.arange(frames) / frames)[:, None], len(rig.CONTROLS), 1)
    np.save(tmp_path / "rigs.npy", rigs.astype(np.float16)[None])
    training = AudioTraining([tmp_path], TrainOptions(batch_size=8))
    wave, phones, mouth = training.draw(torch.Generator().manual_seed(0))
    assert wave.shape == (8, WINDOW_SAMPLES)
    paces = set()
    for samples, labels, track in zip(wave, phones, mouth, strict=True):
        at = (track[:, 0] * frames).double()  # where each frame of the window comes from
        paces.add(round(float(at[-2] - at[1]) / (WINDOW_FRAMES - 3), 2))
        middle = samples.view(WINDOW_FRAMES, 640).mean(1)
        level = middle / middle[50] * (at[50] + 0.5)
        torch.testing.assert_close(level[1:-1], (at + 0.5)[1:-1].float(), atol=0.3, rtol=0.01)
        halves = ((at + 0.25) * 2).long().div(10, rounding_mode="floor")
        assert (labels[::2][1:-1] - halves[1:-1]).abs().max() <= 1
        assert (labels[::2][1:-1] == halves[1:-1]).float().mean() > 0.8
    assert min(paces) < 0.95
    assert max(paces) > 1.05
    assert all(1 / 1.16 < pace < 1.16 for pace in paces)
