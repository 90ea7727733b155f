"""Valence and arousal of cropped faces, by the network of `emotion.performance`.

`enet_b0_8_va_mtl.onnx` of EmotiEffLib takes 224 x 224 pixels as ImageNet's mean and deviation
normalise them, and gives eight classes, valence and arousal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.emotion.film import SIDE, WHERE
from keyface_cli.emotion.speech_model import open_onnx, run_onnx
from keyface_cli.errors import EmotionError

OUTPUTS = 10  # eight classes, valence, arousal
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


class AffectReader:
    """Reads valence and arousal from pictures of faces.

    Args:
        path: of the ONNX file.

    Raises:
        EmotionError: the file is missing or no ONNX, or onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = open_onnx(path, "EmotiEffLib's valence and arousal model")

    def read(self, faces: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Read valence and arousal.

        Args:
            faces: RGB pictures (H, W, 3) that a face fills, of any size.

        Returns:
            (n, 2) valence and arousal, clipped to [-1, 1].

        Raises:
            EmotionError: it is another network.
        """
        rows = []
        for face in faces:  # one at a time: the file's batch may be fixed
            small = Image.fromarray(face).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels = ((np.asarray(small) / 255 - _MEAN) / _DEVIATION).astype(np.float32)
            answers = run_onnx(self._session, self.path, pixels.transpose(2, 0, 1)[None])
            scores = next((a for a in answers if a.shape == (1, OUTPUTS)), None)
            if scores is None:
                raise EmotionError(
                    f"{self.path}: is another network", f"enet_b0_8_va_mtl.onnx is at {WHERE}"
                )
            rows.append(scores[0, -2:])
        return np.clip(np.stack(rows), -1, 1) if rows else np.zeros((0, 2), np.float32)
