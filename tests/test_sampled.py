"""Latents as the UNets leave them, beside the true frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keyface_cli.avatars.shards import RUN_FRAMES, SCENE_FRAMES
from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.config import NUM_FRAMES, ModelConfig
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.unet import VideoUNet
from keyface_cli.presets import PRESETS
from keyface_cli.stages.interpolation import InterpolationStage
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.training.clips import SAMPLED_PLACES, ClipSource
from keyface_cli.training.diffusion import UNetTraining
from keyface_cli.training.options import DiffusionOptions, TrainOptions
from keyface_cli.training.sampled import (
    FILE,
    interpolation_stage,
    keyframe_stage,
    sample_keyframes,
    sample_shard,
)

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


@pytest.mark.parametrize("stage_of", [keyframe_stage, interpolation_stage])
def test_both_stages_take_the_noise_levels_of_the_model(
    stage_of: Callable[[ModelConfig, VideoUNet], KeyframeStage | InterpolationStage],
) -> None:
    sampling = dataclasses.replace(
        UNGUIDED, schedule="karras", steps=4, sigma_min=0.5, guidance_interval=(1.0, 10.0)
    )
    config = dataclasses.replace(CONFIG, sampling=sampling)
    stage = stage_of(config, VideoUNet(**dataclasses.asdict(CONFIG.unet("keyframes"))))
    assert stage.sigmas[-2:].tolist() == pytest.approx([0.5, 0.0])
    assert stage.guidance_interval == (1.0, 10.0)


def test_runs_lie_between_sampled_keyframes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shard, starts = tmp_path / "shard", [3, 40]
    make_shard(shard, starts)
    runs = rng.normal(size=(2, 2, RUN_FRAMES, 4, 8, 8)).astype(np.float16)
    np.save(shard / "latents_runs.npy", runs)
    network = VideoUNet(**dataclasses.asdict(CONFIG.unet("keyframes"))).eval()
    network.zero_output_layers()  # it answers its anchor, the portrait
    sample_keyframes(shard, CONFIG, network, pairs=3)
    portraits = np.load(shard / "latents_portraits.npy")[:, :, 0]
    places = np.load(shard / SAMPLED_PLACES)
    assert {0, 1} == set(places[..., 1].flatten().tolist())  # as is and mirrored

    encoders = CONFIG.interpolation_encoders
    source = ClipSource(tmp_path, "runs", encoders, sampled_keyframes=1.0)
    clips = source.batch(16, torch.Generator().manual_seed(0))
    assert clips.keyframes is not None
    for latents, keyframes in zip(clips.latents.numpy(), clips.keyframes.numpy(), strict=True):
        # the run that is asked for is a true one, at a place that was drawn for its keyframes
        ((scene, mirrored, start),) = [
            (scene, mirrored, start)
            for scene, pairs in enumerate(places.tolist())
            for start, mirrored in {tuple(pair) for pair in pairs}
            if np.array_equal(latents, runs[scene, mirrored, start : start + NUM_FRAMES])
        ]
        assert 0 <= start <= RUN_FRAMES - NUM_FRAMES
        error = np.abs(keyframes.astype(np.float32) - portraits[scene, mirrored]).max()
        assert error < 0.02 * np.abs(portraits).max()

    source = ClipSource(tmp_path, "runs", encoders, sampled_keyframes=0.0)
    assert source.batch(4, torch.Generator().manual_seed(0)).keyframes is None


def test_interpolation_is_given_the_sampled_keyframes(tmp_path: Path) -> None:
    make_shard(tmp_path / "shard", [3])
    runs = np.zeros((1, 2, RUN_FRAMES, 4, 8, 8), np.float16)
    np.save(tmp_path / "shard" / "latents_runs.npy", runs)
    network = VideoUNet(**dataclasses.asdict(CONFIG.unet("interpolation")))
    network.zero_output_layers()
    first = VideoUNet(**dataclasses.asdict(CONFIG.unet("keyframes"))).eval()
    first.zero_output_layers()
    sample_keyframes(tmp_path / "shard", CONFIG, first)
    source = ClipSource(tmp_path, "runs", CONFIG.interpolation_encoders, sampled_keyframes=1.0)
    training = UNetTraining(
        "interpolation", CONFIG, source, DiffusionOptions(), TrainOptions(batch_size=2)
    )
    generator = torch.Generator().manual_seed(0)
    clips = training.draw(generator)
    clips = clips._replace(latents=clips.latents.float(), features=clips.features.float())
    noise = torch.randn(clips.latents.shape, generator=generator)
    denoised, anchor = training.denoised(network, clips, torch.ones(2), noise, generator)
    assert clips.keyframes is not None
    assert anchor is not None
    assert torch.equal(anchor[:, 0], clips.keyframes[:, 0].float())
    assert torch.equal(anchor[:, -1], clips.keyframes[:, 1].float())
    # scored by the true frames, which are zero here
    score = training.score(denoised, clips, torch.ones(2))
    assert score["loss"].item() > 0
