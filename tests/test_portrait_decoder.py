"""The portrait decoder: what it moves, what it paints, and that it learns both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keyface_cli.avatars.portrait_pairs import write_pairs
from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.config import MOTION
from keyface_cli.errors import ConfigError
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.portrait_decoder import MASK_START, PortraitDecoder, View, warp
from keyface_cli.models.tones import bound_tones
from keyface_cli.presets import PRESETS
from keyface_cli.training.loop import Trainer
from keyface_cli.training.options import TrainOptions
from keyface_cli.training.portrait_decoder import (
    CRITIC_SHIFT,
    PortraitDecoderTraining,
    cut_mouth,
    face_weights,
)

SMALL = (16, 16, 24)


@pytest.fixture
def decoder() -> PortraitDecoder:
    torch.manual_seed(0)
    return PortraitDecoder(SMALL).eval()


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(count: int, seed: int = 0) -> Tensor:
    coarse = pictures(count, seed)[..., ::8, ::8]
    return nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(-1, 1)


def test_before_training_the_portrait_stays(decoder: PortraitDecoder) -> None:
    portrait, frames = pictures(1), pictures(3, 1)
    prepared = decoder.prepare(portrait, portrait)
    with torch.inference_mode():
        made = decoder(frames, prepared, torch.zeros(3, len(MOTION)))
    painted = torch.sigmoid(torch.tensor(MASK_START))
    expected = torch.lerp(portrait, bound_tones(frames, prepared.tones), painted)
    expected = expected.minimum(portrait.maximum(prepared.ceiling))
    assert torch.allclose(made, expected, atol=1e-5)
    assert made.dtype == torch.float32


def test_a_view_has_the_pixels_of_its_own_picture(decoder: PortraitDecoder) -> None:
    portrait, large = pictures(1), torch.rand(1, 3, 160, 160) * 2 - 1
    prepared = decoder.prepare(portrait, portrait)._replace(view=View(large, (0.0, 0.0, 1.0)))
    with torch.inference_mode():
        made = decoder(portrait, prepared, torch.zeros(1, len(MOTION)))
    painted = torch.sigmoid(torch.tensor(MASK_START))
    # what was painted is the portrait itself, enlarged
    new = bound_tones(portrait, prepared.tones)
    enlarged = nn.functional.interpolate(new, size=160, mode="bilinear")
    ceiling = nn.functional.interpolate(prepared.ceiling, size=160, mode="bilinear")
    expected = torch.lerp(large, enlarged, painted).minimum(large.maximum(ceiling))
    assert torch.allclose(made, expected, atol=1e-4)


def test_a_view_shows_its_place(decoder: PortraitDecoder) -> None:
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.05)
    portrait, motion = smooth(1), torch.randn(2, len(MOTION))
    shown = nn.functional.interpolate(portrait[..., 8:40, 16:48], size=64, mode="bilinear")
    view = View(shown, (16 / 64, 8 / 64, 32 / 64))
    prepared = decoder.prepare(portrait, portrait)
    frames = smooth(2, 1)
    with torch.inference_mode():
        whole = decoder(frames, prepared, motion)
        part = decoder(frames, prepared._replace(view=view), motion)
        expected = nn.functional.interpolate(whole[..., 8:40, 16:48], size=64, mode="bilinear")
    error = (part - expected)[..., 8:-8, 8:-8].square().mean()
    assert error < 0.1 * (whole - expected).square().mean()


def test_warp_fetches_from_where_the_flow_says() -> None:
    shown = pictures(2)
    flow = torch.zeros(2, 2, 64, 64)
    assert torch.allclose(warp(shown, flow), shown, atol=1e-6)
    flow[:, 0], flow[:, 1] = 2 * 3 / 64, -2 * 5 / 64  # from 3 pixels to the right, 5 above
    moved = warp(shown, flow)
    assert torch.allclose(moved[..., 5:, :-3], shown[..., :-5, 3:], atol=1e-5)


def test_warp_in_bfloat16_is_rounded_once() -> None:
    shown = pictures(1).bfloat16()
    flow = 0.1 * torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    moved = warp(shown, flow)
    assert torch.equal(moved, warp(shown.float(), flow).bfloat16())


def test_one_portrait_serves_many_frames_and_each_frame_is_its_own(
    decoder: PortraitDecoder,
) -> None:
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.05)
    frames, motion = pictures(4, 1), torch.randn(4, len(MOTION))
    with torch.inference_mode():
        portrait = decoder.prepare(pictures(1), pictures(1, 2))
        together = decoder(frames, portrait, motion)
        alone = [decoder(frames[i : i + 1], portrait, motion[i : i + 1]) for i in range(4)]
        still = decoder(frames, portrait, torch.zeros_like(motion))
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together, still, atol=1e-3)


def test_faces_count_more() -> None:
    weight = face_weights(64)[0, 0]
    assert weight.mean() == pytest.approx(1)
    assert weight[46, 32] == weight[24, 32] > weight[2, 2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    write_pairs(data / "pairs-000", 3, 1, PRESETS["tiny"].resolution)
    return data


@pytest.mark.slow
def test_training_learns_to_move_and_to_paint(pairs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    codec = LatentCodec(build("vae", config), config.latent_scale, config.vae_patch_size)  # type: ignore[arg-type]
    codec.requires_grad_(False)
    options = TrainOptions(
        updates=100, batch_size=4, warmup=4, learning_rate=3e-3, precision="float32",
        save_every=1000, log_every=1, device="cpu", draw_threads=0,
    )  # fmt: skip
    training = PortraitDecoderTraining(codec, pairs, options)
    decoder: PortraitDecoder = PortraitDecoder(SMALL)
    seen: list[dict[str, float]] = []
    trainer = Trainer(
        "portrait_decoder",
        decoder,
        tmp_path,
        options,
        muon_rate=0.005,
        report=lambda update, last, values: seen.append(dict(values)),
    )
    trainer.fit(training.draw, training.losses, lambda average, update: None)
    first, last = (np.mean([v["pixels"] for v in part]) for part in (seen[:10], seen[-20:]))
    assert last < 0.85 * first
    assert "critic" not in seen[0]
    assert "critic" in seen[-1]
    critic = next(training.critic.parameters())
    assert critic.grad is not None  # it learns beside


def test_pairs_are_encoded_once_and_new_ones_join(pairs: Path, tmp_path: Path) -> None:
    config = PRESETS["tiny"]
    codec = LatentCodec(build("vae", config), config.latent_scale, config.vae_patch_size)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no pairs of pictures in"):
        PortraitDecoderTraining(codec, tmp_path, TrainOptions())
    training = PortraitDecoderTraining(codec, pairs, TrainOptions(batch_size=2))
    stored = (pairs / "pairs-000" / "latents.npy").stat().st_mtime_ns
    batch = training.draw(torch.Generator().manual_seed(0))
    assert batch.portraits.shape == batch.targets.shape == batch.decoded.shape == (2, 3, 64, 64)
    assert batch.own.shape == batch.faces.shape == (2, 4, 8, 8)
    assert batch.motions.shape == (2, len(MOTION))
    write_pairs(pairs / "pairs-001", 1, 2, config.resolution)
    training.refresh()
    assert (pairs / "pairs-001" / "latents.npy").is_file()
    assert (pairs / "pairs-000" / "latents.npy").stat().st_mtime_ns == stored


@pytest.mark.parametrize("size", [64, 256])
def test_the_critics_square_stays_in_the_picture(size: int) -> None:
    rows = torch.arange(float(size)).view(1, 1, size, 1).expand(1, 3, size, size)
    middle = cut_mouth(rows, 0, 0)
    for shift in (-CRITIC_SHIFT, CRITIC_SHIFT):
        moved = cut_mouth(rows, shift, shift)
        assert moved.shape == middle.shape
        assert torch.equal(moved, middle + shift * size / 256)
