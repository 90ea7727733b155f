"""Training of the audio encoders: what they are shown, and that nothing of them is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from keyface_cli.checkpoint import Checkpoint, build
from keyface_cli.config import PRESETS, SAMPLES_PER_FRAME
from keyface_cli.errors import WeightsError
from keyface_cli.training.audio import (
    WINDOW_FRAMES,
    AudioEncoderTraining,
    _leave_nothing_out,
    train_audio,
)
from keyface_cli.training.avatars.voices import PHONES
from keyface_cli.training.options import TrainOptions
from keyface_cli.training.scenes import SCENE_FRAMES

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


@pytest.mark.parametrize("kind", [(WavLMConfig, WavLMModel), (Wav2Vec2Config, Wav2Vec2Model)])
def test_small_encoders_train_without_dropout_or_masks(kind: tuple[Any, Any]) -> None:
    torch.manual_seed(0)
    encoder = kind[1](kind[0](**TINY.wavlm))
    wave = torch.randn(2, 16000)

    def heard() -> torch.Tensor:
        return cast(torch.Tensor, encoder(wave).last_hidden_state)

    encoder.train()
    before = heard()
    assert not torch.equal(before, heard())
    _leave_nothing_out(encoder)
    assert torch.equal(heard(), heard())


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
    with pytest.raises(WeightsError, match="no beats yet"):
        train_audio("beats", TINY, [shard], tmp_path / "x", still, start_from=tmp_path / "first")


def test_heads_answer_every_half_frame_and_frame() -> None:
    model = AudioEncoderTraining("wavlm", build("wavlm", TINY), TINY.wavlm["hidden_size"])
    phones, mouth = model(torch.zeros(1, WINDOW_FRAMES * SAMPLES_PER_FRAME))
    assert phones.shape == (1, WINDOW_FRAMES, 2, len(PHONES))
    assert mouth.shape == (1, WINDOW_FRAMES, 7)
