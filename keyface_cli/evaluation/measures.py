"""What every metric is: it sees a clip block by block, keeps little, and answers at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from keyface_cli.evaluation.networks.faces import Points, find_face
from keyface_cli.media.frames import AS_IT_IS, Conform

Frames = NDArray[np.uint8]  # (n, H, W, 3) RGB
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Args:
        key: its name in CSV and JSON.
        label: its heading, without an arrow.
        better: which way is better.
        digits: after the point.
    """

    key: str
    label: str
    better: Better
    digits: int = 3

    @property
    def arrow(self) -> str:
        """Return the arrow that follows the label."""
        return {"higher": "↑", "lower": "↓", "neither": ""}[self.better]


@dataclass(frozen=True)
class Clip:
    """A generated clip and what it is compared with, after they were made comparable.

    Args:
        name: of the pair.
        generated: its file.
        reference: the true clip's file, None where there is none.
        fps: rate of both.
        frames: of both.
        size: width and height of both.
        emotion: the CSV curve that was asked for, None where there is none.
        label: the class of non-speech sound in the recording, None where it is not known.
        conform: how the generated file is brought to this rate, size and length.
        reference_conform: the same of the reference's.
    """

    name: str
    generated: Path
    reference: Path | None
    fps: float
    frames: int
    size: tuple[int, int]
    emotion: Path | None = None
    label: str | None = None
    conform: Conform = AS_IT_IS
    reference_conform: Conform = AS_IT_IS


@dataclass
class Block:
    """Consecutive frames of a clip; faces are found in them once for all metrics that ask.

    Args:
        start: index of the first frame.
        generated: the frames.
        reference: as many of the true clip, None where there is none.
    """

    start: int
    generated: Frames
    reference: Frames | None

    @cached_property
    def faces(self) -> tuple[Points, NDArray[np.float32]]:
        """Points (n, 5, 2) and boxes (n, 4) of the generated frames, NaN without a face."""
        return _find_faces(self.generated)

    @cached_property
    def reference_faces(self) -> tuple[Points, NDArray[np.float32]]:
        """The same of the reference's frames."""
        assert self.reference is not None
        return _find_faces(self.reference)


def _find_faces(frames: Frames) -> tuple[Points, NDArray[np.float32]]:
    points, boxes = zip(*map(find_face, frames), strict=True)
    return np.stack(points), np.stack(boxes)


@dataclass(frozen=True)
class Figures:
    """What a metric says of one clip.

    Args:
        values: column -> figure; a column that is not here was not scored.
        reasons: column -> why it was not scored.
        tracks: name -> one value a frame, for plots.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    tracks: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)


class Measure(ABC):
    """A metric; one object serves the clips of all methods, one after the other."""

    name: ClassVar[str]  # as --metrics takes it
    needs_reference: ClassVar[bool] = False
    definition: ClassVar[dict[str, Any]] = {}  # what `protocol` says where nothing is chosen
    columns: tuple[Column, ...]

    def protocol(self) -> dict[str, Any]:
        """Return what is needed to repeat the figures: definitions and settings."""
        return self.definition

    @abstractmethod
    def begin(self, clip: Clip) -> None:
        """Start a clip."""

    @abstractmethod
    def add(self, block: Block) -> None:
        """See the next frames."""

    @abstractmethod
    def end(self) -> Figures:
        """Finish the clip."""

    def forget(self) -> None:  # noqa: B027 -- most metrics keep nothing of a clip
        """Drop the clip that was begun: its file turned out to be damaged."""

    def unscored(self, reason: str) -> Figures:
        """Return the answer that no column could be scored."""
        return Figures(reasons={column.key: reason for column in self.columns})


class FrameMeasure(Measure):
    """A metric of one column: the mean over frames of a value that `add` puts into `_track`."""

    too_few: ClassVar[str] = "no frames"  # why a clip without any value is not scored

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._track: list[float] = []

    def end(self) -> Figures:
        """Finish the clip."""
        if not self._track:
            return self.unscored(self.too_few)
        key, track = self.columns[0].key, np.array(self._track)
        return Figures({key: float(track.mean())}, tracks={key: track})


class SetMeasure(Measure):
    """A metric of a whole set of clips, as FID; `end` says only what cannot be scored."""

    @abstractmethod
    def restart(self) -> None:
        """Start another method: drop the clips of the one before, and keep the network."""

    @abstractmethod
    def overall(self, weights: NDArray[np.float64] | None = None) -> dict[str, float]:
        """Return the figures of all clips so far.

        Args:
            weights: how often each clip counts, in the order in which they ended; None: once.
        """
