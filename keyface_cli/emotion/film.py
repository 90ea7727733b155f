"""Take the valence and arousal of a performance from its video, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyface_cli.config import FPS
from keyface_cli.emotion.face_model import SIDE, FaceModel
from keyface_cli.emotion.thin import smooth
from keyface_cli.errors import EmotionError
from keyface_cli.media.faces import Face, find_faces
from keyface_cli.media.frames import decode

_LOOK_EVERY = 5  # frames: faces are looked for so often, and moved to in between
_WIDEST = 960  # pixels of a frame that is looked at
_STEADY = 2.0  # looks over which a face's box is averaged

Box = tuple[float, float, float, float]


def read_performance(video: Path, model: Path) -> NDArray[np.float64]:
    """Read valence and arousal of the largest face in every frame.

    Args:
        video: whatever ffmpeg reads; it is resampled to 25 frames a second.
        model: enet_b0_8_va_mtl.onnx, or a network of the same inputs and outputs.

    Returns:
        (N, 2) in [-1, 1], NaN where no face is seen.

    Raises:
        EmotionError: the model cannot be used, or no face is ever seen.
        VideoError: there is no ffmpeg, or the video cannot be read.
    """
    network = FaceModel(model)
    values: list[tuple[float, float]] = []
    before: Box | None = None
    frames = _frames(video)
    while group := list(islice(frames, _LOOK_EVERY)):
        before = _read_group(network, group, before, values)
    found = np.array(values).reshape(-1, 2)
    if not np.isfinite(found).any():
        raise EmotionError(f"{video}: no face is seen in {len(found)} frames")
    return np.asarray(np.clip(found, -1.0, 1.0))


def fill_and_smooth(track: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """Fill gaps (NaN) from the frames beside and average over time.

    Args:
        track: (N, 2) at 25 a second, with a number somewhere.
        seconds: standard deviation of the average; 0 only fills the gaps.
    """
    seen = np.asarray(np.isfinite(track).all(axis=1))
    return smooth(np.where(seen[:, None], track, 0.0), seconds * FPS, seen.astype(np.float64))


def _read_group(
    network: FaceModel,
    frames: list[NDArray[np.uint8]],
    before: Box | None,
    values: list[tuple[float, float]],
) -> Box | None:
    """Read frames between two looks; return the box at the end, None where no face is seen."""
    faces = find_faces(Image.fromarray(frames[-1]))
    if not faces:
        values.extend([(float("nan"), float("nan"))] * len(frames))
        return None
    box = _square(max(faces, key=lambda face: face.box[2] * face.box[3]))
    if before is not None and abs(box[0] - before[0]) < box[2] / 2:  # the same face, no cut
        box = _mix(before, box, 1 / _STEADY)
    else:
        before = box
    for i, frame in enumerate(frames, start=1):
        face = _cut_out(frame, _mix(before, box, i / len(frames)))
        valence, arousal = network.read(face)[-2:].tolist()
        values.append((valence, arousal))
    return box


def _square(face: Face) -> Box:
    """Return the middle and the sides of a face's box."""
    left, top, width, height = face.box
    return left + width / 2, top + height / 2, float(width), float(height)


def _mix(one: Box, other: Box, share: float) -> Box:
    a, b, c, d = (p + share * (q - p) for p, q in zip(one, other, strict=True))
    return a, b, c, d


def _cut_out(frame: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Cut a face out: (224, 224, 3)."""
    x, y, width, height = box
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    face = Image.fromarray(frame).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, box=_inside(edges, frame.shape)
    )
    return np.asarray(face)


def _inside(edges: Box, shape: tuple[int, ...]) -> Box:
    """Clip left, top, right and bottom to a picture, at least a pixel wide and high."""
    left, top = (float(np.clip(edges[i], 0, shape[1 - i] - 1)) for i in (0, 1))
    right = float(np.clip(edges[2], left + 1, shape[1]))
    bottom = float(np.clip(edges[3], top + 1, shape[0]))
    return left, top, right, bottom


def _frames(video: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield a video's frames at 25 a second, at most 960 pixels wide: (H, W, 3) RGB."""
    if not video.is_file():
        raise EmotionError(f"{video}: no such video file")
    return decode(video, [f"fps={FPS}", f"scale='min({_WIDEST},iw)':-2"], whole=False)
