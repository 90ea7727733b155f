"""Stage one: sample a clip of keyframes, 0.52 s apart, from a portrait, its sound and its emotion.

KeyFace (arXiv 2503.01715), stage one. A clip has T = 14 slots. Slot 0 is the identity frame itself,
as in training; what is sampled there is dropped by the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from keyface_cli.diffusion.denoiser import denoise
from keyface_cli.diffusion.guidance import Branch, in_interval, keyframe_guidance
from keyface_cli.diffusion.sampler import sample_euler
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.stages.noise import anchor_for

if TYPE_CHECKING:
    from keyface_cli.models.unet import VideoUNet


@dataclass(frozen=True)
class KeyframeStage:
    """The keyframe network with the choices of a run.

    Args:
        network: the keyframe UNet.
        latent_scale: VAE latents times this are what is diffused (the identity latent
            beside the noisy frames is not scaled).
        parameterization: "v" or "anchored", as the network was trained.
        sigmas: falling noise levels that end in 0, see `diffusion.sampler.sigmas_for`.
        audio_guidance: how strongly the sound is followed; 1 is as trained.
        identity_guidance: how strongly the portrait is followed; 1 is as trained.
        emotion_guidance: how strongly valence and arousal are followed; 1 is as trained.
        guidance_interval: the noise levels at which there is guidance, least and greatest; None is
            all.
    """

    network: VideoUNet
    latent_scale: float
    parameterization: str
    sigmas: Tensor
    audio_guidance: float
    identity_guidance: float
    emotion_guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None

    def sample(
        self,
        identity: Tensor,
        audio: Tensor,
        emotion: Tensor,
        noise: Tensor,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        batched: bool = True,
    ) -> Tensor:
        """Sample keyframes.

        Args:
            identity: scaled latents of the portraits, (B, C, h, w).
            audio: the network's `project_audio` of each slot's sound, (B, T, D).
            emotion: valence and arousal of each slot in [-1, 1], (B, T, 2), on the CPU, so that
                looking whether it is neutral waits for nothing.
            noise: unit Gaussian, (B, T, C, h, w).
            callback: called after each update with the number done and the latents.
            batched: run the branches of the guidance as one batch: faster, in more memory.

        Returns:
            Scaled latents, float32, (B, T, C, h, w).
        """
        emotional = bool(emotion.any())
        emotion = emotion.to(identity.device)
        full = Conditioning(audio, identity.unsqueeze(1) / self.latent_scale, emotion)
        # zeros stand for a condition that is left out; a neutral face is one that is asked for
        conditions = {
            Branch.FULL: full,
            Branch.IDENTITY: full.without_audio(),
            Branch.UNCONDITIONAL: full.without_audio().without_identity(),
            Branch.NEUTRAL: replace(full, emotion=torch.zeros_like(emotion)),
        }
        T = noise.shape[1]

        def evaluate(x: Tensor, sigma: Tensor, branches: Sequence[Branch]) -> Sequence[Tensor]:
            if not batched and len(branches) > 1:
                return [evaluate(x, sigma, [branch])[0] for branch in branches]
            given = Conditioning.cat([conditions[branch] for branch in branches])
            anchor = anchor_for(self.parameterization, given.latents * self.latent_scale, T)
            denoised = denoise(
                lambda x, c_noise: self.network(x, c_noise, given),
                torch.cat([x] * len(branches)),
                sigma,
                anchor=anchor,
            )
            return denoised.chunk(len(branches))

        guided = keyframe_guidance(
            evaluate,
            audio=self.audio_guidance,
            identity=self.identity_guidance,
            emotion=self.emotion_guidance if emotional else 1,  # it is neutral already
        )
        alone = keyframe_guidance(evaluate, audio=1, identity=1)
        guided = in_interval(guided, alone, self.guidance_interval)
        return sample_euler(guided, noise, self.sigmas, callback)
