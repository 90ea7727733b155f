"""Motion smoothness as VBench defines it: a trained network predicts every second frame."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Column
from keyface_cli.evaluation.metrics.fidelity import to_tensor
from keyface_cli.evaluation.metrics.unreferenced import Interpolated, Picture
from keyface_cli.evaluation.networks.loading import load_torchscript

_DIVISOR = 16  # sides are padded to a multiple


class MotionSmoothness(Interpolated):
    """(255 - mean |odd frame - its interpolation|) / 255.

    Args:
        weights: AMT-S as TorchScript: two pictures (1, 3, H, W) RGB in [0, 1] and the time
            (1, 1, 1, 1) to the picture between, or to a dictionary with it as `imgt_pred`.
        device: where to compute.
    """

    name = "motion"
    columns = (Column("motion_smoothness", "Motion smoothness", "higher", 4),)
    definition: ClassVar = {"definition": "VBench motion smoothness with AMT-S, full resolution"}

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self._path, self._device = weights, device
        self._network = load_torchscript(weights, device)

    @torch.inference_mode()
    def between(self, before: Picture, after: Picture) -> Picture:
        """Return the network's picture, cut to bytes."""
        h, w = before.shape[:2]
        down, right = -h % _DIVISOR, -w % _DIVISOR
        edges = (right // 2, right - right // 2, down // 2, down - down // 2)
        pair = [
            F.pad(to_tensor(x[None], self._device).float() / 255, edges, mode="replicate")
            for x in (before, after)
        ]
        try:
            out = self._network(*pair, torch.full((1, 1, 1, 1), 0.5, device=self._device))
            middle: Tensor = out["imgt_pred"] if isinstance(out, dict) else out
            middle = middle[:, :, edges[2] : edges[2] + h, edges[0] : edges[0] + w]
        except (RuntimeError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{self._path}: is no interpolation network: {str(error).splitlines()[-1]}",
                "it takes two pictures and a time, and gives the picture between",
            ) from error
        # cut, not rounded, to bytes: as VBench does
        return (middle[0] * 255).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
