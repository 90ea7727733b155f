"""What the UNets make of training scenes, for the portrait decoder to put right.

Sampling leaves latents that no picture has: where a network cannot know, it shows the mean. A
decoder that has seen them beside the true frames learns what they stand for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES, ModelConfig
from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.files import replacing
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.unet import VideoUNet
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage

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
        config: of the model; its sampling defaults count, but there is no guide.
        keyframe_unet: stage one.
        interpolation_unet: stage two.
        codec: of the latents.
    """
    device, sampling = keyframe_unet.device, config.sampling
    sigmas = sigmas_for(sampling.schedule, sampling.steps)
    scale, kind = config.latent_scale, config.parameterization
    first = KeyframeStage(
        keyframe_unet,
        scale,
        kind,
        sigmas,
        sampling.audio_guidance,
        sampling.identity_guidance,
        sampling.emotion_guidance,
        sampling.guidance_interval,
    )
    second = InterpolationStage(interpolation_unet, None, scale, kind, sigmas, 1.0)
    portraits = np.load(folder / "latents_portraits.npy", mmap_mode="r")[:, 0, 0]
    starts = np.load(folder / "run_starts.npy")
    emotions = np.load(folder / "emotions.npy")
    names = dict.fromkeys((*config.keyframe_encoders, *config.interpolation_encoders))
    features = {name: np.load(folder / f"features_{name}.npy", mmap_mode="r") for name in names}

    def audio(scene: int, encoders: tuple[str, ...]) -> Tensor:
        rows = [features[name][scene] for name in encoders]
        return torch.from_numpy(np.concatenate(rows, -1)).float().to(device)

    generator = torch.Generator().manual_seed(0)
    sampled = []
    for i, start in enumerate(starts.tolist()):
        tokens = audio(i, config.keyframe_encoders)
        identity = torch.from_numpy(np.array(portraits[i]))[None].float().to(device)
        keyframes = _keyframes(
            first, identity, tokens, torch.from_numpy(emotions[i]), start, generator
        )
        tokens = audio(i, config.interpolation_encoders)
        frames = _frames_between(second, keyframes, tokens, start, generator)
        sampled.append(frames.half().cpu().numpy())
    for name, rows in (
        ("decoded_portraits.npy", [_decoded(codec, latent) for latent in portraits]),
        (FILE, sampled),  # the last: it tells that the shard is finished
    ):
        with replacing(folder / name) as part, part.open("wb") as file:
            np.save(file, np.stack(rows))


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
    identity: Tensor,
    features: Tensor,
    emotion: Tensor,
    start: int,
    generator: torch.Generator,
) -> Tensor:
    """Sample a clip of keyframes that has those of a run in its midst: (3, C, h, w)."""
    before = min(start // KEYFRAME_STEP, NUM_FRAMES - 4)
    frames = start + KEYFRAME_STEP * (torch.arange(NUM_FRAMES - 1) - before)
    frames = torch.cat([torch.zeros(1, dtype=torch.long), frames.clamp(max=len(features) - 1)])
    context = stage.network.project_audio(features[frames][None])
    noise = torch.randn(1, NUM_FRAMES, *identity.shape[1:], generator=generator)
    noise = noise.to(identity.device)
    clip = stage.sample(
        identity, context, emotion[frames][None].float().to(identity.device), noise
    )[0]
    return clip[1 + before : 4 + before]
