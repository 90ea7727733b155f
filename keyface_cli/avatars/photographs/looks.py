"""What makes one photograph many: light, skin, hair, make-up, what is behind, and how it was taken.

Everything is done to the photograph once, before it moves, so that grain and shadows move along as
they do when a user's photograph is animated. Pictures are (P, P, 3) float32 RGB, 0 to 255.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.avatars.photographs import mesh
from keyface_cli.avatars.photographs.mesh import Points

Picture = NDArray[Any]
Mask = NDArray[Any]


def restyle(picture: Picture, cover: Mask, points: Points, rng: np.random.Generator) -> Picture:
    """Change skin, hair, lips and beard at random, each in some of the pictures.

    Args:
        picture: the photograph.
        cover: 1 where the person is, (P, P).
        points: the landmarks.
        rng: the source of chance.
    """
    if rng.random() < 0.35:
        picture = _retone_skin(picture, cover, points, rng)
    if rng.random() < 0.3:
        picture = _dye(picture, cover, points, rng)
    if rng.random() < 0.25:
        picture = _paint_lips(picture, points, rng)
    if rng.random() < 0.12:
        picture = _grow_beard(picture, points, rng)
    return picture


def light(picture: Picture, points: Points, rng: np.random.Generator) -> Picture:
    """Light the face from a side, and set exposure, contrast and the light's colour."""
    size = picture.shape[0]
    S = mesh.eye_distance(points)
    middle = points[list(mesh.OVAL), :2].mean(0)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    along = ((x - middle[0]) * np.cos(turn) + (y - middle[1]) * np.sin(turn)) / S
    strength = rng.uniform(0, 0.42) * (rng.random() < 0.6)
    gain = 1 + strength * np.tanh(1.1 * along)
    gain *= rng.uniform(0.72, 1.18)
    tint = 1 + rng.uniform(-0.07, 0.07) * np.array([1.0, 0.1, -1.0], np.float32)
    lit = picture * gain[..., None] * tint
    lit = 255 * (np.clip(lit, 0, 255) / 255) ** rng.uniform(0.8, 1.3)
    contrast = rng.uniform(0.85, 1.15)
    result: Picture = np.clip(128 + (lit - 128) * contrast, 0, 255).astype(np.float32)
    return result


def background(picture: Picture, cover: Mask) -> Picture:
    """Return what is behind a person, going on where the person hides it."""
    size = picture.shape[0]
    around = (1 - cover)[..., None]
    if around.mean() < 0.02:
        return np.full_like(picture, picture[: size // 16].mean())
    wide = 0.06 * size
    filled = cv2.GaussianBlur(picture * around, (0, 0), wide)
    share = cv2.GaussianBlur(around[..., 0], (0, 0), wide)[..., None]
    own = np.where(around > 0.98, picture, filled / np.maximum(share, 1e-3))
    result: Picture = np.clip(own, 0, 255).astype(np.float32)
    return result


def other_background(size: int, rng: np.random.Generator) -> Picture:
    """Draw a plain wall, a gradient, or things out of focus, (size, size, 3)."""
    first, second = rng.uniform(10, 245, (2, 3))
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    turn = rng.uniform(0, 2 * np.pi)
    along = np.clip((x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn) + 0.5, 0, 1)
    drawn = first + (second - first) * along[..., None]
    if rng.random() < 0.75:
        blots = rng.uniform(0, 255, (int(rng.integers(4, 16)), int(rng.integers(4, 16)), 3))
        far = cv2.resize(blots.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
        far = cv2.GaussianBlur(far, (0, 0), rng.uniform(0.005, 0.05) * size)
        drawn = drawn + rng.uniform(0.2, 0.9) * (far - drawn)
    grey = drawn.mean(2, keepdims=True)
    drawn = grey + (drawn - grey) * rng.uniform(0.05, 0.7)
    result: Picture = np.clip(drawn, 0, 255).astype(np.float32)
    return result


def expose(picture: Picture, rng: np.random.Generator) -> Picture:
    """Take the picture: out of focus, grain, black and white, JPEG, or by a painter's hand."""
    if rng.random() < 0.06:
        soft = cv2.bilateralFilter(np.clip(picture, 0, 255).astype(np.uint8), 9, 60, 7)
        steps = rng.uniform(8, 20)
        picture = np.round(soft.astype(np.float32) / steps) * steps
        picture = cv2.medianBlur(np.clip(picture, 0, 255).astype(np.uint8), 5).astype(np.float32)
    if rng.random() < 0.35:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.10:
        grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        tint = np.array([1.0, 1.0, 1.0]) + (rng.random() < 0.4) * np.array([0.08, 0.0, -0.12])
        picture = grey[..., None] * tint
    if rng.random() < 0.3:
        grain: Mask = rng.normal(0, rng.uniform(2, 10), picture.shape[:2])
        if rng.random() < 0.5:
            grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.5, 1.2))
        picture = picture + grain[..., None]
    saturation = rng.uniform(0.75, 1.25)
    grey = picture.mean(2, keepdims=True)
    picture = np.clip(grey + (picture - grey) * saturation, 0, 255)
    if rng.random() < 0.35:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 92))]
        _, data = cv2.imencode(".jpg", picture.astype(np.uint8)[..., ::-1], quality)
        picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
    return np.ascontiguousarray(picture, dtype=np.float32)


def _lab(picture: Picture) -> Picture:
    result: Picture = cv2.cvtColor(
        np.clip(picture, 0, 255).astype(np.float32) / 255, cv2.COLOR_RGB2LAB
    )
    return result


