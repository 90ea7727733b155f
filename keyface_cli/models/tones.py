"""Teeth are white: what is painted in a mouth is no greener or bluer than its face allows.

Not of the paper. A network that was trained on few mouths paints the teeth of others turquoise, as
bright as they should be. What a portrait's lower face shows, and teeth, bounds the colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)  # BT.709
TEETH = (1.033, 0.997, 0.925)  # red, green and blue by their luma: a warm white
LOWER_FACE = (0.5, 0.8, 0.36, 0.64)  # top, bottom, left and right edge in a portrait: nose to chin
BELOW_EYES = (0.55, 0.59)  # from the top of a portrait: below the first bounds begin, as of the
# second they hold: irises are painted too, and may be blue
_MOST = 0.98  # share of the lower face's pixels that a bound is for
_DARK = 0.01  # of 1: a colour that is darker has none


def tone_bounds(portrait: Tensor) -> Tensor:
    """Return how green and how blue a mouth may be, by its red.

    Args:
        portrait: (B, 3, R, R) in [-1, 1].

    Returns:
        (B, 2): green and blue by red, of the greenest and the bluest pixels of the lower face; of
        teeth where those are greener or bluer.
    """
    top, bottom, left, right = (round(edge * portrait.shape[-1]) for edge in LOWER_FACE)
    face = (portrait[..., top:bottom, left:right].float() + 1) / 2
    ratios = (face[:, 1:] / (face[:, :1] + _DARK)).flatten(2)
    red, *others = TEETH
    return torch.quantile(ratios, _MOST, dim=2).maximum(ratios.new_tensor(others) / red)


def bound_tones(painted: Tensor, bounds: Tensor) -> Tensor:
    """Mix colours below the eyes that are out of bounds with the white of teeth of their luma.

    Args:
        painted: (B, 3, R, R), about [-1, 1].
        bounds: of `tone_bounds`, (B, 2) or (1, 2).

    Returns:
        Of the shape of `painted`: each colour by as much as it needs to be within the bounds.
    """
    R = painted.shape[-1]
    first, full = (edge * R for edge in BELOW_EYES)
    above, below = painted[..., : int(first), :], painted[..., int(first) :, :]
    colours, bounds = (below + 1) / 2, bounds[..., None, None]
    luma = torch.einsum("bchw,c->bhw", colours, colours.new_tensor(LUMA)).clamp(min=0)
    white = luma[:, None] * colours.new_tensor(TEETH)[:, None, None]
    chroma = colours - white
    # white + share x chroma is within them where: share x (chroma - bounds x red chroma) <= allowed
    allowed = bounds * (white[:, :1] + _DARK) - white[:, 1:]
    over = chroma[:, 1:] - bounds * chroma[:, :1]
    share = (allowed / over.clamp(min=1e-6)).amin(1, keepdim=True).clamp(0, 1)
    y = torch.arange(int(first), R, device=painted.device) + 0.5
    strength = ((y - first) / (full - first)).clamp(0, 1)[:, None]
    bounded = 2 * (white + share * chroma) - 1
    return torch.cat([above, torch.lerp(below, bounded, strength)], dim=-2)
