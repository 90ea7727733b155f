"""The conditions of a UNet: what it gets of a clip beside its noisy latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The conditions of the network; zeros are a dropped condition, as in training with dropout."""

    audio: Tensor  # (B, T, D) from `VideoUNet.project_audio`
    # (B, K, C, h, w) clean latents without `latent_scale`: the identity frame (K = 1), or the
    # start and end keyframes (K = 2)
    latents: Tensor
    emotion: Tensor | None = None  # (B, T, 2) valence and arousal in [-1, 1]
    # (B, T, C, h, w), without `latent_scale`: a guess of every frame, which an "anchored"
    # interpolation network sees where the frames are missing; None as published
    anchor: Tensor | None = None

    def without_audio(self) -> Conditioning:
        """Return the same conditions without the audio."""
        return replace(self, audio=torch.zeros_like(self.audio))

    def without_identity(self) -> Conditioning:
        """Return the same conditions without the identity frame (or keyframes)."""
        return replace(self, latents=torch.zeros_like(self.latents))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join the clips of several conditionings into one batch, in order."""
        emotions = [part.emotion for part in parts if part.emotion is not None]
        anchors = [part.anchor for part in parts if part.anchor is not None]
        return Conditioning(
            audio=torch.cat([part.audio for part in parts]),
            latents=torch.cat([part.latents for part in parts]),
            emotion=torch.cat(emotions) if emotions else None,
            anchor=torch.cat(anchors) if anchors else None,
        )
