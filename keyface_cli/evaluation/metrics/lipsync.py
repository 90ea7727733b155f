"""Whether the mouth moves with the sound, without a reference: its opening against loudness.

The face is turned upright by five points. The opening is read from the optical flow between the
mouth's median picture and each frame: how much further the lower lip went down than the upper one.
On rendered avatars it correlates with the jaw that was drawn by 0.94 to 0.99.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import SAMPLE_RATE
from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Measure
from keyface_cli.evaluation.metrics.flow import DenseFlow
from keyface_cli.evaluation.metrics.unreferenced import gray_bytes
from keyface_cli.evaluation.networks.faces import SOURCE, upright_transform
from keyface_cli.media.audio import load_waveform

Track = NDArray[np.float64]
MAX_LAG_S = 0.4
_EYES = 64  # pixels between the eyes of the upright mouth picture
_LEFT, _TOP, _RIGHT, _BOTTOM = -0.8, 0.55, 0.8, 1.7  # its window, in distances between the eyes
_UPPER, _LOWER = (0.15, 0.4), (0.62, 0.85)  # rows of the two lips, of the window's height
_FLOOR = 1e-3  # -60 dB of full scale: quieter is silence
_LEAST_S = 1.0
_REACH = 6  # frames to each side over which the points are smoothed


class LipSync(Measure):
    """Correlation of mouth opening with loudness, and the offset at which it is greatest."""

    name = "sync"
    columns = (
        Column("sync_correlation", "Lip-to-sound r", "higher", 3),
        Column("sync_offset_ms", "Lip-to-sound offset (ms)", "neither", 0),
    )
    definition: ClassVar = {
        "definition": "Pearson correlation of mouth opening (vertical DIS flow of the lower lip "
        "minus the upper one, from the clip's median mouth) with log RMS of the sound of each "
        f"frame, at the offset within {MAX_LAG_S * 1000:.0f} ms where it is greatest; a positive "
        "offset means that the mouth comes late",
        "landmarks": SOURCE,
    }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._clip = clip
        self._opening = MouthOpening()

    def add(self, block: Block) -> None:
        """See the next frames."""
        self._opening.add(block.generated, block.faces[0])

    def end(self) -> Figures:
        """Finish the clip."""
        try:
            loud = loudness(self._clip.generated, self._clip.fps)
            opening = self._opening.track()
        except (KeyFaceError, ValueError) as error:
            return self.unscored(str(error))
        count = min(len(loud), len(opening))
        lag, r = best_lag(opening[:count], loud[:count], round(MAX_LAG_S * self._clip.fps))
        if count < _LEAST_S * self._clip.fps or not np.isfinite(r):
            reason = "shorter than a second" if count < _LEAST_S * self._clip.fps else "it is still"
            return self.unscored(reason)
        values = {"sync_correlation": r, "sync_offset_ms": 1000 * lag / self._clip.fps}
        return Figures(values, tracks={"mouth opening": opening, "loudness": loud})


class MouthOpening:
    """Collects upright mouth pictures of a clip, 8 kB a frame, and reads the opening of each."""

    def __init__(self) -> None:
        self._points: list[Track] = []  # of every frame from the first with a face on
        self._waiting: list[NDArray[np.uint8]] = []  # frames whose following points are unknown
        self.pictures: list[NDArray[np.uint8]] = []  # upright mouths (h, w) that `track` has seen
        self._faceless = 0  # frames before the first face

    def add(self, frames: NDArray[np.uint8], points: NDArray[np.float32]) -> None:
        """Add frames (n, H, W, 3) and their five points (n, 5, 2), NaN without a face.

        A frame without a face takes the points of the one before.
        """
        for frame, found in zip(frames, points, strict=True):
            if np.isfinite(found).all():
                self._points.append(found.astype(np.float64))
            elif self._points:
                self._points.append(self._points[-1])
            else:
                self._faceless += 1
                continue
            self._waiting.append(gray_bytes(frame))
            if len(self._waiting) > _REACH:
                self._cut_next()

    def track(self) -> Track:
        """Return (T,) openings, in distances between the eyes; 0 is the median's.

        Raises:
            ValueError: no frame has a face.
        """
        if not self._points:
            raise ValueError("no face was found in any frame")
        while self._waiting:
            self._cut_next()
        rest = np.median(np.stack(self.pictures), axis=0).astype(np.uint8)
        flow = DenseFlow()
        h, w = rest.shape
        middle = slice(w // 4, w - w // 4)
        lips = [slice(int(a * h), int(b * h)) for a, b in (_UPPER, _LOWER)]
        track = [0.0] * self._faceless
        for picture in self.pictures:
            down = flow(rest, picture)[..., 1]
            upper, lower = (float(down[rows, middle].mean()) for rows in lips)
            track.append((lower - upper) / _EYES)
        return np.array(track)

    def _cut_next(self) -> None:
        """Cut the mouth out of the oldest waiting frame, with points smoothed around it."""
        t = len(self.pictures)
        m = min(_REACH, t, len(self._points) - 1 - t)
        matrix = upright_transform(np.mean(self._points[t - m : t + m + 1], axis=0), _EYES)
        matrix[:, 2] -= np.array([_LEFT, _TOP]) * _EYES
        size = (round((_RIGHT - _LEFT) * _EYES), round((_BOTTOM - _TOP) * _EYES))
        gray = self._waiting.pop(0)
        cut = cv2.warpAffine(gray, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        self.pictures.append(np.asarray(cut, np.uint8))


def loudness(path: Path, fps: float) -> Track:
    """Return (T,) natural log of the RMS of each frame's sound, of 1 as full scale, from -6.9 up.

    Raises:
        KeyFaceError: the file holds no sound.
    """
    wave = load_waveform(path).astype(np.float64)
    edges = np.round(np.arange(1, 1 + round(len(wave) / SAMPLE_RATE * fps)) * SAMPLE_RATE / fps)
    pieces = np.split(wave, edges.astype(int))[: len(edges)]
    rms = [float(np.sqrt((piece**2).mean())) if len(piece) else 0.0 for piece in pieces]
    return np.log(np.array(rms) + _FLOOR)


def best_lag(late: Track, early: Track, reach: int) -> tuple[int, float]:
    """Return by how many frames `late` follows `early`, and their correlation at that lag.

    Args:
        late: (T,).
        early: (T,).
        reach: greatest lag that is tried, in both directions; less where T is short.

    Returns:
        The lag of the greatest correlation, nearest to 0 of equal ones; NaN where a track is still.
    """
    best = (0, float("nan"))
    reach = min(reach, len(late) // 2)
    for lag in sorted(range(-reach, reach + 1), key=abs):
        a = late[lag:] if lag >= 0 else late[:lag]
        b = early[: len(early) - lag] if lag >= 0 else early[-lag:]
        if len(a) > 2 and a.std() > 1e-9 and b.std() > 1e-9:
            r = float(np.corrcoef(a, b)[0, 1])
            if not best[1] >= r:
                best = (lag, r)
    return best
