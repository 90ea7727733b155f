"""How near a faster way of sampling comes to the exact one, on the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyface_cli.config import FPS
from keyface_cli.evaluation.measures import Frames
from keyface_cli.evaluation.metrics.lipsync import MAX_LAG_S, MouthOpening, best_lag, loudness
from keyface_cli.evaluation.networks.faces import find_face


def compare(made: Frames, exact: Frames, audio: Path) -> dict[str, float]:
    """Compare a video with the exact one of the same portrait, sound and seed.

    Args:
        made: (N, H, W, 3) RGB.
        exact: the same shape.
        audio: the sound that both were made of, from its beginning.

    Returns:
        "psnr", the mean over frames in dB, equal frames as 100; "lip_to_sound" and
        "exact_lip_to_sound", the correlation of the mouth's opening with loudness (see
        `metrics.lipsync`), NaN where a mouth is still; "sharpness", gradient energy of the mouth
        over that of the exact one.

    Raises:
        ValueError: no frame has a face.
        KeyFaceError: the sound cannot be read, or what finds faces is not installed.
    """
    points = np.stack([find_face(frame)[0] for frame in exact])
    sound = loudness(audio, FPS)[: len(exact)]
    found, energy = [], []
    for frames in (made, exact):
        mouth = MouthOpening()
        mouth.add(frames, points)  # of the exact one, so that both show the same place
        opening = mouth.track()
        count = min(len(opening), len(sound))
        found.append(best_lag(opening[:count], sound[:count], round(MAX_LAG_S * FPS))[1])
        energy.append(_gradient_energy(np.stack(mouth.pictures)))
    return {
        "psnr": _psnr(made, exact),
        "lip_to_sound": found[0],
        "exact_lip_to_sound": found[1],
        "sharpness": energy[0] / max(energy[1], 1e-9),
    }


def _psnr(a: Frames, b: Frames) -> float:
    errors = [float(np.square(x.astype(np.float32) - y).mean()) for x, y in zip(a, b, strict=True)]
    return float(np.mean([min(100.0, 10 * np.log10(255**2 / max(e, 1e-9))) for e in errors]))


def _gradient_energy(pictures: NDArray[np.uint8]) -> float:
    """Mean of the squared differences of neighbours in (n, h, w)."""
    gray = pictures.astype(np.float32)
    return float(sum(np.square(np.diff(gray, axis=axis)).mean() for axis in (1, 2)))