def _rgb(lab: Picture) -> Picture:
    result: Picture = np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255, 0, 255)
    return result


def _skin(lab: Picture, cover: Mask, points: Points) -> Mask:
    """Where the person's skin is, by its colour at the cheeks."""
    cheeks = np.concatenate([_around(lab, points[i], 8) for i in (50, 280, 151)])
    tone = np.median(cheeks, axis=0)
    away = np.hypot(lab[..., 1] - tone[1], lab[..., 2] - tone[2]) / 11
    dark = np.clip((0.45 * tone[0] - lab[..., 0]) / 8, 0, 1)
    mask = np.exp(-(away**2)) * (1 - dark) * cover
    result: Mask = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.0)
    return result


def _around(picture: Picture, point: NDArray[Any], reach: int) -> Picture:
    x, y = (int(v) for v in point[:2])
    x, y = max(x, reach), max(y, reach)
    return picture[y - reach : y + reach, x - reach : x + reach].reshape(-1, 3)


def _retone_skin(
    picture: Picture, cover: Mask, points: Points, rng: np.random.Generator
) -> Picture:
    lab = _lab(picture)
    mask = _skin(lab, cover, points)[..., None]
    changed = lab * np.array([rng.uniform(0.62, 1.12), 1, 1], np.float32)
    changed[..., 1:] += rng.uniform(-4, 4, 2)
    return _rgb((lab + mask * (changed - lab)).astype(np.float32))


def _dye(picture: Picture, cover: Mask, points: Points, rng: np.random.Generator) -> Picture:
    """Colour the hair: what is neither face nor skin, above the chin."""
    lab = _lab(picture)
    mask = cover * (1 - np.clip(1.6 * _skin(lab, cover, points), 0, 1))
    oval = points[list(mesh.OVAL), :2]
    middle = oval.mean(0)
    face = np.zeros(mask.shape, np.float32)
    cv2.fillPoly(face, [(middle + (oval - middle) * 0.97).astype(np.int32)], 1.0)
    below = np.clip((np.arange(mask.shape[0]) - points[mesh.CHIN, 1]) / 20, 0, 1)[:, None]
    mask = mask * (1 - cv2.GaussianBlur(face, (0, 0), 3)) * (1 - below)
    light = rng.uniform(0.6, 2.2)
    changed = lab.copy()
    changed[..., 0] = np.clip(lab[..., 0] * light, 0, 92)
    changed[..., 1] = changed[..., 1] * 0.3 + rng.uniform(-2, 22)
    changed[..., 2] = changed[..., 2] * 0.3 + rng.uniform(-6, 32)
    return _rgb((lab + mask[..., None] * (changed - lab)).astype(np.float32))


def _paint_lips(picture: Picture, points: Points, rng: np.random.Generator) -> Picture:
    mask = np.zeros(picture.shape[:2], np.float32)
    outer = points[[*mesh.UPPER_OUTER, *mesh.LOWER_OUTER[-2:0:-1]], :2]
    cv2.fillPoly(mask, [np.round(outer).astype(np.int32)], 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.8) * rng.uniform(0.25, 0.75)
    tone = np.array([rng.uniform(110, 205), rng.uniform(20, 95), rng.uniform(35, 110)])
    shade = picture.mean(2, keepdims=True) / max(float(picture[mask > 0.1].mean()), 1)
    result: Picture = (picture + mask[..., None] * (tone * shade - picture)).astype(np.float32)
    return result


def _grow_beard(picture: Picture, points: Points, rng: np.random.Generator) -> Picture:
    """Stubble or a short beard on jaw, chin and upper lip."""
    size = picture.shape[0]
    jaw = points[[*mesh.OVAL[8:28]], :2]
    top = points[[234, 205, 98, 2, 327, 425, 454], :2]
    outline = np.concatenate([jaw, top])
    hull = cv2.convexHull(np.round(outline).astype(np.int32))
    mask: Mask = np.zeros((size, size), np.float32)
    cv2.fillPoly(mask, [hull], 1.0)
    S = mesh.eye_distance(points)
    y = np.arange(size, dtype=np.float32)[:, None]
    nose = points[mesh.NOSE_BASE, 1]
    mask *= np.clip((y - nose) / (0.12 * S), 0, 1)
    u = np.abs(np.arange(size) - points[mesh.NOSE_BASE, 0])[None] / S
    mask *= np.clip((y - nose) / S * 2.2 + 1.35 - 1.6 * u, 0, 1)  # cheeks stay bare
    lips = points[[*mesh.UPPER_OUTER, *mesh.LOWER_OUTER[-2:0:-1]], :2]
    bare = np.zeros_like(mask)
    cv2.fillPoly(bare, [np.round(lips).astype(np.int32)], 1.0)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.05 * S)
    mask = mask * (1 - cv2.GaussianBlur(bare, (0, 0), 0.012 * S))
    hair = rng.normal(0, 1, (size, size)).astype(np.float32)
    kernel = np.zeros((9, 9), np.float32)
    kernel[:, 4] = 1 / 9
    strands = cv2.GaussianBlur(cv2.filter2D(hair, -1, kernel), (0, 0), 0.6) * 1.6
    tone = np.array([52.0, 38.0, 30.0]) * rng.uniform(0.5, 2.6)
    density = rng.uniform(0.25, 0.85)
    alpha = np.clip(mask * density * (0.75 + 0.5 * strands), 0, 0.95)[..., None]
    result: Picture = (picture + alpha * (tone - picture)).astype(np.float32)
    return result
