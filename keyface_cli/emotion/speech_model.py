"""Valence and arousal from speech by a model that the user names, in ONNX.

The layout is that of audEERING's dimensional speech emotion models (Wagner et al., 2023, "Dawn of
the transformer era in speech emotion recognition"): an input (1, samples) at 16 kHz, and an output
(1, 3) of arousal, dominance and valence from 0 to 1. Their licence is their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import SAMPLE_RATE
from keyface_cli.emotion.thin import resample, smooth, thin
from keyface_cli.emotion.track import EmotionTrack
from keyface_cli.emotion.voice import Waveform, loudness, speaks
from keyface_cli.errors import EmotionError

WINDOW_S, HOP_S = 4.0, 1.0
_TOLERANCE = 0.04
_SMOOTH_FRAMES = 12.5


def open_onnx(path: Path, what: str) -> Any:
    """Open an ONNX file for the CPU.

    Args:
        path: the file.
        what: what it should be, for errors.

    Raises:
        EmotionError: onnxruntime is not installed, or the file is no model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise EmotionError(
            f"{path}: onnxruntime, which runs {what}, is not installed",
            "pip install 'keyface[onnx]'",
        ) from None
    if not path.is_file():
        raise EmotionError(f"{path}: no such file", f"name {what} in ONNX format")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # its own lines are no errors of ours
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for each kind
        reason = " ".join(str(error).split())[:160]
        raise EmotionError(f"{path}: not {what}: {reason}") from error


def run_onnx(session: Any, path: Path, value: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Run a model of one input.

    Raises:
        EmotionError: the model takes another input.
    """
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: value})
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise EmotionError(f"{path}: the model refuses its input: {reason}") from error
    return [np.asarray(output) for output in outputs]


def estimate_with_model(waveform: Waveform, path: Path) -> EmotionTrack:
    """Estimate a curve from a voice with a speech-emotion model, window by window.

    Args:
        waveform: (S,) at 16 kHz.
        path: the model.

    Raises:
        EmotionError: the model cannot be used.
    """
    session = open_onnx(path, "a speech-emotion model")
    level = loudness(waveform)
    speech = speaks(level)
    if not speech.any():
        return EmotionTrack.constant(0.0, 0.0)
    seconds = len(waveform) / SAMPLE_RATE
    starts = np.arange(0, max(HOP_S, seconds - WINDOW_S + HOP_S), HOP_S)
    values, weights = [], []
    for start in starts.tolist():
        first = int(start * SAMPLE_RATE)
        part = waveform[first : first + int(WINDOW_S * SAMPLE_RATE)]
        values.append(_read(session, path, np.asarray(part, np.float32)))
        weights.append(float(speech[int(start * 25) : int((start + WINDOW_S) * 25)].mean()))
    averaged = smooth(np.array(values), 0.0, np.array(weights))
    middles = np.minimum(starts + WINDOW_S / 2, seconds)
    middles = np.concatenate([[0.0], middles, [max(seconds, middles[-1] + 0.04)]])
    padded = np.concatenate([averaged[:1], averaged, averaged[-1:]])
    times, track = resample(middles, padded)
    return thin(times, smooth(track, _SMOOTH_FRAMES), _TOLERANCE)


def _read(session: Any, path: Path, samples: NDArray[np.float32]) -> tuple[float, float]:
    outputs = run_onnx(session, path, samples[None])
    found = [output for output in outputs if output.size == 3]
    if not found or not np.isfinite(found[-1]).all():
        shapes = ", ".join(str(list(output.shape)) for output in outputs)
        raise EmotionError(
            f"{path}: not a speech-emotion model: its outputs are {shapes}",
            "one output of arousal, dominance and valence is needed",
        )
    arousal, _, valence = found[-1].reshape(3).tolist()
    return 2 * valence - 1, 2 * arousal - 1
