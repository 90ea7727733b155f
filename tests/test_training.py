"""The training loop, the losses and the stages of `keyface train`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from keyface_cli.checkpoint import Checkpoint
from keyface_cli.config import PRESETS
from keyface_cli.errors import WeightsError
from keyface_cli.training import run
from keyface_cli.training.clips import ClipSource
from keyface_cli.training.diffusion import (
    DiffusionOptions,
    latent_loss,
    sample_sigmas,
    train_unet,
)
from keyface_cli.training.loop import Trainer, TrainOptions, rate_share_at
from keyface_cli.training.optim import orthogonalise
from keyface_cli.training.vae import prime, principal_components

TINY = PRESETS["tiny"]
ENCODERS = ("wavlm", "beats")


def quadratic(trainer: Trainer) -> dict[str, Tensor]:
    x = torch.randn(4, 3, generator=trainer.generator)
    return {"loss": (trainer.model(x) - x.sum(1, keepdim=True)).square().mean()}


def linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def test_learning_rate_warms_up_and_falls() -> None:
    options = TrainOptions(updates=1000, warmup=100)
    rates = [rate_share_at(update, options) for update in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, rel=0.01)


def test_training_descends(tmp_path: Path) -> None:
    options = TrainOptions(updates=300, learning_rate=0.05, warmup=1, save_every=1000)
    trainer = Trainer("linear", linear(0), tmp_path, options)
    saved = []
    assert trainer.fit(quadratic, lambda module, update: saved.append((module, update))) == 300
    average, update = saved[-1]
    assert update == 300
    torch.testing.assert_close(average.weight, torch.ones(1, 3), atol=0.05, rtol=0)


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    options = TrainOptions(updates=20, learning_rate=0.01, warmup=5, save_every=4)

    def keep_nothing(module: nn.Module, update: int) -> None:
        pass

    whole = Trainer("x", linear(1), tmp_path / "whole", options)
    whole.fit(quadratic, keep_nothing)
    stopped = Trainer("x", linear(1), tmp_path / "parts", options)

    class Stop(Exception):
        pass

    def stop_at_nine(trainer: Trainer) -> dict[str, Tensor]:
        if trainer.update == 9:  # the last save was at 8
            raise Stop
        return quadratic(trainer)

    with pytest.raises(Stop):
        stopped.fit(stop_at_nine, keep_nothing)
    resumed = Trainer("x", linear(2), tmp_path / "parts", options, resume=True)
    assert resumed.update == 8
    resumed.fit(quadratic, keep_nothing)
    for a, b in ((whole.model, resumed.model), (whole.average, resumed.average)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name])


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
def test_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4


def test_muon_descends_and_resumes(tmp_path: Path) -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    options = TrainOptions(updates=60, learning_rate=0.02, warmup=5, save_every=30)
    losses = []

    def watched(trainer: Trainer) -> dict[str, Tensor]:
        values = quadratic(trainer)
        losses.append(float(values["loss"].detach()))
        return values

    whole = Trainer("m", network(0), tmp_path / "a", options, muon_rate=0.05)
    whole.fit(watched, lambda module, update: None)
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    half = TrainOptions(**{**dataclasses.asdict(options), "minutes": 0.0})
    part = Trainer("m", network(0), tmp_path / "b", half, muon_rate=0.05)
    part.fit(quadratic, lambda module, update: None)  # stops after one update
    resumed = Trainer("m", network(1), tmp_path / "b", options, resume=True, muon_rate=0.05)
    resumed.fit(quadratic, lambda module, update: None)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_resuming_without_a_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no training state"):
        Trainer("x", linear(0), tmp_path, TrainOptions(), resume=True)


def test_resuming_another_network_is_an_error(tmp_path: Path) -> None:
    Trainer("x", linear(0), tmp_path, TrainOptions(updates=1)).fit(quadratic, lambda m, u: None)
    with pytest.raises(WeightsError, match="does not fit"):
        Trainer("x", nn.Linear(5, 1), tmp_path, TrainOptions(), resume=True)


def test_sigmas_follow_the_published_distribution() -> None:
    sigmas = sample_sigmas(20_000, DiffusionOptions(), torch.Generator().manual_seed(0))
    assert float(sigmas.log().mean()) == pytest.approx(1.0, abs=0.03)
    assert float(sigmas.log().std()) == pytest.approx(1.2, abs=0.03)
    wide = DiffusionOptions(wide_sigmas=1.0)
    sigmas = sample_sigmas(20_000, wide, torch.Generator().manual_seed(0))
    assert float(sigmas.min()) == pytest.approx(0.01, rel=0.05)
    assert float(sigmas.max()) == pytest.approx(700, rel=0.05)


def test_latent_loss_weighs_noise_and_the_lower_half() -> None:
    target = torch.zeros(1, 2, 3, 4, 4)
    denoised = torch.ones_like(target)
    sigma = torch.tensor([2.0])
    plain = latent_loss(denoised, target, sigma)
    assert plain.shape == (1, 2)
    torch.testing.assert_close(plain, torch.full((1, 2), 1.25))
    torch.testing.assert_close(
        latent_loss(denoised, target, sigma, lower_half=3.0), torch.full((1, 2), 2.5)
    )
    by_mouth = latent_loss(
        torch.ones(1, 1, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16), sigma, mouth=9
    )
    # 5 rows and 8 columns of 16 count nine times
    torch.testing.assert_close(by_mouth, torch.full((1, 1), 1.25 * (1 + 8 * 5 * 8 / 256)))
    limited = latent_loss(denoised, target, torch.tensor([0.01]), weight_limit=5.0)
    torch.testing.assert_close(limited, torch.full((1, 2), 5.0))


def pictures(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((count, 3, 8, 8))).float()
    smooth = F.interpolate(coarse, size=64, mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_primed_vae_is_the_linear_code() -> None:
    code, bias = principal_components(pictures(20), 8, 16, torch.ones(1, 1, 64, 64))
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(
        in_channels=768,
        out_channels=768,
        block_out_channels=[128],
        down_block_types=["DownEncoderBlock2D"],
        layers_per_block=1,
        latent_channels=8,
    ).eval()
    prime(vae, code, bias)
    x = torch.from_numpy(pictures(4)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = F.conv2d(x, code, bias, stride=16)
    with torch.no_grad():
        encoded = vae.encode(F.pixel_unshuffle(x, 16)).latent_dist
        decoded = F.pixel_shuffle(vae.decode(latents, num_frames=1).sample, 16)
    torch.testing.assert_close(encoded.mean, latents, atol=2e-3, rtol=0)
    assert float(encoded.std.max()) < 0.06
    back = torch.linalg.pinv(code.flatten(1)) @ (latents - bias[:, None, None]).flatten(2)
    linear_picture = F.pixel_shuffle(back.unflatten(2, (4, 4)), 16)
    # the decoder's free channels begin with a little noise
    assert float((decoded - linear_picture).square().mean()) < 1e-4


def test_linear_code_loses_no_more_than_the_faint_components() -> None:
    shown = pictures(20)
    code, bias = principal_components(shown, 8, 16, torch.ones(1, 1, 64, 64))
    x = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = F.unfold(x, 16, stride=16).transpose(1, 2).flatten(0, 1)  # (n, 768)
    matrix = code.flatten(1)
    back = (patches @ matrix.T) @ torch.linalg.pinv(matrix).T
    mean = patches.mean(0)
    back = back + mean - (mean @ matrix.T) @ torch.linalg.pinv(matrix).T
    faint = torch.linalg.svdvals(patches - mean)[8:]
    lost = float((back - patches).square().sum())
    assert lost == pytest.approx(float(faint.square().sum()), rel=1e-3)
    assert torch.allclose(matrix @ mean, -bias, atol=1e-3)


def test_principal_components_have_the_promised_scale() -> None:
    code, bias = principal_components(pictures(30), 6, 16, torch.ones(1, 1, 64, 64))
    x = torch.from_numpy(pictures(30)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = F.conv2d(x, code, bias, stride=16).transpose(0, 1).flatten(1)
    assert float(latents.var(1).mean()) == pytest.approx(1, rel=0.01)
    torch.testing.assert_close(latents.mean(1), torch.zeros(6), atol=1e-3, rtol=0)
    spread = latents.std(1)
    assert (spread[:-1] >= spread[1:] - 1e-4).all()  # the strongest comes first


@pytest.fixture
def encoded_shard(tmp_path: Path) -> Path:
    """A shard of three made-up scenes, encoded, for the tiny model."""
    shard = tmp_path / "data" / "000"
    shard.mkdir(parents=True)
    rng = np.random.default_rng(1)
    size = TINY.latent_size
    frames = {"keyframes": 14, "runs": 27}
    for name, count in frames.items():
        shape = (3, 2, count, TINY.latent_channels, size, size)
        np.save(shard / f"latents_{name}.npy", rng.standard_normal(shape).astype(np.float16))
    np.save(shard / "emotions.npy", rng.uniform(-1, 1, (3, 175, 2)).astype(np.float16))
    np.save(shard / "keyframe_starts.npy", np.array([0, 3, 5]))
    np.save(shard / "run_starts.npy", np.array([0, 100, 148]))
    # the first encoder tells the frame's number, the others tell which they are
    width = TINY.keyframe_unet.audio_dim // 2
    for position, name in enumerate(("wavlm", "wav2vec2", "beats")):
        numbers = np.arange(3 * 175) if position == 0 else np.full(3 * 175, position)
        features = numbers.astype(np.float32).reshape(3, 175, 1, 1)
        np.save(shard / f"features_{name}.npy", np.broadcast_to(features, (3, 175, 2, width)))
    return shard.parent


def test_clips_pair_frames_with_their_own_sound(encoded_shard: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    keyframes = ClipSource(encoded_shard, "keyframes", ENCODERS).batch(16, generator)
    assert keyframes.latents.shape[:3] == (16, 14, TINY.latent_channels)
    times = keyframes.features[:, :, 0, 0]
    assert (times.diff(dim=1) == 13).all()
    assert keyframes.features.shape[2:] == (2, TINY.keyframe_unet.audio_dim)
    assert (keyframes.features[..., -1] == 2).all()  # the encoder asked for last
    runs = ClipSource(encoded_shard, "runs", ENCODERS).batch(64, generator)
    times = runs.features[:, :, 0, 0]
    assert (times.diff(dim=1) == 1).all()
    stored = np.load(encoded_shard / "000" / "latents_runs.npy")
    starts = np.load(encoded_shard / "000" / "run_starts.npy")
    for clip, time in zip(runs.latents, times[:, 0].long().tolist(), strict=True):
        scene, frame = divmod(time, 175)
        offset = frame - starts[scene]
        expected = stored[scene, :, offset : offset + 14]
        assert any(np.array_equal(clip.numpy(), part.astype(np.float32)) for part in expected)


@pytest.mark.parametrize("stage", ["keyframes", "interpolation"])
@pytest.mark.parametrize("parameterization", ["v", "anchored"])
def test_unet_trains_and_the_run_is_a_checkpoint(
    stage: str, parameterization: str, encoded_shard: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, parameterization=parameterization)
    folder = tmp_path / "run"
    options = TrainOptions(updates=4, batch_size=2, save_every=2, log_every=1, bfloat16=False)
    assert train_unet(stage, config, encoded_shard, folder, options, DiffusionOptions()) == 4
    name = "keyframe_unet" if stage == "keyframes" else "interpolation_unet"
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert checkpoint.config == config
    assert run.training_facts(folder)[name]["updates"] == 4
    assert ("interpolation_guide" in checkpoint.components) == (stage == "interpolation")
    if stage == "interpolation":
        assert run.training_facts(folder)["interpolation_guide"]["updates"] == 2
    log = (folder / f"{name}.csv").read_text().splitlines()
    assert len(log) == 5
    assert all(math.isfinite(float(value)) for value in log[-1].split(","))
    run.export(folder, tmp_path / "given", torch.float16, "a test")
    exported = Checkpoint.open(tmp_path / "given")
    assert next(exported.load(name).parameters()).dtype == torch.float16


def test_a_run_refuses_another_configuration(tmp_path: Path, encoded_shard: Path) -> None:
    options = TrainOptions(updates=1, batch_size=1, bfloat16=False)
    train_unet("keyframes", TINY, encoded_shard, tmp_path, options, DiffusionOptions())
    other = dataclasses.replace(TINY, latent_scale=2.0)
    with pytest.raises(WeightsError, match="another configuration"):
        run.load_trained(tmp_path, "keyframe_unet", other)
    with pytest.raises(WeightsError, match="no vae yet"):
        run.load_trained(tmp_path, "vae", TINY)
