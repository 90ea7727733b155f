"""What the UNets make of training scenes, for the networks after them to put right.

Sampling leaves latents that no picture has: where a network cannot know, it shows the mean. A
decoder that has seen them beside the true frames learns what they stand for, and an interpolation
network that has seen keyframes as stage one leaves them can learn not to lean on them alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES, ModelConfig
from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.files import save_array
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.unet import VideoUNet
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.training.clips import SAMPLED_KEYFRAMES, SAMPLED_PLACES

FILE = "latents_sampled.npy"


@torch.inference_mode()
def sample_shard(
    folder: Path,
    config: ModelConfig,
    keyframe_unet: VideoUNet,
    interpolation_unet: VideoUNet,
    codec: LatentCodec,
) -> None:
    """Sample the runs of a shard that `clips.encode_shard` has finished, as animating does.

    Writes `latents_sampled.npy` float16 (n, 27, C, h, w), the frames of `runs.npy` as both stages
    make them of the head at rest, and `decoded_portraits.npy` uint8 (n, H, W, 3), the heads at
    rest through the VAE and back.

    Args:
        folder: of the shard.
        config: of the model; its sampling defaults count, but there is no guide network.
        keyframe_unet: stage one.
        interpolation_unet: stage two.
        codec: of the latents.
    """
    first, scenes = keyframe_stage(config, keyframe_unet), _Scenes(folder, config)
    second = interpolation_stage(config, interpolation_unet)
    generator = torch.Generator().manual_seed(0)
    sampled = []
    for i, start in enumerate(scenes.starts.tolist()):
        keyframes = _keyframes(first, scenes, i, start, False, generator)
        tokens = scenes.audio(i, config.interpolation_encoders).to(interpolation_unet.device)
        frames = _frames_between(second, keyframes, tokens, start, generator)
        sampled.append(frames.half().cpu().numpy())
    portraits = scenes.portraits[:, 0, 0]
    decoded = [_decoded(codec, latent) for latent in portraits]
    save_array(folder / "decoded_portraits.npy", np.stack(decoded))
    save_array(folder / FILE, np.stack(sampled))  # the last: it tells that the shard is finished


@torch.inference_mode()
def sample_keyframes(
    folder: Path, config: ModelConfig, keyframe_unet: VideoUNet, *, pairs: int = 2
) -> None:
    """Sample pairs of keyframes of a shard, for the option `sampled_keyframes` of interpolation.

    Writes the files that `clips.SAMPLED_KEYFRAMES` and `clips.SAMPLED_PLACES` describe. Where a
    pair lies in its scene, and whether the head is mirrored, is drawn.

    Args:
        folder: of a shard that `clips.encode_shard` has finished.
        config: of the model; its sampling defaults count.
        keyframe_unet: stage one.
        pairs: how many of each scene.
    """
    stage, scenes = keyframe_stage(config, keyframe_unet), _Scenes(folder, config)
    generator = torch.Generator().manual_seed(0)
    places = torch.stack(
        [
            torch.randint(KEYFRAME_STEP + 1, (len(scenes.starts), pairs), generator=generator),
            torch.randint(2, (len(scenes.starts), pairs), generator=generator),
        ],
        -1,
    ).numpy()
    sampled = []
    for i, start in enumerate(scenes.starts.tolist()):
        keyframes = [
            _keyframes(stage, scenes, i, start + first, bool(mirrored), generator)[:2]
            for first, mirrored in places[i].tolist()
        ]
        sampled.append(torch.stack(keyframes).half().cpu().numpy())
    save_array(folder / SAMPLED_PLACES, places)
    save_array(folder / SAMPLED_KEYFRAMES, np.stack(sampled))  # the last: it tells of both


class _Scenes:
    """What a shard says of its scenes."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.keyframe_encoders = config.keyframe_encoders
        self.portraits = np.load(folder / "latents_portraits.npy", mmap_mode="r")
        self.starts = np.load(folder / "run_starts.npy")
        self.emotions = np.load(folder / "emotions.npy")
        names = dict.fromkeys((*config.keyframe_encoders, *config.interpolation_encoders))
        self._features = {
            name: np.load(folder / f"features_{name}.npy", mmap_mode="r") for name in names
        }

    def audio(self, scene: int, encoders: tuple[str, ...]) -> Tensor:
        """Return the features of a scene's sound, (N, 2, A)."""
        rows = [self._features[name][scene] for name in encoders]
        return torch.from_numpy(np.concatenate(rows, -1)).float()


