"""The perceptual distance of pictures: LPIPS on VGG16, the published loss, of a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor

from keyface_cli.checkpoints.lpips import load_lpips
from keyface_cli.errors import WeightsError
from keyface_cli.training.losses import PictureDistance


def load_distance(path: Path) -> PictureDistance:
    """Read VGG16 of ImageNet, for LPIPS.

    It moves to the device of the first pictures that it compares.

    Raises:
        WeightsError: the file is missing, damaged or another network.
    """
    if not path.is_file():
        raise WeightsError(f"no such file: {path}", "--perceptual names the weights of VGG16")
    network = load_lpips("vgg", path)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        network.to(a.device)
        return cast(Tensor, network(a, b))

    return distance
