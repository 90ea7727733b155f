"""A portrait without colour stays so: black and white, sepia, one ink.

Not of the paper, and not for the published model: networks that were mostly trained on
others paint the inside of the mouth in colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)  # BT.709
LEVELS = 256
# How far blocks of pixels may be from one curve of colours, but for a few: of the photographs of
# 131 people the nearest is 13 of 255 off, of five in sepia (JPEG, quality 90) four 2 to 7, one 12.
_BLOCK, _FEW, _NEAR = 4, 0.002, 8 / 255


@dataclass(frozen=True)
class Tint:
    """The colours of a monochrome portrait.

    Args:
        colours: (3, `LEVELS`) in [0, 1], the colour of each luma.
    """

    colours: Tensor

    @classmethod
    def of(cls, portrait: Tensor) -> Tint | None:
        """Return a portrait's tint, or None where a luma has more than one colour.

        Args:
            portrait: (3, R, R) in [-1, 1].
        """
        pixels = (portrait.float().cpu() + 1) / 2
        levels = _levels(pixels[None])[0]
        flat = levels.flatten().numpy()
        count = np.bincount(flat, minlength=LEVELS)
        seen = np.flatnonzero(count)
        means = [
            np.bincount(flat, c, LEVELS)[seen] / count[seen] for c in pixels.flatten(1).numpy()
        ]
        curve = np.stack([np.interp(np.arange(LEVELS), seen, mean) for mean in means])
        colours = torch.from_numpy(curve).float()
        # noise and JPEG's grain vanish in the mean of a block
        off = F.avg_pool2d(colours[:, levels] - pixels, _BLOCK).abs().amax(0)
        if torch.quantile(off.flatten(), 1 - _FEW) > _NEAR:
            return None
        return cls(colours.to(portrait.device))

    def __call__(self, pictures: Tensor) -> Tensor:
        """Give each pixel of pictures, (T, 3, R, R) in [0, 1], the colour of its luma."""
        return self.colours[:, _levels(pictures)].transpose(0, 1)


def _levels(pictures: Tensor) -> Tensor:
    """(T, 3, R, R) in [0, 1] -> (T, R, R), whole numbers below `LEVELS`."""
    luma = torch.einsum("tchw,c->thw", pictures.float(), pictures.new_tensor(LUMA).float())
    return (luma * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()
