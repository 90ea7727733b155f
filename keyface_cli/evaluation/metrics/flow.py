"""Optical flow that needs no weights: OpenCV's dense inverse search."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

DESCRIPTION = "OpenCV DIS, preset medium"


class DenseFlow:
    """Where each pixel of one grey picture goes in another."""

    def __init__(self) -> None:
        library = cast(Any, cv2)  # its types lack the class
        self._flow = library.DISOpticalFlow_create(library.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (H, W, 2) offsets x, y in pixels from `first` (H, W) to `second`."""
        return np.asarray(self._flow.calc(first, second, None), np.float32)
