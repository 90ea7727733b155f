"""Held-out clips as a network in training makes them, and how well their lips follow the truth.

A stage makes what it makes in a video: keyframes from an identity frame and sound, or the frames
between two true keyframes. The noise is the same each time.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from keyface_cli.config import NUM_FRAMES, ModelConfig
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.unet import VideoUNet
from keyface_cli.stages.noise import noise_for
from keyface_cli.training.clips import Clips
from keyface_cli.training.compute import Compute
from keyface_cli.training.loop import Sample
from keyface_cli.training.losses import MOUTH
from keyface_cli.training.sampled import interpolation_stage, keyframe_stage

SHOWN_WIDTH = 128  # pixels of a frame in the strip
DECODED = 4  # frames at once


class HeldOut:
    """The held-out clips of a stage.

    Args:
        stage: "keyframes" or "interpolation".
        config: of the model; its sampling defaults are used, without autoguidance.
        clips: from `ClipSource.held_out`.
        codec: of the run's VAE, on the device; without one there are no samples.
        compute: where the networks are, and how they compute.
    """

    def __init__(
        self,
        stage: str,
        config: ModelConfig,
        clips: list[tuple[Clips, NDArray[np.uint8]]],
        codec: LatentCodec | None,
        compute: Compute,
    ) -> None:
        self.stage, self.config, self.clips = stage, config, clips
        self.codec, self.compute = codec, compute

    def sample(self, network: nn.Module) -> Sample | None:
        """Make every held-out clip by a `VideoUNet` of the stage.

        Returns:
            A strip with two rows for each clip, made above and true below, and the means of
            `lip_sync` (where the mouth moves) and of PSNR in dB; None without clips or VAE.
        """
        if self.codec is None or not self.clips:
            return None
        rows, correlations, errors = [], [], []
        for index, (clip, truth) in enumerate(self.clips):
            with self.compute.autocast():
                latents = self._latents(cast(VideoUNet, network), clip, index)
            made = _decoded(self.codec, latents)
            correlation = lip_sync(made, truth)
            if correlation is not None:
                correlations.append(correlation)
            errors.append(psnr(made, truth))
            rows += [_row(made), _row(truth)]
        values = {"psnr": float(np.mean(errors))}
        if correlations:
            values = {"lip_sync": float(np.mean(correlations))} | values
        return Sample(np.concatenate(rows), values)

    def _latents(self, network: VideoUNet, clip: Clips, index: int) -> torch.Tensor:
        device = self.compute.device
        z = clip.latents.float().to(device)
        audio = network.project_audio(clip.features.float().to(device))
        noise = noise_for(self.stage, index, tuple(z.shape[1:]), 0)[None].to(device)
        if self.stage == "interpolation":
            between = interpolation_stage(self.config, network)
            return between.sample(z[:, [0, -1]], audio, noise)[0]
        emotion = clip.emotion.float().to(device)
        return keyframe_stage(self.config, network).sample(z[:, 0], audio, emotion, noise)[0]


def _decoded(codec: LatentCodec, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Decode latents (T, C, h, w) to pictures (T, H, W, 3)."""
    parts = [codec.decode(part) for part in torch.split(latents, DECODED)]
    pixels = (torch.cat(parts).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def lip_sync(made: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float | None:
    """Correlate the mouths of two clips along the main motion of the true one.

    That motion is the first principal component of the mouth's region in the true frames, which in
    speech is mostly the opening. Frame 0, which the network was shown, does not count.

    Args:
        made: (T, H, W, 3).
        truth: the same shape.

    Returns:
        Pearson's r; None where the true mouth stands still.
    """
    rows, columns = MOUTH.within(*truth.shape[1:3])
    a, b = (
        frames[1:, rows, columns].astype(np.float32).mean(-1).reshape(NUM_FRAMES - 1, -1)
        for frames in (made, truth)
    )
    centred = b - b.mean(0)
    if float(centred.std()) < 1:  # of 255 levels
        return None
    motion = np.linalg.svd(centred, full_matrices=False)[2][0]
    x, y = (a - a.mean(0)) @ motion, centred @ motion
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm > 0 else 0.0


def psnr(made: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two clips of one shape, in dB."""
    error = np.mean((made.astype(np.float32) - truth.astype(np.float32)) ** 2)
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


def _row(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay frames (T, H, W, 3) side by side, made small."""
    size = min(SHOWN_WIDTH, frames.shape[2])
    small = [Image.fromarray(f).resize((size, size), Image.Resampling.BOX) for f in frames]
    return np.concatenate([np.asarray(picture) for picture in small], axis=1)
