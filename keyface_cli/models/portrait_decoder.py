"""A decoder that sees the portrait: what does not change is moved there, what is new is painted.

Not of the paper. A small VAE keeps how a face moves and loses what it looks like; the portrait has
that in full. From a frame as the VAE decodes it, the portrait, the portrait as the VAE decodes it
and a motion of head, eyes and lids, a small network gives two flows, a mask and a colour:

    out = (1 - mask) warp(portrait, flow) + mask (warp(decoded, other flow) + colour)

so that hair, skin and eyes are the portrait's own pixels, and the inside of the mouth is painted;
`tones` bounds what is painted.
The motion is no part of the latents: those show the face in the portrait's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface_cli.models.network import Network
from keyface_cli.models.tones import bound_tones, brightness_ceiling, tone_bounds

SQUARE = 4  # pixels on a side that become channels
NORM_GROUPS = 8
FLOW_SCALE = 0.1  # of what the heads answer, in half pictures
MASK_START = -2.0  # logit of the mask before training: little is painted


class View(NamedTuple):
    """What of a portrait is shown, where that is not all of it or has more pixels."""

    picture: Tensor  # (1, 3, S, S) in [-1, 1]
    place: tuple[float, float, float]  # left, top and side, as fractions of the portrait's side


class Portrait(NamedTuple):
    """What is computed once of a portrait."""

    picture: Tensor  # (1, 3, R, R) in [-1, 1]
    decoded: Tensor  # the same through the VAE and back
    features: Tensor  # (1, C, R / 4, R / 4)
    tones: Tensor  # (1, 2), of `tone_bounds`
    ceiling: Tensor  # (1, 3, R, R), of `brightness_ceiling`
    view: View | None = None


class PortraitDecoder(Network):
    """Moves and paints a portrait.

    Args:
        widths: channels at a fourth, an eighth and a sixteenth of the resolution.
        motion_scales: the greatest usual value of each number of a motion, by which it is divided.
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 80, 128),
        motion_scales: Sequence[float] = (1.0, 0.8, 0.6, 0.8, 0.6, 0.09, 0.05, 0.04),
    ) -> None:
        super().__init__(locals())
        fine, middle, coarse = widths
        packed = 3 * SQUARE**2
        self.motion = nn.Sequential(nn.Linear(len(motion_scales), 96), nn.SiLU(), nn.Linear(96, 96))
        self.portrait_in = nn.Sequential(
            nn.Conv2d(2 * packed + 2, fine, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(fine, fine, 3, padding=1),
        )
        self.frame_in = nn.Conv2d(2 * packed, fine, 3, padding=1)
        self.down_fine = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.down_block = _Block(middle)
        self.down_middle = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse_blocks = nn.ModuleList([_Block(coarse), _Block(coarse), _Block(coarse)])
        self.coarse_flow = _zeroed(nn.Conv2d(coarse, 4, 3, padding=1))
        self.up_middle = nn.Conv2d(coarse + middle, middle, 3, padding=1)
        self.up_block = _Block(middle)
        self.middle_flow = _zeroed(nn.Conv2d(middle, 4, 3, padding=1))
        self.up_fine = nn.Conv2d(middle, fine, 1)
        self.joined = nn.Conv2d(4 * fine, fine, 3, padding=1)
        self.fine_block = _Block(fine)
        self.out = _zeroed(nn.Conv2d(fine, 4 + 4 * SQUARE**2, 3, padding=1))

    def prepare(self, picture: Tensor, decoded: Tensor) -> Portrait:
        """Compute what all frames of a portrait share.

        Args:
            picture: the portrait, (B, 3, R, R) in [-1, 1].
            decoded: the same through the VAE and back.
        """
        dtype = self.frame_in.weight.dtype
        both = torch.cat([_pack(picture.to(dtype)), _pack(decoded.to(dtype))], 1)
        B, _, h, w = both.shape
        line_x, line_y = (torch.linspace(-1, 1, n, device=both.device, dtype=dtype) for n in (w, h))
        place = torch.stack(torch.meshgrid(line_y, line_x, indexing="ij")).expand(B, 2, h, w)
        features = self.portrait_in(torch.cat([both, place], 1))
        return Portrait(
            picture, decoded, features, tone_bounds(picture), brightness_ceiling(picture)
        )

    def forward(self, frames: Tensor, portrait: Portrait, motion: Tensor) -> Tensor:
        """Make pictures of frames.

        Args:
            frames: decoded by the VAE, (B, 3, R, R), about [-1, 1].
            portrait: of `prepare`, of one picture or of as many as there are frames.
            motion: (B, M), from the portrait's place of head, eyes and lids.

        Returns:
            (B, 3, R, R), about [-1, 1], in float32; (B, 3, S, S) of a portrait with a view.
        """
        dtype = self.frame_in.weight.dtype
        B = len(frames)
        given = portrait.features.expand(B, -1, -1, -1)
        packed = _pack(frames.to(dtype))
        change = packed - _pack(portrait.decoded.to(dtype))
        seen = self.frame_in(torch.cat([packed, change], 1))
        fine = F.gelu(seen + given)
        scales = motion.new_tensor(tuple(self.config["motion_scales"]))
        moving = self.motion((motion / scales).to(dtype))

        middle = self.down_block(F.gelu(self.down_fine(fine)), moving)
        coarse = F.gelu(self.down_middle(middle))
        for block in self.coarse_blocks:
            coarse = block(coarse, moving)
        flow = self.coarse_flow(coarse).float()
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        middle = self.up_block(F.gelu(self.up_middle(torch.cat([up, middle], 1))), moving)
        flow = _double(flow) + self.middle_flow(middle).float()
        # a 1 x 1 convolution of repeated pixels is its answer repeated, at a fourth of the work
        up = F.interpolate(self.up_fine(middle), scale_factor=2.0, mode="nearest")
        flow = _double(flow)
        brought = [
            warp(given, FLOW_SCALE * flow[:, :2]),
            warp(seen, FLOW_SCALE * flow[:, 2:]),
        ]
        fine = F.gelu(self.joined(torch.cat([fine, up, *brought], 1)))
        fine = self.fine_block(fine, moving)
        answer = self.out(fine)
        flow = flow + answer[:, :4].float()
        flow = FLOW_SCALE * F.interpolate(
            flow, scale_factor=SQUARE, mode="bilinear", align_corners=False
        )
        painted = F.pixel_shuffle(answer[:, 4:], SQUARE).float()
        mask = (painted[:, :1] + MASK_START).sigmoid()
        new = bound_tones(warp(frames.float(), flow[:, 2:]) + painted[:, 1:], portrait.tones)
        picture, ceiling, flow = portrait.picture, portrait.ceiling, flow[:, :2]
        if portrait.view is not None:
            picture, place = portrait.view
            ceiling = _zoom(ceiling, picture.shape[-1], place)
            maps = _zoom(torch.cat([flow, mask, new], 1), picture.shape[-1], place)
            flow, mask, new = maps[:, :2] / place[2], maps[:, 2:3], maps[:, 3:]
        kept = warp(picture.expand(B, -1, -1, -1).float(), flow)
        return torch.lerp(kept, new, mask).minimum(kept.maximum(ceiling))


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where a flow says.

    Places are float32: in bfloat16 those near an edge lie an eighth of a pixel apart.

    Args:
        pictures: (B, C, h, w).
        flow: (B, 2, h, w), right and down, in half pictures.

    Returns:
        Of the pictures' shape and dtype.
    """
    h, w = pictures.shape[-2:]
    x = (torch.arange(w, device=flow.device, dtype=flow.dtype) + 0.5) / w * 2 - 1
    y = (torch.arange(h, device=flow.device, dtype=flow.dtype) + 0.5) / h * 2 - 1
    grid = torch.stack([x + flow[:, 0], y[:, None] + flow[:, 1]], -1)
    fetched = F.grid_sample(
        pictures.float(),
        grid.float(),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return fetched.to(pictures.dtype)


def _zoom(maps: Tensor, size: int, place: tuple[float, float, float]) -> Tensor:
    """Enlarge a square of maps (B, C, h, w), by `View.place`, to (B, C, size, size)."""
    left, top, side = place
    along = (torch.arange(size, device=maps.device, dtype=maps.dtype) + 0.5) / size * side
    x, y = 2 * (left + along) - 1, 2 * (top + along) - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _pack(pictures: Tensor) -> Tensor:
    return F.pixel_unshuffle(pictures, SQUARE)


def _double(flow: Tensor) -> Tensor:
    return F.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False)


def _zeroed(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(cast(Tensor, convolution.bias))
    return convolution


class _Block(nn.Module):
    """A residual block that a motion scales and shifts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)
        self.conv2 = _zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.moved = nn.Linear(96, 2 * width)

    def forward(self, x: Tensor, moving: Tensor) -> Tensor:
        """x (B, C, h, w), moving (B, 96)."""
        scale, shift = self.moved(moving)[:, :, None, None].chunk(2, 1)
        y = self.conv1(F.gelu(self.norm1(x)))
        y = self.norm2(y) * (1 + scale) + shift
        return x + cast(Tensor, self.conv2(F.gelu(y)))
