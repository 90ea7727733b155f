"""Whether the face stays the same person over time: OpenCV's SFace against the first second."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Frames, Measure
from keyface_cli.evaluation.metrics.unreferenced import LEAST_S
from keyface_cli.evaluation.networks.faces import SOURCE, Points, similarity

SIDE = 112
# where the network wants eyes, nose and mouth corners of its 112 x 112 picture
_TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
_ENDS_S = 5.0  # what "first" and "last" mean


class FaceEmbedder:
    """Features of an aligned face, of length 1.

    Args:
        path: face_recognition_sface_2021dec.onnx.

    Raises:
        WeightsError: the file is missing or no ONNX network.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise WeightsError(f"file not found: {path}")
        try:
            self._network: Any = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise WeightsError(f"not an ONNX network: {path}", "fetch it again") from error
        self._path = path

    def embed(self, frame: Frames, points: Points) -> NDArray[np.float64]:
        """Return (D,) of a frame (H, W, 3) with its five points (5, 2)."""
        face = cv2.warpAffine(frame, similarity(points, _TEMPLATE), (SIDE, SIDE))
        # OpenCV's own wrapper gives it RGB, 0 to 255, unscaled
        self._network.setInput(cv2.dnn.blobFromImage(face))
        try:
            feature = np.asarray(self._network.forward(), np.float64).ravel()
        except cv2.error as error:
            raise WeightsError(
                f"{self._path}: is another network: it takes no 112 x 112 pictures",
                "expected: face_recognition_sface_2021dec.onnx",
            ) from error
        return feature / max(float(np.linalg.norm(feature)), 1e-12)


class FaceSimilarity(Measure):
    """Cosine similarity to the mean face of the first second, as it changes over time.

    Args:
        embedder: of faces.
    """

    name = "face-similarity"
    columns = (
        Column("face_similarity", "Face similarity", "higher", 3),
        Column("face_similarity_drift", "Face similarity drift (1/min)", "higher", 3),
        Column("face_similarity_ends", "Face similarity last/first 5 s", "higher", 3),
    )
    definition: ClassVar = {
        "network": "OpenCV SFace 2021dec",
        "landmarks": SOURCE,
        "face_similarity": "mean cosine similarity to the mean face of the first second",
        "face_similarity_drift": "its slope, a minute; below 0 the person is lost",
        "face_similarity_ends": "similarity of the mean faces of the first and the last 5 s, of "
        "clips of at least 10 s",
    }

    def __init__(self, embedder: FaceEmbedder) -> None:
        self._embedder = embedder

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._fps = clip.fps
        self._first: list[NDArray[np.float64]] = []  # faces of the first second
        self._recent: list[NDArray[np.float64]] = []  # faces of the last five seconds
        self._early: list[NDArray[np.float64]] = []
        self._times: list[float] = []
        self._similarity: list[float] = []

    def add(self, block: Block) -> None:
        """See the next frames."""
        ends = round(_ENDS_S * self._fps)
        for i, (frame, points) in enumerate(zip(block.generated, block.faces[0], strict=True)):
            if not np.isfinite(points).all():
                continue
            face = self._embedder.embed(frame, points)
            t = block.start + i
            if t < self._fps:
                self._first.append(face)
            if t < ends:
                self._early.append(face)
            self._recent = [*self._recent, face][-ends:]
            if self._first:
                anchor = np.mean(self._first, axis=0)
                self._times.append(t / self._fps)
                self._similarity.append(float(face @ anchor / np.linalg.norm(anchor)))

    def end(self) -> Figures:
        """Finish the clip."""
        track = np.array(self._similarity)
        if not len(track):
            return self.unscored("no face was found in the first second")
        times = np.array(self._times)
        values = {"face_similarity": float(track.mean())}
        reasons = {}
        if (times[-1] - times[0]) < LEAST_S - 0.5:
            reasons["face_similarity_drift"] = f"shorter than {LEAST_S:g} s"
        else:
            later = times >= 1.0  # the first second is its own anchor
            values["face_similarity_drift"] = float(
                np.polyfit(times[later] / 60, track[later], 1)[0]
            )
        if times[-1] < 2 * _ENDS_S - 0.5:
            reasons["face_similarity_ends"] = f"shorter than {2 * _ENDS_S:g} s"
        else:
            a, b = np.mean(self._early, axis=0), np.mean(self._recent, axis=0)
            values["face_similarity_ends"] = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        return Figures(values, reasons, {"face_similarity": track})
