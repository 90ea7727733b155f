"""The network that reads faces from latents, and its place among the losses of the UNets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import TINY, make_shard
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.errors import WeightsError
from keyface_cli.training.diffusion import train_unet
from keyface_cli.training.latent_reader import (
    FILE,
    PAIRS_EACH,
    LatentReader,
    ReaderTraining,
    load_reader,
    reading_loss,
    train_reader,
)
from keyface_cli.training.options import DiffusionOptions, TrainOptions

OPTIONS = TrainOptions(
    updates=2, batch_size=2, learning_rate=1e-3, warmup=1, precision="float32", sample_every=0
)
C = TINY.latent_channels


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents whose first channel is the jaw; the mirrored ones have another second channel."""
    folder = make_shard(tmp_path_factory.mktemp("reader") / "data" / "000")
    jaw = np.load(folder / "rigs.npy")[..., rig.INDEX["jaw"]]
    for kind, starts, step in (("keyframes", "keyframe_starts", 13), ("runs", "run_starts", 1)):
        latents = np.load(folder / f"latents_{kind}.npy")
        times = np.load(folder / f"{starts}.npy")[:, None] + step * np.arange(latents.shape[2])
        latents[:, :, :, 0] = np.take_along_axis(jaw, times, 1)[:, None, :, None, None]
        np.save(folder / f"latents_{kind}.npy", latents)
    return folder


@pytest.fixture(scope="module")
def trained(shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert train_reader([shard], run, OPTIONS) == 2
    return run


def test_pairs_come_with_the_difference_of_their_poses(shard: Path) -> None:
    training = ReaderTraining([shard], 20)
    latents, reference, differences = training.draw(torch.Generator().manual_seed(0))
    assert latents.shape == (20 * PAIRS_EACH, C, TINY.latent_size, TINY.latent_size)
    seen = (latents - reference)[:, 0].mean((1, 2))
    torch.testing.assert_close(differences[:, 0], seen, atol=2e-3, rtol=0)
    assert float(differences[:, 0].std()) == pytest.approx(float(training.scale[0]), rel=0.25)


def test_a_reader_learns_what_can_be_seen(shard: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, updates=40, batch_size=8, log_every=40)
    train_reader([shard], tmp_path, options)
    reader = load_reader(tmp_path / FILE, TINY)
    training = ReaderTraining([shard], 20)
    latents, reference, differences = training.draw(torch.Generator().manual_seed(1))
    jaw = reader(latents, reference)[:, 0] * reader.scale[0]
    assert float(torch.corrcoef(torch.stack([jaw, differences[:, 0]]))[0, 1]) > 0.9


def test_the_loss_is_zero_for_the_truth_and_its_gradient_reaches_the_latents(
    trained: Path,
) -> None:
    reader = load_reader(trained / FILE, TINY)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 14, C, TINY.latent_size, TINY.latent_size)
    target = torch.randn(shape, generator=generator)
    sigma = torch.tensor([1.0, 3.0])
    assert float(reading_loss(reader, target.clone(), target, sigma, 10.0)) == 0
    denoised = (target + torch.randn(shape, generator=generator)).requires_grad_()
    loss = reading_loss(reader, denoised, target, sigma, 10.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert denoised.grad is not None
    moved = denoised.grad.flatten(2).norm(dim=2) > 0
    assert moved[:, 1:].all()
    assert not moved[:, 0].any()  # the frame that the others are read against
    # each clip counts by its own noise: (sigma^2 + 1) / sigma^2
    alone = [
        reading_loss(reader, denoised[i : i + 1], target[i : i + 1], sigma[i : i + 1], 10.0)
        for i in (0, 1)
    ]
    torch.testing.assert_close(loss, (alone[0] + alone[1]) / 2)
    quiet = reading_loss(reader, denoised[:1], target[:1], torch.tensor([1e3]), 10.0)
    torch.testing.assert_close(alone[0], 2 * quiet, rtol=1e-4, atol=0)


@pytest.mark.parametrize("stage", ["keyframes", "interpolation"])
def test_unets_train_with_it(
    shard: Path,
    trained: Path,
    tmp_path: Path,
    stage: str,
    tiny_checkpoint: Path,
) -> None:
    losses = DiffusionOptions(reading=0.05, guide_share=0, reading_weights=str(trained / FILE))
    options = dataclasses.replace(OPTIONS, updates=1, log_every=1)
    train_unet(stage, TINY, shard.parent, tmp_path, options, losses, start_from=tiny_checkpoint)
    name = "keyframe_unet" if stage == "keyframes" else "interpolation_unet"
    header, row = (tmp_path / f"{name}.csv").read_text().splitlines()
    values = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    assert values["reading"] > 0
    assert values["loss"] > 0.05 * values["reading"]


def test_a_missing_or_other_reader_is_named(
    main: Callable[..., tuple[int, str, str]],
    shard: Path,
    trained: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
) -> None:
    code, out, err = main(
        *("train", "keyframes", "--data", shard.parent, "-o", tmp_path / "run"),
        *("--from", tiny_checkpoint, "--set", "reading=0.05", "--set", "held_out=0"),
    )
    assert (code, out) == (1, "")
    assert "no reader of" in err
    assert "keyface train reader" in " ".join(err.split())
    wider = dataclasses.replace(TINY, latent_channels=C + 1)
    with pytest.raises(WeightsError, match="no reader of these latents"):
        load_reader(trained / FILE, wider)
    damaged = tmp_path / "reader.safetensors"
    damaged.write_bytes((trained / FILE).read_bytes()[:100])
    with pytest.raises(WeightsError, match="damaged"):
        load_reader(damaged, TINY)


def test_the_command_writes_it_into_the_run(
    main: Callable[..., tuple[int, str, str]], shard: Path, tmp_path: Path
) -> None:
    code, out, err = main(
        *("train", "reader", "--data", shard.parent, "-o", tmp_path),
        *("--updates", 1, "--batch-size", 1),
    )
    assert (code, out) == (0, f"{tmp_path / FILE}\n"), err
    reader = load_reader(tmp_path / FILE, TINY)
    assert isinstance(reader, LatentReader)
    found: Tensor = reader.scale
    assert (found > 0).all()
