"""FID and FVD: how far the features of all generated frames, or clips, lie from the true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Frames, SetMeasure
from keyface_cli.evaluation.metrics.fidelity import to_tensor
from keyface_cli.evaluation.metrics.frechet import (
    RELIABLE_SAMPLES,
    frechet_distance,
    gaussian_of,
)
from keyface_cli.evaluation.networks.loading import load_torchscript

SIDE = 299  # pixels that Inception sees
FVD_FRAMES = 16
FVD_LEAST_FRAMES = 10  # the network's pools leave nothing of shorter clips


def prepare(frames: Tensor) -> Tensor:
    """Resize frames to 299 x 299 as torchmetrics 1.9 does, and scale them for the network.

    Args:
        frames: uint8 (n, 3, H, W) RGB; bytes, because the field's numbers are of stored pictures.

    Returns:
        float32 (n, 3, 299, 299) in about [-1, 1].
    """
    if frames.dtype != torch.uint8:
        raise ValueError(f"FID is defined on bytes, not {frames.dtype}")
    size = (SIDE, SIDE)
    x = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False, antialias=True)
    return (x - 128) / 128


class FeatureStore:
    """Features of clips, float32 in memory: 82 MB for 10,000 frames of FID."""

    def __init__(self) -> None:
        self.clips: list[NDArray[np.float32]] = []
        self.current: list[NDArray[np.float32]] = []  # blocks (n, D) of the clip that was begun

    @property
    def counts(self) -> list[int]:
        """Features of each clip."""
        return [len(features) for features in self.clips]

    def close_clip(self) -> None:
        """End the current clip."""
        self.clips.append(
            np.concatenate(self.current) if self.current else np.empty((0, 0), np.float32)
        )
        self.current = []


class FrechetDistance(SetMeasure):
    """The Frechet distance between the features of all clips and those of the true ones."""

    needs_reference = True

    def restart(self) -> None:
        """Start another method."""
        self._generated, self._reference = FeatureStore(), FeatureStore()

    def begin(self, clip: Clip) -> None:
        """Start a clip."""

    def end(self) -> Figures:
        """Finish the clip."""
        self._generated.close_clip()
        self._reference.close_clip()
        return Figures()

    def forget(self) -> None:
        """Drop the clip that was begun."""
        self._generated.current, self._reference.current = [], []

    def overall(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """Return the distance, if there are two features."""
        counted = None if weights is None else weights.tolist()
        try:
            sides = [gaussian_of(x.clips, counted) for x in (self._generated, self._reference)]
        except ValueError:  # too few
            return {}
        return {self.name: frechet_distance(*sides)}


class FrechetInceptionDistance(FrechetDistance):
    """FID of all frames against all true frames.

    Args:
        weights: Inception v3 of 2015-12-05, the TorchScript file of StyleGAN2-ADA.
        device: where to compute.
    """

    name = "fid"
    columns = (Column("fid", "FID", "lower", 2),)

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self._path, self._device = weights, device
        self._network = load_torchscript(weights, device)
        self.restart()

    def protocol(self) -> dict[str, Any]:
        """Return the resizing and the number of frames."""
        frames = sum(self._generated.counts)
        few = f"fewer than {RELIABLE_SAMPLES} frames: the covariance is rank-deficient"
        return {
            "network": "Inception v3, 2015-12-05, 2048 features",
            "resize": "bilinear with antialiasing, as torchmetrics 1.9",
            "input": "decoded bytes",
            "frames": frames,
            "reference_frames": sum(self._reference.counts),
            **({"caution": few} if frames < RELIABLE_SAMPLES else {}),
        }

    def add(self, block: Block) -> None:
        """See the next frames."""
        assert block.reference is not None
        self._generated.current.append(self.features(block.generated))
        self._reference.current.append(self.features(block.reference))

    @torch.inference_mode()
    def features(self, frames: Frames) -> NDArray[np.float32]:
        """Return (n, 2048) of bytes (n, H, W, 3), in one pass."""
        pixels = to_tensor(frames, self._device)
        try:
            # the file's own resizing has no antialiasing, so only what comes after it is asked
            features = self._network.layers(prepare(pixels)).float().flatten(1)
        except (AttributeError, RuntimeError) as error:
            raise WeightsError(
                f"{self._path}: is not the Inception of StyleGAN2-ADA: "
                f"{str(error).splitlines()[-1]}",
                "its `layers` take (n, 3, 299, 299) and give 2048 features",
            ) from error
        return np.asarray(features.cpu().numpy())


class FrechetVideoDistance(FrechetDistance):
    """FVD as StyleGAN-V computes it: I3D features of windows of consecutive frames.

    Args:
        weights: the I3D TorchScript file.
        frames: in a window.
        stride: between the frames of a window, in frames of the video.
        device: where to compute.
    """

    name = "fvd"
    columns = (Column("fvd", "FVD", "lower", 1),)

    def __init__(
        self, weights: Path, frames: int = FVD_FRAMES, stride: int = 1, device: str = "cpu"
    ) -> None:
        if frames < FVD_LEAST_FRAMES:
            raise ValueError(f"I3D needs at least {FVD_LEAST_FRAMES} frames, not {frames}")
        self._path = weights
        self._network = load_torchscript(weights, device)
        self._frames, self._stride, self._device = frames, stride, device
        self._size = (0, 0)
        self.restart()

    def protocol(self) -> dict[str, Any]:
        """Return window, stride, resolution and the number of windows."""
        return {
            "network": "I3D TorchScript, rescale, resize and return_features on, bytes 0..255",
            "window": self._frames,
            "stride": self._stride,
            "sampling": "windows beside each other from the first frame, the same on both sides",
            "windows": sum(self._generated.counts),
            "resolution": f"{self._size[0]}x{self._size[1]}, resized to 224x224 by the network",
        }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._size = clip.size
        self._pending: tuple[list[Frames], list[Frames]] = ([], [])

    def add(self, block: Block) -> None:
        """See the next frames."""
        assert block.reference is not None
        span = self._frames * self._stride
        for i in range(len(block.generated)):
            if (block.start + i) % self._stride == 0:
                self._pending[0].append(block.generated[i])
                self._pending[1].append(block.reference[i])
            if (block.start + i) % span == span - 1:
                self._take_window()

    def end(self) -> Figures:
        """Finish the clip."""
        super().end()
        if not self._generated.counts[-1]:
            return self.unscored(f"shorter than {self._frames * self._stride} frames")
        return Figures()

    def _take_window(self) -> None:
        stores = (self._generated, self._reference)
        for frames, store in zip(self._pending, stores, strict=True):
            store.current.append(self.features(np.stack(frames)[None]))
        self._pending = ([], [])

    @torch.inference_mode()
    def features(self, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (B, D) of bytes (B, T, H, W, 3)."""
        video = torch.from_numpy(windows).to(self._device).permute(0, 4, 1, 2, 3)  # (B, C, T, H, W)
        try:
            # it maps 0..255 to [-1, 1] and to 224 x 224 itself
            out = self._network(video.float(), rescale=True, resize=True, return_features=True)
        except (RuntimeError, TypeError) as error:
            raise WeightsError(
                f"{self._path}: is not the I3D of StyleGAN-V: {str(error).splitlines()[-1]}",
                "it takes (B, 3, T, H, W), rescale, resize and return_features",
            ) from error
        return np.asarray(out.float().flatten(1).cpu().numpy())
