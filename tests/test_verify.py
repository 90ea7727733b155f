"""Verifying a model: whether its encoder of pictures belongs to its decoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keyface_cli.checkpoints import verify
from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.commands.weights import _pictures
from keyface_cli.errors import WeightsError
from keyface_cli.models.codec import LatentCodec

BUNDLED = Path(__file__).parents[1] / "weights" / "mini"


@torch.no_grad()
def test_an_encoder_of_another_space_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(BUNDLED)
    pictures = _pictures(checkpoint)
    assert all(picture.shape == (3, 256, 256) for picture in pictures.values())
    monkeypatch.setattr(verify, "LEAST_PSNR_DB", {"mini": 24.0})
    assert len(list(verify.check_codec(checkpoint, pictures))) == len(pictures)

    config, vae = checkpoint.config, checkpoint.load("vae", dtype=torch.float32)
    codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)  # type: ignore[arg-type]
    right = verify.reconstruction_psnr(codec, pictures["avatar.png"])
    shuffled: Any = vae
    order = torch.randperm(config.latent_channels, generator=torch.Generator().manual_seed(0))
    for tensor in (shuffled.quant_conv.weight, shuffled.quant_conv.bias):
        tensor[: len(order)] = tensor[order]
    wrong = verify.reconstruction_psnr(codec, pictures["avatar.png"])
    assert right > 24 > wrong + 8

    monkeypatch.setattr(Checkpoint, "load", lambda *_, **__: shuffled)
    with pytest.raises(WeightsError, match="encoder does not fit its decoder"):
        list(verify.check_codec(checkpoint, pictures))


def test_a_picture_that_comes_back_has_no_error() -> None:
    class Same:
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def decode(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.02

    picture = np.zeros((3, 8, 8), np.float32)
    codec: Any = Same()
    assert verify.reconstruction_psnr(codec, picture) == pytest.approx(40, abs=1e-3)


def test_a_portrait_decoder_is_tried_too(lively_checkpoint: Path) -> None:
    lines = list(verify.verify(Checkpoint.open(lively_checkpoint)))
    assert any(re.match(r"portrait_decoder: [\d,]+ parameters fit", line) for line in lines)
