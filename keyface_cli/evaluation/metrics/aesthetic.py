"""Aesthetic quality as VBench defines it: LAION's linear head on CLIP ViT-L/14, divided by 10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.checkpoints.unpickle import read_tensors
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Column, FrameMeasure
from keyface_cli.evaluation.metrics.fidelity import to_tensor
from keyface_cli.evaluation.networks.loading import load_strictly

SIDE = 224  # pixels
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def prepare(frames: Tensor, side: int = SIDE) -> Tensor:
    """Resize and cut pictures as CLIP wants them, in the way that VBench does.

    The shorter side is resized to `side` by bicubic without antialiasing and rounded to bytes,
    then the middle is cut out.

    Args:
        frames: uint8 (n, 3, H, W) RGB.
        side: pixels.

    Returns:
        float32 (n, 3, side, side), normalised.
    """
    h, w = frames.shape[2:]
    size = (side, side * w // h) if h <= w else (side * h // w, side)
    x = F.interpolate(frames.float(), size, mode="bicubic", align_corners=False)
    x = x.round().clamp(0, 255) / 255
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    x = x[:, :, top : top + side, left : left + side]
    mean, deviation = (
        torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (_MEAN, _DEVIATION)
    )
    return (x - mean) / deviation


class AestheticQuality(FrameMeasure):
    """Mean over all frames of a clip.

    Args:
        clip: folder of openai/clip-vit-large-patch14 as transformers stores it.
        head: LAION's file sa_0_4_vit_l_14_linear.pth.
        device: where to compute.
    """

    name = "aesthetic"
    columns = (Column("aesthetic", "Aesthetic quality", "higher", 3),)

    def __init__(self, clip: Path, head: Path, device: str = "cpu") -> None:
        from transformers import CLIPVisionModelWithProjection

        try:
            network: Any = CLIPVisionModelWithProjection.from_pretrained(
                clip, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{clip}: no CLIP that transformers can read: {str(error).splitlines()[0]}",
                "expected: the folder of openai/clip-vit-large-patch14",
            ) from error
        self._network = network.float().eval().to(device)
        self._device = device
        self._side = int(network.config.image_size)
        self._head = nn.Linear(int(network.config.projection_dim), 1)
        load_strictly(self._head, read_tensors(head)[0], head, "LAION's linear head")
        self._head.to(device)

    def protocol(self) -> dict[str, Any]:
        """Return the definition."""
        return {
            "definition": "VBench aesthetic quality: linear head on CLIP ViT-L/14, divided by 10",
            "input": f"bicubic to {self._side} without antialiasing, bytes, centre crop",
        }

    @torch.inference_mode()
    def add(self, block: Block) -> None:
        """See the next frames."""
        pixels = prepare(to_tensor(block.generated, self._device), self._side)
        features = F.normalize(self._network(pixel_values=pixels).image_embeds.float(), dim=-1)
        self._track += (self._head(features)[:, 0] / 10).tolist()
