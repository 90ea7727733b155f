"""Emotion of a face, frame by frame: EmotiEffLib's network, against a curve or the true video."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.emotion import read_curve
from keyface_cli.emotion.face_model import OUTPUTS, SIDE, FaceModel
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Frames, Measure

Track = NDArray[np.float64]
_STILL = 1e-6  # variance below which a track has no direction to agree in
AXES = ("valence", "arousal")


def read_face(network: FaceModel, frame: Frames, box: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (10,): scores of eight classes, valence, arousal; NaN without a face.

    Args:
        network: the reader.
        frame: (H, W, 3) RGB.
        box: left, top, width, height.
    """
    if not np.isfinite(box).all():
        return np.full(OUTPUTS, np.nan, np.float32)
    left, top = np.maximum(box[:2].astype(int), 0)
    right, bottom = np.ceil(box[:2] + box[2:]).astype(int)
    face = frame[top : max(bottom, top + 1), left : max(right, left + 1)]
    return network.read(np.asarray(cv2.resize(face, (SIDE, SIDE)), np.uint8))


def concordance(a: Track, b: Track) -> float:
    """Return the concordance (Lin 1989) of two tracks: 1 equal; NaN where both stand still."""
    spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    if spread < _STILL:
        return float("nan")
    return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / spread)


def agreement(seen: Track, wanted: Track) -> dict[str, float]:
    """Return ccc, pearson, rmse and sign of two tracks; those that are not defined are left out.

    The sign is compared where the wanted value is at least 0.05 from 0.
    """
    result = {"rmse": float(np.sqrt(((seen - wanted) ** 2).mean()))}
    if np.isfinite(ccc := concordance(seen, wanted)):
        result["ccc"] = ccc
    if min(seen.var(), wanted.var()) > _STILL:
        result["pearson"] = float(np.corrcoef(seen, wanted)[0, 1])
    clear = np.abs(wanted) >= 0.05
    if clear.any():
        result["sign"] = float((np.sign(seen[clear]) == np.sign(wanted[clear])).mean())
    return result


class Affect(Measure):
    """Valence and arousal against the curve that was asked for, else against the true video.

    Args:
        network: reads the faces.
    """

    name = "emotion"
    definition: ClassVar = {
        "network": "EmotiEffLib enet_b0_8_va_mtl, faces by MTCNN",
        "target": "the curve of each clip where there is one, else the true video",
        "accuracy": "frames whose class of eight is that of the true video's frame",
    }

    def __init__(self, network: FaceModel) -> None:
        self._network = network
        kinds = (
            ("ccc", "CCC", "higher"),
            ("pearson", "r", "higher"),
            ("rmse", "RMSE", "lower"),
            ("sign", "sign", "higher"),
        )
        columns = [
            Column(f"{axis}_{kind}", f"{axis.capitalize()} {label}", better)  # type: ignore[arg-type]
            for axis in AXES
            for kind, label, better in kinds
        ]
        self.columns = (*columns, Column("emotion_accuracy", "Emotion accuracy", "higher"))

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._clip = clip
        self._seen: list[NDArray[np.float32]] = []
        self._true: list[NDArray[np.float32]] = []

    def add(self, block: Block) -> None:
        """See the next frames."""
        _, boxes = block.faces
        self._seen += self._read(block.generated, boxes)
        if block.reference is not None:
            _, boxes = block.reference_faces
            self._true += self._read(block.reference, boxes)

    def _read(self, frames: Frames, boxes: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [read_face(self._network, *pair) for pair in zip(frames, boxes, strict=True)]

    def end(self) -> Figures:
        """Finish the clip."""
        seen = np.stack(self._seen).astype(np.float64)
        true = np.stack(self._true).astype(np.float64) if self._true else None
        wanted = None if true is None else true[:, -2:]
        if self._clip.emotion is not None:
            times = np.arange(len(seen)) / self._clip.fps
            wanted = read_curve(self._clip.emotion).at(times)
        if wanted is None:
            return self.unscored("neither a curve nor a reference")
        found = np.isfinite(seen).all(1) & np.isfinite(wanted).all(1)
        if not found.any():
            return self.unscored("no face was found in any frame")
        values = {}
        for i, axis in enumerate(AXES):
            for kind, value in agreement(seen[found, -2 + i], wanted[found, i]).items():
                values[f"{axis}_{kind}"] = value
        if true is not None and (both := found & np.isfinite(true).all(1)).any():
            same = seen[both, :8].argmax(1) == true[both, :8].argmax(1)
            values["emotion_accuracy"] = float(same.mean())
        missing = {
            c.key: "not defined for these tracks" for c in self.columns if c.key not in values
        }
        tracks = {f"seen {axis}": seen[:, -2 + i] for i, axis in enumerate(AXES)}
        return Figures(values, missing, tracks)
