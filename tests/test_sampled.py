"""Latents as the UNets leave them, beside the true frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keyface_cli.avatars.shards import RUN_FRAMES, SCENE_FRAMES
from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.config import PRESETS
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.unet import VideoUNet
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.training.sampled import FILE, sample_shard

TINY = PRESETS["tiny"]
UNGUIDED = dataclasses.replace(
    TINY.sampling, audio_guidance=1.0, identity_guidance=1.0, emotion_guidance=1.0
)
CONFIG = dataclasses.replace(TINY, parameterization="anchored", sampling=UNGUIDED)


def make_shard(folder: Path, starts: list[int]) -> None:
    rng = np.random.default_rng(0)
    n = len(starts)
    folder.mkdir()
    latents = rng.normal(size=(n, 2, 1, 4, 8, 8)).astype(np.float16)
    np.save(folder / "latents_portraits.npy", latents)
    np.save(folder / "run_starts.npy", np.array(starts))
    np.save(folder / "emotions.npy", rng.uniform(-1, 1, (n, SCENE_FRAMES, 2)).astype(np.float16))
    for name in ("wavlm", "wav2vec2", "beats"):
        features = rng.normal(size=(n, SCENE_FRAMES, 2, 32)).astype(np.float16)
        np.save(folder / f"features_{name}.npy", features)


def test_runs_are_sampled_wherever_they_begin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    keyframes, interpolation = (
        VideoUNet(**dataclasses.asdict(CONFIG.unet(stage))).eval()
        for stage in ("keyframes", "interpolation")
    )
    codec = LatentCodec(build("vae", CONFIG), CONFIG.latent_scale, CONFIG.vae_patch_size)  # type: ignore[arg-type]
    starts = [0, 60, SCENE_FRAMES - RUN_FRAMES]
    make_shard(tmp_path / "shard", starts)
    sample_shard(tmp_path / "shard", CONFIG, keyframes, interpolation, codec)
    sampled = np.load(tmp_path / "shard" / FILE)
    assert sampled.shape == (3, RUN_FRAMES, 4, 8, 8)
    assert np.isfinite(sampled).all()
    decoded = np.load(tmp_path / "shard" / "decoded_portraits.npy")
    assert decoded.shape == (3, 64, 64, 3)
    # an untrained network with zeroed output answers the anchor: the portrait, in every frame
    for network in (keyframes, interpolation):
        network.zero_output_layers()
    sample_shard(tmp_path / "shard", CONFIG, keyframes, interpolation, codec)
    sampled = np.load(tmp_path / "shard" / FILE).astype(np.float32)
    portraits = np.load(tmp_path / "shard" / "latents_portraits.npy")[:, 0].astype(np.float32)
    assert np.abs(sampled - portraits).max() < 0.02 * np.abs(portraits).max()


def test_keyframes_are_guided_as_in_animating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = dataclasses.replace(
        CONFIG.sampling, audio_guidance=1.4, emotion_guidance=1.5, guidance_interval=(1.0, 50.0)
    )
    config = dataclasses.replace(CONFIG, sampling=sampling)
    unets = (
        VideoUNet(**dataclasses.asdict(CONFIG.unet(stage)))
        for stage in ("keyframes", "interpolation")
    )
    seen: list[KeyframeStage] = []
    sample = KeyframeStage.sample

    def watch(stage: KeyframeStage, *given: Any) -> torch.Tensor:
        seen.append(stage)
        return sample(stage, *given)

    monkeypatch.setattr(KeyframeStage, "sample", watch)
    codec = LatentCodec(build("vae", CONFIG), CONFIG.latent_scale, CONFIG.vae_patch_size)  # type: ignore[arg-type]
    make_shard(tmp_path / "shard", [0])
    sample_shard(tmp_path / "shard", config, *unets, codec)
    (stage,) = seen
    assert (stage.audio_guidance, stage.emotion_guidance) == (1.4, 1.5)
    assert stage.guidance_interval == (1.0, 50.0)
