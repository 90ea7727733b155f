"""Valence and arousal of faces, read by EmotiEffLib's network from a file that the user names.

`enet_b0_8_va_mtl.onnx` (Savchenko 2022) takes 224 x 224 pixels as ImageNet's mean and deviation
normalise them, and gives eight classes, valence and arousal. No torch is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.errors import WeightsError

SIDE = 224
OUTPUTS = 10  # eight classes, valence, arousal
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


class AffectReader:
    """Reads valence and arousal from pictures of faces.

    Args:
        path: of the ONNX file.

    Raises:
        WeightsError: the file is missing, no ONNX or another network, or onnxruntime is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise WeightsError(
                "valence and arousal are read by onnxruntime, which is not installed",
                "pip install 'keyface[train]'",
            ) from error
        if not path.is_file():
            raise WeightsError(f"file not found: {path}", "enet_b0_8_va_mtl.onnx is meant")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # its own lines are no errors of ours
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises classes of its own for each kind
            raise WeightsError(f"not an ONNX network: {path}", "fetch it again") from error
        self.path = path
        self._input = self._session.get_inputs()[0].name

    def read(self, faces: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Read valence and arousal.

        Args:
            faces: RGB pictures (H, W, 3) that a face fills, of any size.

        Returns:
            (n, 2) valence and arousal, clipped to [-1, 1].

        Raises:
            WeightsError: it is another network.
        """
        rows = []
        for face in faces:  # one at a time: the file's batch may be fixed
            small = Image.fromarray(face).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels = (np.asarray(small) / 255 - _MEAN) / _DEVIATION
            rows.append(self._run(pixels.astype(np.float32).transpose(2, 0, 1)[None]))
        return np.clip(np.stack(rows), -1, 1) if rows else np.zeros((0, 2), np.float32)

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            answer = np.asarray(self._session.run(None, {self._input: pixels})[0], np.float32)
        except Exception as error:
            raise WeightsError(f"the network refuses a picture: {self.path}") from error
        if answer.shape != (1, OUTPUTS):
            raise WeightsError(f"is another network: {self.path}", "enet_b0_8_va_mtl.onnx is meant")
        return answer[0, -2:]
