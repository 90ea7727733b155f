"""Frame by frame against the true video: PSNR, SSIM and LPIPS, averaged per clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from keyface_cli.checkpoints.lpips import load_lpips
from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.measures import (
    Block,
    Clip,
    Column,
    Figures,
    FrameMeasure,
    Frames,
    Measure,
)
from keyface_cli.models.lpips import Trunk

LPIPS_LEAST = 32  # pixels of the shorter side


def to_tensor(frames: Frames, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 (n, 3, H, W) of (n, H, W, 3)."""
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return tensor.permute(0, 3, 1, 2)


class Fidelity(Measure):
    """PSNR and SSIM of torchmetrics, on frames scaled to [0, 1], one value a frame."""

    name = "fidelity"
    needs_reference = True
    columns = (Column("psnr", "PSNR (dB)", "higher", 2), Column("ssim", "SSIM", "higher", 4))

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        try:
            import torchmetrics
        except ImportError as error:
            raise KeyFaceError(
                "PSNR and SSIM need torchmetrics", "pip install 'keyface[eval]'"
            ) from error
        self._version = torchmetrics.__version__

    def protocol(self) -> dict[str, Any]:
        """Return which implementation and settings."""
        return {
            "implementation": f"torchmetrics {self._version}",
            "ssim": "Gaussian window of sigma 1.5, RGB, range 1",
            "average": "over frames, then over clips; equal frames count as 100 dB",
        }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._psnr: list[float] = []
        self._ssim: list[float] = []

    @torch.inference_mode()
    def add(self, block: Block) -> None:
        """See the next frames."""
        from torchmetrics.functional.image import (
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )

        assert block.reference is not None
        a, b = (
            to_tensor(x, self._device).float() / 255 for x in (block.generated, block.reference)
        )
        psnr = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
        ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        self._psnr += psnr.clamp(max=100).flatten().tolist()
        self._ssim += ssim.flatten().tolist()

    def end(self) -> Figures:
        """Finish the clip."""
        tracks = {"PSNR": np.array(self._psnr), "SSIM": np.array(self._ssim)}
        values = {"psnr": float(np.mean(self._psnr)), "ssim": float(np.mean(self._ssim))}
        return Figures(values, tracks=tracks)


class PerceptualDistance(FrameMeasure):
    """LPIPS of one trunk.

    Args:
        trunk: which.
        weights: its ImageNet weights.
        device: where to compute.
    """

    name: ClassVar[str] = "lpips"
    needs_reference = True
    too_few = f"smaller than {LPIPS_LEAST} pixels"

    def __init__(self, trunk: Trunk, weights: Path, device: str = "cpu") -> None:
        label = "Alex" if trunk == "alex" else "VGG"
        self.columns = (Column(f"lpips_{trunk}", f"LPIPS {label}", "lower", 4),)
        self._device = device
        self._network = load_lpips(trunk, weights).to(device)

    def protocol(self) -> dict[str, Any]:
        """Return the trunk and what it is fed."""
        return {
            "trunk": self._network.trunk,
            "version": "0.1",
            "input": "[-1, 1] at the clips' own size",
            "average": "over frames, then over clips",
        }

    @torch.inference_mode()
    def add(self, block: Block) -> None:
        """See the next frames."""
        if min(block.generated.shape[1:3]) < LPIPS_LEAST:
            return
        assert block.reference is not None
        a, b = (
            to_tensor(x, self._device).float() / 127.5 - 1
            for x in (block.generated, block.reference)
        )
        self._track += self._network(a, b).tolist()
