"""From the model's square to the picture of the result: resized, or back in the whole portrait."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.errors import VideoError
from keyface_cli.media.crop import Crop, cut
from keyface_cli.media.framing import LARGEST_SIDE, SMALLEST_SIDE

MOST_PIXELS = 3840 * 2160  # 4K
FEATHER = 0.1  # of the square's side: where the face fades into the picture
_RING = 0.12  # of the side: where the colours of both are compared
_MOST_CORRECTED = 48.0  # of 255
Frame = NDArray[np.uint8]  # (H, W, 3)


class Composer(Protocol):
    """Turns a frame of the model, (R, R, 3), into one of the result, (H, W, 3)."""

    @property
    def size(self) -> tuple[int, int]:
        """W and H."""

    def __call__(self, frame: Frame) -> Frame:
        """Return the composed frame; the same for the same frame."""


def output_size(
    picture: tuple[int, int], box: tuple[int, int] | None, even: bool
) -> tuple[int, int, float]:
    """Return width, height and scale of a result that is never squashed.

    Args:
        picture: width and height of what is shown.
        box: what it is to fit into, as large as it can; None is its own size, at most 4K.
        even: leave out the last row and column where their numbers are odd.

    Raises:
        VideoError: a side is too short for a video.
    """
    width, height = picture
    if box is None:
        scale = min(1.0, LARGEST_SIDE / max(picture), math.sqrt(MOST_PIXELS / (width * height)))
    else:
        scale = min(box[0] / width, box[1] / height)
    step = 2 if even else 1
    sides = [max(step, round(side * scale) // step * step) for side in picture]
    if min(sides) < SMALLEST_SIDE:
        raise VideoError(
            f"a picture of {width} x {height} would be a video of {sides[0]} x {sides[1]} pixels",
            "leave out --paste-back, or choose a larger --size",
        )
    return sides[0], sides[1], scale


@dataclass(frozen=True)
class Resize:
    """The model's square, larger or smaller.

    Args:
        size: W and H of the result.
    """

    size: tuple[int, int]

    def __call__(self, frame: Frame) -> Frame:
        """Return the frame in the size asked for."""
        if frame.shape[1::-1] == self.size:
            return frame
        smaller = self.size[0] < frame.shape[1]
        method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(frame, self.size, interpolation=method), np.uint8)


class PasteBack:
    """The animated square in the whole portrait, feathered, its colours those of the portrait.

    Each frame is matched by itself, so that nothing can drift: along the ring at the edge of the
    square, where the picture hardly moves, the difference to the portrait is fitted by a plane for
    each channel, leaving out what differs most, and added to the whole square.

    Args:
        picture: the portrait, RGB.
        crop: its square that was animated.
        resolution: R, of the model.
        box: see `output_size`.
        even: see `output_size`.
    """

    def __init__(
        self,
        picture: Image.Image,
        crop: Crop,
        resolution: int,
        box: tuple[int, int] | None,
        even: bool,
    ) -> None:
        width, height, scale = output_size(picture.size, box, even)
        self.size = (width, height)
        if scale != 1:
            whole = [max(2, round(side * scale)) for side in picture.size]
            picture_shown = picture.resize((whole[0], whole[1]), Image.Resampling.LANCZOS)
        else:
            picture_shown = picture
        self._base = np.ascontiguousarray(np.asarray(picture_shown)[:height, :width])
        R = self._resolution = resolution
        matrix = scale * crop.matrix(R)
        corners = matrix @ np.array([[0, R, R, 0], [0, 0, R, R], [1, 1, 1, 1]])
        low = np.clip(np.floor(corners.min(axis=1)), 0, [width, height]).astype(int)
        high = np.clip(np.ceil(corners.max(axis=1)), 0, [width, height]).astype(int)
        self._place = np.s_[low[1] : high[1], low[0] : high[0]]
        self._extent = (int(high[0] - low[0]), int(high[1] - low[1]))
        # OpenCV counts from the middle of a pixel
        matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5 - low
        self._step = float(np.hypot(*matrix[:, 0]))  # pixels of the result for one of the model
        self._matrix = matrix
        inward = np.minimum(np.arange(R) + 0.5, R - np.arange(R) - 0.5) / R
        edge = np.minimum(inward[:, None], inward[None])
        ramp = np.clip((edge - 1.5 / R) / FEATHER, 0, 1)  # 0 in the outermost pixels
        mask = self._warp((ramp**2 * (3 - 2 * ramp)).astype(np.float32))
        self._mask = np.clip(mask, 0, 1)[..., None]
        self._below = self._base[self._place].astype(np.float32) * (1 - self._mask)
        self._prepare_colours(np.asarray(cut(picture, crop, R), np.float32), edge < _RING)

    def _prepare_colours(self, portrait: NDArray[np.float32], ring: NDArray[np.bool_]) -> None:
        R = self._resolution
        along = (np.arange(R, dtype=np.float32) + 0.5) / R * 2 - 1
        plane = np.stack(
            [np.ones((R, R), np.float32), *np.broadcast_arrays(along[None], along[:, None])], -1
        )
        stride = max(1, R // 128)
        chosen = np.zeros_like(ring)
        chosen[::stride, ::stride] = ring[::stride, ::stride]
        self._plane, self._chosen = plane, chosen
        self._ring_plane = plane[chosen].astype(np.float64)  # (n, 3)
        self._ring_colours = portrait[chosen].astype(np.float64)  # (n, 3)

    def __call__(self, frame: Frame) -> Frame:
        """Return the portrait with the frame in it."""
        warped = self._warp(frame.astype(np.float32) + self._correction(frame))
        blended = self._below + self._mask * warped
        result = self._base.copy()
        result[self._place] = np.clip(blended + 0.5, 0, 255).astype(np.uint8)
        return result

    def _correction(self, frame: Frame) -> NDArray[np.float32]:
        """What to add to a frame, (R, R, 3)."""
        difference = self._ring_colours - frame[self._chosen]
        fit = np.linalg.lstsq(self._ring_plane, difference, rcond=None)[0]
        error = np.abs(difference - self._ring_plane @ fit).max(axis=1)
        still = error <= np.median(error)  # hair and shoulders move, the rest does not
        if still.sum() >= 12:
            fit = np.linalg.lstsq(self._ring_plane[still], difference[still], rcond=None)[0]
        correction = np.clip(self._plane @ fit, -_MOST_CORRECTED, _MOST_CORRECTED)
        return np.asarray(correction, np.float32)

    def _warp(self, square: NDArray[np.float32]) -> NDArray[np.float32]:
        """A square (R, R, ...) in its place of the result, (h, w, ...)."""
        matrix = self._matrix
        if self._step < 0.7:  # smaller than drawn: warping alone would alias
            side = max(1, round(self._resolution * self._step))
            square = np.asarray(
                cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.float32
            )
            ratio = self._resolution / side
            matrix = matrix.copy()
            matrix[:, 2] += matrix[:, :2] @ np.full(2, (ratio - 1) / 2)
            matrix[:, :2] *= ratio
        flags = cv2.INTER_CUBIC if self._step > 1 else cv2.INTER_LINEAR
        warped = cv2.warpAffine(
            square, matrix, self._extent, flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(warped, np.float32)
