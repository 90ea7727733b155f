"""The audio features of recordings that several rows of a batch use: computed once."""

from __future__ import annotations

import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keyface_cli.config import FPS
from keyface_cli.errors import FeaturesError
from keyface_cli.files import unwritable
from keyface_cli.media.audio import StoredWaveform, count_frames
from keyface_cli.media.features import StoredFeatures

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from keyface_cli.pipeline import KeyFacePipeline

KEPT = 8  # recordings; each has open files
KEPT_FRAMES = 3600 * FPS  # of all of them: 1.7 GB on disk with the published model's encoders
_BLOCK = 12 * FPS  # frames that are computed together, as `models.speech` does


class SharedFeatures(StoredFeatures):
    """The features of one encoder of a recording, kept in an unnamed file for later runs.

    A block is computed when a run first asks for one of its frames.

    Args:
        compute: returns those of neighbouring frames, (n, 2, D) float32.
        num_frames: N. `shape` is (N, 2) until a block is computed, then (N, 2, D).
        folder: where the file lies.
    """

    def __init__(self, compute: Callable[[range], Tensor], num_frames: int, folder: Path) -> None:
        super().__init__(folder, 0, (num_frames, 2))
        self._compute: Callable[[range], Tensor] | None = compute
        self._missing = set(range(0, num_frames, _BLOCK))
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise unwritable(folder, error, FeaturesError) from error
        weakref.finalize(self, self._file.close)

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the frames first..last, (last - first, 2, D); compute those that are not there.

        Raises:
            FeaturesError: the disk is full.
        """
        for start in range(first - first % _BLOCK, last, _BLOCK):
            if start in self._missing:
                self._add(start)
        _, tokens, width = self.shape
        try:
            self._file.seek(4 * first * tokens * width)
            found = self._file.read(4 * (last - first) * tokens * width)
        except OSError as error:
            raise unwritable(self.path, error, FeaturesError) from error
        return np.frombuffer(found, np.float32).reshape(last - first, tokens, width)

    def _add(self, start: int) -> None:
        assert self._compute is not None
        N = self.shape[0]
        block = self._compute(range(start, min(start + _BLOCK, N))).cpu().numpy()
        self.shape = (N, *block.shape[1:])
        try:
            self._file.seek(4 * start * block[0].size)
            self._file.write(block.tobytes())
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error, FeaturesError) from error
        self._missing.remove(start)
        if not self._missing:
            self._compute = None  # lets go of the waveform and of what the encoder keeps


class SharedSounds:
    """The features of the last few recordings that runs with one loaded model asked for."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, dict[str, SharedFeatures]] = OrderedDict()

    def of(
        self, key: Hashable, waveform: StoredWaveform, pipeline: KeyFacePipeline, folder: Path
    ) -> dict[str, SharedFeatures] | None:
        """Return the features of a recording, those of an earlier run where they are kept.

        Args:
            key: which recording it is, and which part of it.
            waveform: (S,), of which N = ceil(S / 640) video frames are made.
            pipeline: the model; the same in all calls until `clear`.
            folder: where what is kept lies.

        Returns:
            For each encoder (N, 2, D); None for a recording that is too long to be kept.

        Raises:
            FeaturesError: no file can be made there.
        """
        num_frames = count_frames(len(waveform))
        if num_frames > KEPT_FRAMES:
            return None
        if key not in self._kept:
            encoded = pipeline.engine.audio_features(waveform)
            self._kept[key] = {
                name: SharedFeatures(one.frames, num_frames, folder)
                for name, one in encoded.items()
            }
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT or self._frames > KEPT_FRAMES:
            self._kept.popitem(last=False)
        return self._kept[key]

    @property
    def _frames(self) -> int:
        return sum(next(iter(one.values())).shape[0] for one in self._kept.values())

    def clear(self) -> None:
        """Let go of everything, the model too."""
        self._kept.clear()
