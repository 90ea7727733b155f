"""The controls of the talking head: what moves, in which range, and what it does.

A pose is a vector of these controls in this order; a performance is (N, R), poses at 25 fps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Control(NamedTuple):
    """One control: its name, its range, its value at rest and what it does."""

    name: str
    low: float
    high: float
    rest: float
    what: str


CONTROLS = (
    Control("jaw", 0.0, 1.0, 0.0, "opens the mouth; 1 is a wide open 'ah'"),
    Control("width", -1.0, 1.0, 0.0, "spreads (1, 'ee') or narrows (-1) the lips"),
    Control("round", 0.0, 1.0, 0.0, "rounds and protrudes the lips ('oo')"),
    Control("press", 0.0, 1.0, 0.0, "presses the lips together ('m', 'b', 'p')"),
    Control("teeth", 0.0, 1.0, 0.0, "how far the teeth show between open lips"),
    Control("tongue", 0.0, 1.0, 0.0, "lifts the tongue tip to the teeth ('l', 'th')"),
    Control("smile", -1.0, 1.0, 0.0, "lifts (1) or lowers (-1) the mouth corners"),
    Control("brow", -1.0, 1.0, 0.0, "raises (1) or lowers (-1) the brows"),
    Control(
        "furrow", -1.0, 1.0, 0.0, "draws the inner brow ends down (1, anger) or up (-1, sorrow)"
    ),
    Control("lid", -0.3, 1.0, 0.05, "closes the eyelids; 1 is a blink, below 0 wide open"),
    Control("gaze_x", -1.0, 1.0, 0.0, "turns the eyes to the picture's right"),
    Control("gaze_y", -1.0, 1.0, 0.0, "turns the eyes down"),
    Control("tilt", -0.12, 0.12, 0.0, "leans the head to the side, radians"),
    Control("shift_x", -0.06, 0.06, 0.0, "moves the head sideways, half-pictures"),
    Control("shift_y", -0.06, 0.06, 0.0, "moves the head down, half-pictures"),
    Control("yaw", -1.0, 1.0, 0.0, "turns the face sideways; 1 is some twelve degrees"),
    Control("pitch", -1.0, 1.0, 0.0, "nods the face down (1) or up (-1), as far as yaw"),
    Control("blink", 0.0, 1.0, 0.0, "closes the lids from wherever they are; 1 is closed"),
)
NAMES = tuple(control.name for control in CONTROLS)
INDEX = {name: i for i, name in enumerate(NAMES)}
REST = tuple(control.rest for control in CONTROLS)
FACE = ("jaw", "width", "round", "press", "teeth", "smile", "brow", "furrow", "lid")
"""Those that readers of faces read: mouth, brows and lids, alike when the picture is mirrored."""


def as_seen(poses: Tensor) -> Tensor:
    """Return poses (..., R) whose lids are where a blink has taken them, as a face shows them."""
    seen = poses.clone()
    lid, blink = poses[..., INDEX["lid"]], poses[..., INDEX["blink"]]
    seen[..., INDEX["lid"]] = torch.lerp(lid, torch.ones_like(lid), blink)
    return seen
