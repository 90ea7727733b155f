"""What is wrong with a video can be seen without a reference: flicker, seams, drift, jerks.

flicker   a pixel that leaves and comes back within three frames
seams     movement that breaks where two generated segments meet
drift     the picture's colours wander off from those of its first second
flow      frames that are not where the optical flow between their neighbours puts them
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, FrameMeasure, Measure
from keyface_cli.evaluation.metrics.flow import DESCRIPTION, DenseFlow

Gray = NDArray[np.float32]  # (H, W) luminance, 0 to 255
Picture = NDArray[np.uint8]  # (H, W, 3) RGB
LEAST_S = 5.0  # of which a slope a minute is worth stating
SEGMENT = 13  # frames from one keyframe to the next (`config.KEYFRAME_STEP`)


def luminance(frame: NDArray[np.uint8]) -> Gray:
    """Return (H, W) BT.601 luminance of (H, W, 3) RGB, 0 to 255."""
    return np.asarray(frame @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)


def gray_bytes(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) luminance of (H, W, 3) RGB, rounded."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


class _Neighbours(FrameMeasure):
    """A measure of each frame's luminance and that of the two beside it."""

    too_few = "fewer than 3 frames"

    @abstractmethod
    def of(self, before: Gray, frame: Gray, after: Gray) -> float:
        """Return the value of a frame."""

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        super().begin(clip)
        self._last: list[Gray] = []

    def add(self, block: Block) -> None:
        """See the next frames."""
        for frame in block.generated:
            self._last.append(luminance(frame))
            if len(self._last) == 3:
                self._track.append(self.of(*self._last))
                self._last.pop(0)


class Interpolated(FrameMeasure):
    """How near every second frame is to what its two neighbours predict; 1 is the same."""

    too_few = "fewer than 3 frames"

    @abstractmethod
    def between(self, before: Picture, after: Picture) -> NDArray[Any]:
        """Return what is predicted, (H, W, 3), 0 to 255."""

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        super().begin(clip)
        self._last: list[Picture] = []

    def add(self, block: Block) -> None:
        """See the next frames."""
        for frame in block.generated:
            self._last.append(frame)
            if len(self._last) == 3:
                before, middle, after = self._last
                away = np.abs(self.between(before, after).astype(np.float32) - middle)
                self._track.append(1 - float(away.mean()) / 255)
                self._last = [after]

    def end(self) -> Figures:
        """Finish the clip."""
        return replace(super().end(), tracks={})  # every second frame has none


class Flicker(_Neighbours):
    """How far a pixel lies outside of the range of its two neighbours in time, in grey levels."""

    name = "flicker"
    columns = (Column("flicker", "Flicker", "lower", 3),)
    definition: ClassVar = {
        "definition": "mean distance of luminance (0..255) from the interval of the frames before "
        "and after"
    }

    def of(self, before: Gray, frame: Gray, after: Gray) -> float:
        """Return the mean distance from the interval of the two beside it."""
        outside = np.maximum(np.minimum(before, after) - frame, frame - np.maximum(before, after))
        return float(np.maximum(outside, 0).mean())


class Seams(_Neighbours):
    """How much more the movement changes at segment borders than elsewhere; 1 is no seam."""

    name = "seams"
    columns = (Column("seams", "Seams", "lower", 3),)
    definition: ClassVar = {
        "definition": "mean |f(t-1) - 2 f(t) + f(t+1)| of luminance at borders, divided by that "
        "elsewhere",
        "segment": SEGMENT,
    }

    def of(self, before: Gray, frame: Gray, after: Gray) -> float:
        """Return the mean change of the movement."""
        return float(np.abs(before - 2 * frame + after).mean())

    def end(self) -> Figures:
        """Finish the clip."""
        change = np.array(self._track)  # of frames 1 to T - 2
        border = (np.arange(len(change)) + 1) % SEGMENT == 0
        if not border.any() or border.all():
            return self.unscored(f"shorter than two segments of {SEGMENT} frames")
        elsewhere = float(change[~border].mean())
        if elsewhere == 0:
            return self.unscored("nothing moves")
        return Figures({"seams": float(change[border].mean()) / elsewhere})


class ColourDrift(Measure):
    """How fast the colours leave those of the first second: CIE76 distance a minute."""

    name = "drift"
    columns = (Column("colour_drift", "Colour drift", "lower", 2),)
    definition: ClassVar = {
        "definition": "slope over time of the CIE76 distance between the mean colours of an 8 x 8 "
        "grid and those of the first second",
        "unit": "delta E a minute",
    }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._fps = clip.fps
        self._grids: list[NDArray[np.float32]] = []

    def add(self, block: Block) -> None:
        """See the next frames."""
        for frame in block.generated:
            small = cv2.resize(frame, (8, 8), interpolation=cv2.INTER_AREA)
            lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
            self._grids.append(np.asarray(lab, np.float32))

    def end(self) -> Figures:
        """Finish the clip."""
        second = round(self._fps)
        if len(self._grids) < LEAST_S * self._fps:
            return self.unscored(f"shorter than {LEAST_S:g} s")
        grids = np.stack(self._grids)
        distance = np.linalg.norm(grids - grids[:second].mean(axis=0), axis=-1).mean(axis=(1, 2))
        minutes = np.arange(len(distance)) / self._fps / 60
        slope = float(np.polyfit(minutes[second:], distance[second:], 1)[0])
        return Figures({"colour_drift": slope}, tracks={"colour distance": distance})


class FlowSmoothness(Interpolated):
    """How well each frame is predicted from its neighbours by optical flow; 1 is perfectly.

    It is VBench's motion smoothness with OpenCV's DIS flow in place of a trained interpolation
    network, and another number: never compare the two.
    """

    name = "flow"
    columns = (Column("flow_smoothness", "Flow smoothness", "higher", 4),)
    definition: ClassVar = {
        "definition": "1 - mean |odd frame - its prediction| / 255; the prediction is both "
        "neighbours warped half-way along the DIS flow between them, and their mean",
        "flow": DESCRIPTION,
    }

    def between(self, before: Picture, after: Picture) -> NDArray[np.float32]:
        """Return both neighbours warped half-way to each other, and their mean."""
        flow, first, last = DenseFlow(), gray_bytes(before), gray_bytes(after)
        onward, back = flow(first, last), flow(last, first)
        pair = _warp(before, -0.5 * onward), _warp(after, -0.5 * back)
        return np.asarray(sum(pair) / 2, np.float32)


def _warp(frame: NDArray[np.uint8], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 frame whose pixel p is that of `frame` at p + offset(p)."""
    h, w = frame.shape[:2]
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    place = (x + offset[..., 0], y + offset[..., 1])
    picture = frame.astype(np.float32)
    warped = cv2.remap(picture, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.float32)
