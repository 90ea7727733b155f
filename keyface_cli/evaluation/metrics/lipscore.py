"""LipScore: do two clips of the same speech look alike to a lip reader?

Per frame the cosine of the two clips' features, the mean over frames, then over clips.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.config import FPS
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Frames, Measure
from keyface_cli.evaluation.metrics.landmarks import Landmarker
from keyface_cli.evaluation.networks.lipreader import LipReader, load_lipreader
from keyface_cli.evaluation.networks.mouthcrops import align, crop_mouth, normalise
from keyface_cli.media.frames import read_frames

_RATE_TOLERANCE = 0.01  # frames a second


def mouth_pictures(frames: Iterable[Frames], landmarks: NDArray[np.floating]) -> Tensor:
    """Prepare a clip.

    Args:
        frames: blocks of uint8 (n, H, W, 3), T frames in all.
        landmarks: (T, 68, 2) or (T, 4, 2), NaN where no face was found.

    Returns:
        float32 (T, 1, 88, 88).

    Raises:
        ValueError: the landmarks cannot be used; the message says why.
    """
    alignment = align(landmarks)
    pictures: list[NDArray[np.float32]] = []
    for block in frames:
        for frame in block:
            t = len(pictures)
            crop = crop_mouth(frame, alignment.affine[t], alignment.centre[t])
            pictures.append(normalise(crop))
    return torch.from_numpy(np.stack(pictures))[:, None]


@torch.inference_mode()
def features(reader: LipReader, pictures: Tensor, device: str = "cpu") -> Tensor:
    """Return (T, D) of (T, 1, 88, 88), one clip alone, without TF32 on a GPU."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        out: Tensor = reader(pictures[None].to(device))
        return out[0].float().cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def frame_scores(a: Tensor, b: Tensor) -> Tensor:
    """Return (T,) cosines of features (T, D)."""
    return F.cosine_similarity(a, b, dim=1)


class LipScore(Measure):
    """LipScore with one source of landmarks; with four points it is another number and column.

    Args:
        weights: the recogniser's file.
        landmarker: where the landmarks come from.
        device: where to compute.
    """

    name = "lipscore"
    needs_reference = True

    def __init__(self, weights: Path, landmarker: Landmarker, device: str = "cpu") -> None:
        self._reader = load_lipreader(weights).to(device)
        self._landmarker, self._device = landmarker, device
        variant = "" if landmarker.points == 68 else "_four_points"
        label = "LipScore" if landmarker.points == 68 else "LipScore (4 points)"
        self._key = f"lipscore{variant}"
        self.columns = (Column(self._key, label, "higher", 3),)

    def protocol(self) -> dict[str, Any]:
        """Return the source of the landmarks."""
        return {
            "landmarks": self._landmarker.source,
            "encoder": "Auto-AVSR visual encoder, one clip at a time",
            "average": "over frames, then over clips, not weighted by length",
        }

    def begin(self, clip: Clip) -> None:
        """Start a clip."""
        self._clip = clip
        self._reason = ""
        if abs(clip.fps - FPS) > _RATE_TOLERANCE:
            self._reason = f"the lip reader knows {FPS} frames a second, not {clip.fps:g}: --fps 25"
        self._found: tuple[list[Any], list[Any]] = ([], [])

    def add(self, block: Block) -> None:
        """See the next frames: only their landmarks are kept."""
        if self._reason:
            return
        for found, is_reference in zip(self._found, (False, True), strict=True):
            found.append(self._landmarker.find(self._clip, block, is_reference))

    def end(self) -> Figures:
        """Read both clips again, now that all landmarks are known, and compare them."""
        clip = self._clip
        if self._reason:
            return self.unscored(self._reason)
        assert clip.reference is not None
        sides = (
            ("generated", clip.generated, clip.conform),
            ("reference", clip.reference, clip.reference_conform),
        )
        seen = []
        for (side, path, conform), found in zip(sides, self._found, strict=True):
            landmarks = np.concatenate(found)
            # both are cut to the shorter before anything is encoded
            frames = read_frames(path, replace(conform, frames=len(landmarks)))
            try:
                pictures = mouth_pictures(frames, landmarks)
            except ValueError as error:
                return self.unscored(f"{side} clip: {error}")
            seen.append(features(self._reader, pictures, self._device))
        track = frame_scores(*seen).double().numpy()
        tracks = {self.columns[0].label: track}
        return Figures({self._key: float(track.mean())}, tracks=tracks)
