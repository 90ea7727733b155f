"""Valence and arousal of a face by EmotiEffLib's network, in ONNX.

Savchenko, 2023, "Facial expression recognition with adaptive frame rate based on multiple testing
correction": a face of 224 x 224 pixels, normalised as ImageNet is, becomes the scores of eight
emotions, then valence and arousal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyface_cli.emotion.speech_model import open_onnx, run_onnx
from keyface_cli.errors import EmotionError

WHERE = "https://github.com/sb-ai-lab/EmotiEffLib, models/affectnet_emotions/onnx"
SIDE = 224
OUTPUTS = 10  # eight scores, valence, arousal
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


class FaceModel:
    """The network.

    Args:
        path: enet_b0_8_va_mtl.onnx, or a network of the same inputs and outputs.

    Raises:
        EmotionError: the file is missing or no ONNX, or onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._session = open_onnx(path, "EmotiEffLib's valence and arousal model")

    def read(self, face: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (10,): eight scores, valence, arousal, of a face (224, 224, 3) RGB.

        Raises:
            EmotionError: it is another network.
        """
        pixels = (np.asarray(face, np.float32) / 255 - _MEAN) / _DEVIATION
        picture = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        outputs = run_onnx(self._session, self.path, picture)
        scores = next((output for output in outputs if output.shape == (1, OUTPUTS)), None)
        if scores is None:
            shapes = ", ".join(str(list(output.shape)) for output in outputs)
            raise EmotionError(
                f"{self.path}: not EmotiEffLib's valence and arousal model: its outputs are "
                f"{shapes}",
                f"enet_b0_8_va_mtl.onnx gives (1, {OUTPUTS}); it is at {WHERE}",
            )
        return np.asarray(scores[0], np.float32)
