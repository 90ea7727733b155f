"""LPIPS (Zhang et al. 2018, version 0.1): the distance of two pictures in a network's features.

The trunks are VGG16 and AlexNet of ImageNet. Input is [-1, 1]; the metric's own shift and scale
replace ImageNet's normalisation.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Trunk = Literal["alex", "vgg"]
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8
_VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: a pool
# the layers, by their place in the trunk, whose outputs are compared: after a ReLU
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
_WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


class Lpips(nn.Module):
    """The distance of pairs of pictures; gradients flow.

    Args:
        trunk: "alex" for scores, "vgg" as a loss; the paper's authors use them so.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk: Trunk = trunk
        self.features = nn.Sequential(*(_alex_layers() if trunk == "alex" else _vgg_layers()))
        self.weights = nn.ParameterList([torch.zeros(1, n, 1, 1) for n in _WIDTHS[trunk]])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare pictures.

        Args:
            a: (n, 3, H, W) RGB in [-1, 1], sides of at least 32 pixels.
            b: the same.

        Returns:
            (n,) distances, >= 0.
        """
        total = torch.zeros(len(a), device=a.device)
        x, y = (a - self.shift) / self.scale, (b - self.shift) / self.scale
        weights = iter(self.weights)
        for place, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if place in _TAPS[self.trunk]:
                difference = (_unit(x) - _unit(y)) ** 2
                total = total + F.conv2d(difference, next(weights)).mean(dim=(1, 2, 3))
        return total


def _unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(_EPSILON + (x**2).sum(1, keepdim=True))


def _alex_layers() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]


def _vgg_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for outputs in _VGG:
        if outputs == 0:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU()]
            width = outputs
    return layers
