"""How a face's points move: one field of displacements for every movement the rig can ask for.

A pose is a weighted sum of the fields and a turn of the head, so that all poses of a scene are one
matrix product. Lengths are in units of S, the distance between the irises; u and v are a point's
place right of and below the middle of the mouth in that unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.avatars import rig
from keyface_cli.avatars.photographs import mesh
from keyface_cli.avatars.photographs.mesh import Points

TURN = np.radians(12.0)  # of the head at yaw or pitch 1
JAW_DROP = 0.33  # of the lower lip's middle at jaw 1
LID_REACH = 0.97  # share of an open eye that a closed lid covers; the lower lid does the rest
IRIS_REACH = (0.085, 0.055)  # how far gaze 1 moves an iris, right and down
SHAPES = (
    *("jaw", "wide", "narrow", "round", "press", "tuck", "raise", "drop"),
    *("smile", "frown", "brow", "inner", "lid", "squint", "gaze_x", "gaze_y"),
)


def fields(points: Points, smile: Points) -> NDArray[Any]:
    """Return the displacement of every point in each of `SHAPES`, in pixels: (len(SHAPES), n, 3).

    Args:
        points: of the face at rest, landmarks first, (n, 3).
        smile: how this person's landmarks move in a smile, (478, 3), pixels.
    """
    S = mesh.eye_distance(points)
    centre = mesh.mouth_centre(points)
    u, v = ((points[:, :2] - centre) / S).T
    shapes = {name: np.zeros_like(points) for name in SHAPES}
    _mouth(shapes, points, u, v, S)
    _smile(shapes, points, smile, u, v, S)
    _brows(shapes, points, S)
    for eye in mesh.EYES:
        _eye(shapes, points, eye, S)
    return np.stack([shapes[name] for name in SHAPES]).astype(np.float32)


def _bump(x: NDArray[Any]) -> NDArray[Any]:
    result: NDArray[Any] = np.exp(-(x**2))
    return result


def _ease(x: NDArray[Any]) -> NDArray[Any]:
    """From 0 at 0 to 1 at 1, without corners."""
    x = np.clip(x, 0, 1)
    result: NDArray[Any] = x * x * (3 - 2 * x)
    return result


def _mouth(
    shapes: dict[str, Points],
    points: Points,
    u: NDArray[Any],
    v: NDArray[Any],
    S: float,
) -> None:
    half = float(np.abs(u[[61, 291]]).mean())  # of the mouth's width
    across = np.clip(1 - (np.abs(u) / (1.04 * half)) ** 2.4, 0, 1) ** 0.8  # 1 in the middle
    upper = [*mesh.UPPER_INNER, *mesh.UPPER_LIP, *mesh.UPPER_OUTER]
    lower = [*mesh.LOWER_INNER[1:-1], *mesh.LOWER_LIP, *mesh.LOWER_OUTER[1:-1]]
    chin = float(v[mesh.CHIN])

    drop = _bump(u / 1.05) * _ease(v / (0.8 * chin)) * np.exp(-np.clip(v - chin, 0, None) / 0.45)
    near = np.clip(1 - (np.abs(u) / half) ** 2, 0, 1) ** 0.5
    under = (v > 0.02) & (np.abs(u) < half * 0.9)  # what is between lip and chin goes with both
    drop = np.where(under, np.maximum(drop, near * 0.96), drop)
    drop[upper] = 0
    drop[lower] = 0.97 * across[lower]
    shapes["jaw"][:, 1] = JAW_DROP * S * drop
    shapes["jaw"][:, 2] = 0.10 * S * drop  # the chin goes back
    shapes["jaw"][:, 0] = -0.10 * S * u * _bump(u / 0.55) * _bump(v / 0.35)
    shapes["jaw"][upper, 1] -= 0.025 * S * across[upper]

    local = np.exp(-((u / 0.55) ** 2 + (v / 0.36) ** 2))
    shapes["wide"][:, 0] = 0.17 * S * u * local
    shapes["narrow"][:, 0] = -0.20 * S * u * local
    shapes["round"][:, 0] = -0.36 * S * u * local
    shapes["round"][:, 2] = -0.14 * S * local
    outer_up = np.array([*mesh.UPPER_OUTER[1:-1]])
    outer_low = np.array([*mesh.LOWER_OUTER[1:-1]])
    shapes["round"][outer_up, 1] -= 0.030 * S * across[outer_up]
    shapes["round"][outer_low, 1] += 0.035 * S * across[outer_low]
    for lips, line in (
        (mesh.UPPER_LIP, mesh.UPPER_INNER),
        (mesh.LOWER_LIP, mesh.LOWER_INNER),
        (mesh.UPPER_OUTER, mesh.UPPER_INNER),
        (mesh.LOWER_OUTER, mesh.LOWER_INNER),
    ):
        index = list(lips)
        line_y = np.interp(points[index, 0], points[list(line), 0], points[list(line), 1])
        shapes["press"][index, 1] = 0.42 * (line_y - points[index, 1]) * across[index]
    shapes["press"][:, 0] = 0.03 * S * u * local
    # the lower lip goes under the upper teeth
    index = [*mesh.LOWER_LIP, *mesh.LOWER_OUTER, *mesh.LOWER_INNER[1:-1]]
    shapes["tuck"][index, 1] = -0.075 * S * across[index]
    index = list(mesh.LOWER_INNER[1:-1])
    shapes["tuck"][index, 1] += 0.015 * S * across[index]
    lift = np.exp(-((u / 0.42) ** 2)) * _ease((0.32 + v) / 0.28) * (v < 0)
    shapes["raise"][:, 1] = -0.055 * S * lift
    shapes["raise"][upper, 1] = -0.060 * S * across[upper]
    shapes["raise"][lower, 1] = 0
    sink = np.exp(-((u / 0.42) ** 2)) * _ease(1 - (v - 0.1) / 0.3) * (v > 0)
    shapes["drop"][:, 1] = 0.055 * S * sink
    shapes["drop"][lower, 1] = 0.060 * S * across[lower]
    shapes["drop"][upper, 1] = 0


def _smile(
    shapes: dict[str, Points],
    points: Points,
    smile: Points,
    u: NDArray[Any],
    v: NDArray[Any],
    S: float,
) -> None:
    moved = smile.copy()
    # closed: both lips meet where their middle goes
    for top, bottom in zip(mesh.UPPER_INNER[1:-1], mesh.LOWER_INNER[1:-1], strict=True):
        middle = (moved[top] + moved[bottom]) / 2
        moved[top], moved[bottom] = middle, middle
    for upper, lower in (
        (mesh.UPPER_LIP, mesh.LOWER_LIP),
        (mesh.UPPER_OUTER[1:-1], mesh.LOWER_OUTER[1:-1]),
    ):
        for lips, inner in ((upper, mesh.UPPER_INNER), (lower, mesh.LOWER_INNER)):
            index, line = list(lips), list(inner)
            order = np.argsort(points[line, 0])
            parted = np.interp(
                points[index, 0],
                points[line, 0][order],
                (moved - smile)[line, 1][order],
            )
            moved[index, 1] += parted
    n = mesh.LANDMARKS
    away = _ease((np.hypot(u[:n], 0.75 * v[:n]) - 0.5) / 0.5)
    moved *= (1 - away)[:, None]
    for eye in mesh.EYES:  # lids are moved by what moves lids
        moved[[*eye.upper, *eye.lower, *eye.above, *range(eye.iris, eye.iris + 5)]] = 0
    shapes["smile"][:n] = moved
    for corner in (61, 291):
        near = np.exp(-(((u - u[corner]) / 0.26) ** 2 + ((v - v[corner]) / 0.24) ** 2))
        shapes["frown"][:, 1] += 0.11 * S * near
    line = [*mesh.UPPER_INNER, *mesh.LOWER_INNER, *mesh.UPPER_LIP, *mesh.LOWER_LIP]
    shapes["frown"][line, 0] *= 0.9


def _brows(shapes: dict[str, Points], points: Points, S: float) -> None:
    x, y = points[:, 0] / S, points[:, 1] / S
    for brow, side in zip(mesh.BROWS, (1, -1), strict=True):
        index = list(brow)
        order = np.argsort(x[index])
        line = np.interp(x, x[index][order], y[index][order])
        below = np.clip(y - line, 0, None) / 0.13
        above = np.clip(line - y, 0, None) / 0.45
        left, right = x[index].min(), x[index].max()
        beside = np.clip(left - x, 0, None) + np.clip(x - right, 0, None)
        weight = np.exp(-(below**2) - above**2 - (beside / 0.12) ** 2)
        shapes["brow"][:, 1] -= 0.13 * S * weight
        inner = np.clip((x - left) / (right - left), 0, 1)
        inner = inner if side > 0 else 1 - inner  # 1 at the nose
        shapes["inner"][:, 1] += 0.085 * S * weight * (inner - 0.25)
        shapes["inner"][:, 0] += side * 0.05 * S * weight * inner


def _eye(shapes: dict[str, Points], points: Points, eye: mesh.Eye, S: float) -> None:
    upper, lower = list(eye.upper), list(eye.lower)
    closing = LID_REACH * (points[lower] - points[upper])[:, :2]
    shapes["lid"][upper, :2] += closing
    shapes["lid"][list(eye.above), :2] += 0.45 * closing[1:-1]
    shapes["lid"][lower[1:-1], 1] -= 0.12 * closing[1:-1, 1]
    shapes["squint"][lower[1:-1], 1] -= 0.45 * closing[1:-1, 1]
    # the cheek below comes along
    x, y = points[:, 0], points[:, 1]
    middle = points[[upper[0], upper[-1]]].mean(0)
    low = points[lower, 1].max()
    cheek = np.exp(-(((x - middle[0]) / (0.32 * S)) ** 2)) * np.exp(
        -(((y - low - 0.08 * S) / (0.16 * S)) ** 2)
    )
    cheek[[*upper, *lower]] = 0
    shapes["squint"][:, 1] -= 0.03 * S * cheek * (y > low)
    iris = list(range(eye.iris, eye.iris + 5))
    shapes["gaze_x"][iris, 0] = IRIS_REACH[0] * S
    shapes["gaze_y"][iris, 1] = IRIS_REACH[1] * S
    # lids follow the eye down and up a little
    share = np.sin(np.linspace(0, np.pi, len(upper)))
    shapes["gaze_y"][upper, 1] += 0.5 * IRIS_REACH[1] * S * share


def weights(poses: NDArray[Any]) -> NDArray[Any]:
    """Turn poses (B, R) in rig order into the weight of each of `SHAPES`, (B, len(SHAPES))."""
    r = {name: poses[:, i] for i, name in enumerate(rig.NAMES)}
    blink = r["blink"]
    lid = r["lid"] + blink * (1 - r["lid"])
    tuck = np.clip(2 * r["teeth"] * r["press"], 0, 1)
    parted = np.clip(r["jaw"] / 0.07, 0, 1)
    return np.stack(
        [
            r["jaw"],
            np.clip(r["width"], 0, None) * (1 - 0.7 * r["round"]),
            np.clip(-r["width"], 0, None),
            r["round"],
            np.clip(r["press"] - tuck, 0, 1),
            tuck,
            parted * r["teeth"] * (1 - 0.4 * r["round"]) * (1 - 0.5 * tuck),
            parted * r["teeth"] * (1 - 0.6 * r["round"]) * (1 - tuck),
            np.clip(r["smile"], 0, None),
            np.clip(-r["smile"], 0, None),
            r["brow"],
            r["furrow"],
            np.clip(lid, -0.3, 1),
            np.clip(0.5 * r["smile"], 0, None) * (1 - blink),
            r["gaze_x"],
            r["gaze_y"] * (1 - blink),
        ],
        1,
    ).astype(np.float32)


def head_turns(poses: NDArray[Any]) -> NDArray[Any]:
    """Return the rotation of the head in each pose, (B, 3, 3): yaw, then pitch, then roll."""
    r = {name: poses[:, i] for i, name in enumerate(rig.NAMES)}
    yaw, pitch, roll = TURN * r["yaw"], TURN * r["pitch"], r["tilt"]
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def matrix(*rows: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        stacked: NDArray[Any] = np.stack([np.stack(row, 1) for row in rows], 1)
        return stacked

    c, s = np.cos(yaw), np.sin(yaw)
    # the nose lies at negative z and goes to the picture's right at positive yaw
    about_y = matrix((c, zero, -s), (zero, one, zero), (s, zero, c))
    c, s = np.cos(pitch), np.sin(pitch)
    about_x = matrix((one, zero, zero), (zero, c, -s), (zero, s, c))
    c, s = np.cos(roll), np.sin(roll)
    about_z = matrix((c, -s, zero), (s, c, zero), (zero, zero, one))
    result: NDArray[Any] = (about_z @ about_x @ about_y).astype(np.float32)
    return result
