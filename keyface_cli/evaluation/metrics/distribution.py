"""FID and FVD: how far the features of all generated frames, or clips, lie from the true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Frames, SetMeasure
from keyface_cli.evaluation.metrics.fidelity import to_tensor
from keyface_cli.evaluation.metrics.frechet import (
    RELIABLE_SAMPLES,
    FeatureStatistics,
    Gaussian,
    frechet_distance,
    gaussian_of,
)
from keyface_cli.evaluation.networks.inception import (
    FEATURES,
    RESIZES,
    FidResize,
    load_inception,
    prepare,
)
from keyface_cli.evaluation.networks.loading import load_torchscript

FVD_FRAMES = 16
FVD_LEAST_FRAMES = 10  # the network's pools leave nothing of shorter clips


class FeatureStore:
    """Features of clips, float32 in memory: 82 MB for 10,000 frames of FID.

    Args:
        size: D, the width of a feature.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._clips: list[NDArray[np.float32]] = []
        self._blocks: list[NDArray[np.float32]] = []  # of the current clip

    @property
    def counts(self) -> list[int]:
        """Features of each clip."""
        return [len(features) for features in self._clips]

    def append(self, features: NDArray[np.float32]) -> None:
        """Keep features (n, D) of the current clip, which `close_clip` ends."""
        self._blocks.append(np.asarray(features, np.float32))

    def close_clip(self) -> None:
        """End the current clip."""
        blocks = self._blocks or [np.empty((0, self.size), np.float32)]
        self._clips.append(np.concatenate(blocks))
        self._blocks = []

    def drop_clip(self) -> None:
        """Forget the features since the last clip ended."""
        self._blocks = []

    def gaussian(self, weights: NDArray[np.float64] | None = None) -> Gaussian:
        """Return what the features are taken for, each clip counted `weights` times.

        Raises:
            ValueError: fewer than two features.
        """
        counted = np.ones(len(self._clips)) if weights is None else weights
        if sum(self.counts) <= self.size:  # their own factor is smaller than a covariance
            # a clip without any does not know the width yet
            rows = [clip for clip in self._clips if len(clip)] or [
                np.empty((0, self.size), np.float32)
            ]
            return gaussian_of(np.concatenate(rows), np.repeat(counted, self.counts))
        statistics = FeatureStatistics(self.size)
        for features, weight in zip(self._clips, counted.tolist(), strict=True):
            statistics.add(features, weight)
        return statistics.gaussian()


class FrechetInceptionDistance(SetMeasure):
    """FID of all frames against all true frames.

    Args:
        weights: Inception v3 of 2015-12-05.
        resize: which implementation's resizing.
        device: where to compute.
        batch: frames in one pass.
    """

    name = "fid"
    needs_reference = True
    columns = (Column("fid", "FID", "lower", 2),)

    def __init__(
        self,
        weights: Path,
        resize: FidResize = "antialias",
        device: str = "cpu",
        batch: int = 16,
    ) -> None:
        self._network = load_inception(weights).to(device)
        self._resize: FidResize = resize
        self._device, self._batch = device, batch
        self.restart()

    def restart(self) -> None:
        """Start another method."""
        self._generated, self._reference = FeatureStore(FEATURES), FeatureStore(FEATURES)

    def protocol(self) -> dict[str, Any]:
        """Return the resizing and the number of frames."""
        frames = sum(self._generated.counts)
        few = f"fewer than {RELIABLE_SAMPLES} frames: the covariance is rank-deficient"
        return {
            "network": "Inception v3, 2015-12-05, 2048 features",
            "resize": RESIZES[self._resize],
            "input": "decoded bytes",
            "frames": frames,
            "reference_frames": sum(self._reference.counts),
            **({"caution": few} if frames < RELIABLE_SAMPLES else {}),
        }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._count = 0

    def add(self, block: Block) -> None:
        """See the next frames."""
        assert block.reference is not None
        self._generated.append(self.features(block.generated))
        self._reference.append(self.features(block.reference))
        self._count += len(block.generated)

    def end(self) -> Figures:
        """Finish the clip."""
        self._generated.close_clip()
        self._reference.close_clip()
        return Figures()

    def forget(self) -> None:
        """Drop the clip that was begun."""
        self._generated.drop_clip()
        self._reference.drop_clip()

    def overall(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """Return the distance, if there are two frames."""
        return _distance("fid", self._generated, self._reference, weights)

    @torch.inference_mode()
    def features(self, frames: Frames) -> NDArray[np.float32]:
        """Return (n, 2048) of bytes (n, H, W, 3)."""
        parts = []
        for start in range(0, len(frames), self._batch):
            pixels = to_tensor(frames[start : start + self._batch], self._device)
            parts.append(self._network(prepare(pixels, self._resize)).float().cpu().numpy())
        return np.concatenate(parts)


class FrechetVideoDistance(SetMeasure):
    """FVD as StyleGAN-V computes it: I3D features of windows of consecutive frames.

    Args:
        weights: the I3D TorchScript file.
        frames: in a window.
        stride: between the frames of a window, in frames of the video.
        device: where to compute.
    """

    name = "fvd"
    needs_reference = True
    columns = (Column("fvd", "FVD", "lower", 1),)

    def __init__(
        self, weights: Path, frames: int = FVD_FRAMES, stride: int = 1, device: str = "cpu"
    ) -> None:
        if frames < FVD_LEAST_FRAMES:
            raise ValueError(f"I3D needs at least {FVD_LEAST_FRAMES} frames, not {frames}")
        self._path = weights
        self._network = load_torchscript(weights, device)
        self._frames, self._stride, self._device = frames, stride, device
        self.restart()

    def restart(self) -> None:
        """Start another method."""
        self._generated, self._reference = FeatureStore(0), FeatureStore(0)
        self._size = (0, 0)

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
        self._count = 0

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
        self._generated.close_clip()
        self._reference.close_clip()
        if not self._count:
            return self.unscored(f"shorter than {self._frames * self._stride} frames")
        return Figures()

    def forget(self) -> None:
        """Drop the clip that was begun."""
        self._generated.drop_clip()
        self._reference.drop_clip()

    def overall(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """Return the distance, if there are two windows."""
        return _distance("fvd", self._generated, self._reference, weights)

    def _take_window(self) -> None:
        stores = (self._generated, self._reference)
        for frames, store in zip(self._pending, stores, strict=True):
            features = self.features(np.stack(frames)[None])
            store.size = features.shape[1]
            store.append(features)
        self._pending = ([], [])
        self._count += 1

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


def _distance(
    key: str,
    generated: FeatureStore,
    reference: FeatureStore,
    weights: NDArray[np.float64] | None,
) -> dict[str, float]:
    try:
        a, b = generated.gaussian(weights), reference.gaussian(weights)
    except ValueError:  # too few
        return {}
    return {key: frechet_distance(a, b)}