def keyframe_stage(config: ModelConfig, network: VideoUNet) -> KeyframeStage:
    """Return stage one with the sampling defaults of a model."""
    sampling = config.sampling
    return KeyframeStage(
        network,
        config.latent_scale,
        config.parameterization,
        sigmas_for(sampling.schedule, sampling.steps, sampling.sigma_min),
        sampling.audio_guidance,
        sampling.identity_guidance,
        sampling.emotion_guidance,
        sampling.guidance_interval,
    )


def interpolation_stage(config: ModelConfig, network: VideoUNet) -> InterpolationStage:
    """Return stage two with the sampling defaults of a model, and no guide network."""
    sampling, scale, kind = config.sampling, config.latent_scale, config.parameterization
    sigmas = sigmas_for(sampling.schedule, sampling.steps, sampling.sigma_min)
    autoguidance = sampling.autoguidance if kind == "anchored" else 1.0
    return InterpolationStage(
        network, None, scale, kind, sigmas, autoguidance, sampling.guidance_interval
    )


def _decoded(codec: LatentCodec, latent: np.ndarray) -> np.ndarray:
    """A latent (C, h, w) as a picture, uint8 (H, W, 3)."""
    given = torch.from_numpy(np.array(latent))[None].float().to(codec.vae.device)
    picture = codec.decode(given)[0].cpu().clamp(-1, 1)
    return ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def _frames_between(
    stage: InterpolationStage,
    keyframes: Tensor,
    features: Tensor,
    start: int,
    generator: torch.Generator,
) -> Tensor:
    """Sample both segments between three keyframes, and join them: (27, C, h, w)."""
    pairs = torch.stack([keyframes[:2], keyframes[1:]])
    frames = start + torch.arange(NUM_FRAMES) + KEYFRAME_STEP * torch.arange(2)[:, None]
    context = stage.network.project_audio(features[frames])
    noise = torch.randn(pairs.shape[0], NUM_FRAMES, *pairs.shape[2:], generator=generator)
    segments = stage.sample(pairs, context, noise.to(pairs.device))
    return torch.cat(list(merge_segments(segments)))


def _keyframes(
    stage: KeyframeStage,
    scenes: _Scenes,
    scene: int,
    start: int,
    mirrored: bool,
    generator: torch.Generator,
) -> Tensor:
    """Sample a clip that has three keyframes from a frame on in its midst: (3, C, h, w)."""
    device = stage.network.device
    features = scenes.audio(scene, scenes.keyframe_encoders).to(device)
    identity = torch.from_numpy(np.array(scenes.portraits[scene, int(mirrored)])).float().to(device)
    before = min(start // KEYFRAME_STEP, NUM_FRAMES - 4)
    frames = start + KEYFRAME_STEP * (torch.arange(NUM_FRAMES - 1) - before)
    frames = torch.cat([torch.zeros(1, dtype=torch.long), frames.clamp(max=len(features) - 1)])
    context = stage.network.project_audio(features[frames][None])
    noise = torch.randn(1, NUM_FRAMES, *identity.shape[1:], generator=generator).to(device)
    emotion = torch.from_numpy(scenes.emotions[scene])[frames][None].float()
    return stage.sample(identity, context, emotion, noise)[0][1 + before : 4 + before]
