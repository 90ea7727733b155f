"""What a portrait shows bounds what is painted: teeth are white, and brows leave no white edge.

Not of the paper. A network that was trained on few mouths paints the teeth of others turquoise, as
bright as they should be: colours below the eyes are bounded by the lower face's and by those of
teeth. Where a brow was before it rose it paints with too much light: above the mouth nothing is
brighter than the portrait is nearby.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)  # BT.709
TEETH = (1.033, 0.997, 0.925)  # red, green and blue by their luma: a warm white
LOWER_FACE = (0.5, 0.8, 0.36, 0.64)  # top, bottom, left and right edge in a portrait: nose to chin
BELOW_EYES = (0.55, 0.59)  # from the top of a portrait: below the first bounds begin, as of the
# second they hold: irises are painted too, and may be blue
_MOST = 0.98  # share of the lower face's pixels that a bound is for
_DARK = 0.01  # of 1: a colour that is darker has none
_NEARBY = 0.03  # of the portrait's side: more than a brow is thick
_SLACK = 0.02  # of 2: as much brighter than nearby it may be
_UNBOUND = 4.0  # lifts a ceiling above all colours


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
    first = int(BELOW_EYES[0] * R)
    above, below = painted[..., :first, :], painted[..., first:, :]
    colours, bounds = (below + 1) / 2, bounds[..., None, None]
    luma = torch.einsum("bchw,c->bhw", colours, colours.new_tensor(LUMA)).clamp(min=0)
    white = luma[:, None] * colours.new_tensor(TEETH)[:, None, None]
    chroma = colours - white
    # white + share x chroma is within them where: share x (chroma - bounds x red chroma) <= allowed
    allowed = bounds * (white[:, :1] + _DARK) - white[:, 1:]
    over = chroma[:, 1:] - bounds * chroma[:, :1]
    share = (allowed / over.clamp(min=1e-6)).amin(1, keepdim=True).clamp(0, 1)
    strength = _below_eyes(R, painted.device)[first:, None]
    bounded = 2 * (white + share * chroma) - 1
    return torch.cat([above, torch.lerp(below, bounded, strength)], dim=-2)


def brightness_ceiling(portrait: Tensor) -> Tensor:
    """Return how bright each pixel above the mouth may be: as the portrait is nearby.

    Args:
        portrait: (B, 3, R, R) in [-1, 1].

    Returns:
        (B, 3, R, R), for each colour; above any brightness where a mouth may be.
    """
    R = portrait.shape[-1]
    reach = round(_NEARBY * R)
    smooth = F.avg_pool2d(portrait.float(), 3, stride=1, padding=1, count_include_pad=False)
    brightest = F.max_pool2d(smooth, 2 * reach + 1, stride=1, padding=reach)
    return brightest + _SLACK + _UNBOUND * _below_eyes(R, portrait.device)[:, None]


def _below_eyes(R: int, device: torch.device) -> Tensor:
    """How far each row is below the eyes, (R,): 0 to 1 between the edges of `BELOW_EYES`."""
    first, full = BELOW_EYES
    y = (torch.arange(R, device=device) + 0.5) / R
    return ((y - first) / (full - first)).clamp(0, 1)
