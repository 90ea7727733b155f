"""Frames between the 25 a second that the model makes, by optical flow; duration kept exact.

A frame at time t between two others is what both show, each moved along its flow to the other
(Kroeger et al. 2016, "Fast optical flow using dense inverse search", in OpenCV) by its share of the
way, and mixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS

Frame = NDArray[np.uint8]  # (H, W, 3)


class FrameRate:
    """The conversion of a video of `num_frames` at 25 fps to another rate, piece by piece.

    Frame j of the result is at source position 25 j / fps; what the last frame would be followed
    by is the last frame.

    Args:
        fps: frames a second of the result.
        num_frames: of the source, at least 1.
    """

    def __init__(self, fps: int, num_frames: int) -> None:
        self.fps, self.num_frames = fps, num_frames
        self.count = max(1, round(num_frames * fps / FPS))  # frames of the result
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    @property
    def looks_back(self) -> int:
        """How many source frames before a piece its conversion needs: 0 or 1."""
        return 0 if self.fps == FPS else 1

    def convert(self, first: int, stop: int, frames: NDArray[np.uint8]) -> Iterator[Frame]:
        """Yield the frames of the result that belong to source frames `first` to `stop`.

        Args:
            first: of the piece.
            stop: one past its last.
            frames: (n, H, W, 3), the source frames up to `stop`, from `first` - `looks_back` on
                (from 0 where `first` is 0).
        """
        if self.fps == FPS:
            yield from frames
            return
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the flow depends on how its work is shared out
        try:
            yield from self._between(first, stop, frames)
        finally:
            cv2.setNumThreads(threads)

    def _between(self, first: int, stop: int, frames: NDArray[np.uint8]) -> Iterator[Frame]:
        have = stop - len(frames)  # the source position of frames[0]
        begin = 0 if first == 0 else (first - 1) * self.fps // FPS + 1
        end = self.count if stop == self.num_frames else (stop - 1) * self.fps // FPS + 1
        pair, flows = -1, None
        for index in range(begin, end):
            position, part = divmod(FPS * index, self.fps)
            if not part or position >= self.num_frames - 1:
                yield frames[min(position, self.num_frames - 1) - have]
                continue
            a, b = frames[position - have], frames[position - have + 1]
            if pair != position or flows is None:
                pair, flows = position, (self._between_two(a, b), self._between_two(b, a))
            yield _mix(a, b, *flows, part / self.fps)

    def _between_two(self, a: Frame, b: Frame) -> NDArray[np.float32]:
        """Where each pixel of `a` is in `b`, (H, W, 2) in pixels."""
        if min(a.shape[:2]) < 16:  # too small for the flow's patches
            return np.zeros((*a.shape[:2], 2), np.float32)
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b)]
        start = np.zeros((*a.shape[:2], 2), np.float32)
        return np.asarray(self._flow.calc(grey[0], grey[1], start), np.float32)


def _mix(
    a: Frame, b: Frame, forward: NDArray[np.float32], backward: NDArray[np.float32], t: float
) -> Frame:
    """The frame at 0 < t < 1 between two."""
    rows, columns = np.indices(a.shape[:2], dtype=np.float32)

    def moved(frame: Frame, flow: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        x, y = columns - share * flow[..., 0], rows - share * flow[..., 1]
        warped = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped, np.float32)

    mixed = (1 - t) * moved(a, forward, t) + t * moved(b, backward, 1 - t)
    return np.asarray(mixed + 0.5, np.uint8)
