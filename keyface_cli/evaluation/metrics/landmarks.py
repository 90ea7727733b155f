"""Where LipScore's landmarks come from: a FAN network, files, or our detector's five points."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.errors import KeyFaceError, WeightsError
from keyface_cli.evaluation.measures import Block, Clip
from keyface_cli.evaluation.networks import faces
from keyface_cli.evaluation.networks.loading import load_torchscript
from keyface_cli.evaluation.networks.mouthcrops import four_points

FILE_SUFFIX = ".landmarks.npy"
_FAN_SIDE = 256
_FACE_SHARE = 0.55  # of the network's picture that the face's box fills
_PEAK_RADIUS = 0.1  # of the heat map's side: what of it counts for the centroid


class Landmarker(Protocol):
    """A source of landmarks."""

    points: int  # 68 or 4
    source: str  # named in every result

    def find(self, clip: Clip, block: Block, is_reference: bool) -> NDArray[np.floating]:
        """Return (n, points, 2) x, y in pixels of a block's frames, NaN without a face.

        Args:
            clip: which clip.
            block: n of its frames, with their faces.
            is_reference: look at the reference's, else at the generated ones.
        """
        ...


class FourPoints:
    """The four-point variant: eyes, nose and mouth centre of the face detector."""

    points = 4
    source = f"{faces.SOURCE}, mouth centre from its corners (four-point variant)"

    def find(self, clip: Clip, block: Block, is_reference: bool) -> NDArray[np.floating]:
        """See `Landmarker`."""
        found, _ = block.reference_faces if is_reference else block.faces
        return four_points(found)


class StoredLandmarks:
    """68 points that another program wrote beside each video, as NAME.landmarks.npy."""

    points = 68
    source = f"files NAME{FILE_SUFFIX} beside the videos"

    def find(self, clip: Clip, block: Block, is_reference: bool) -> NDArray[np.floating]:
        """See `Landmarker`.

        Raises:
            KeyFaceError: the file is missing or does not fit the video.
        """
        video = clip.reference if is_reference else clip.generated
        assert video is not None
        path = video.with_name(video.stem + FILE_SUFFIX)
        try:
            stored = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise KeyFaceError(
                f"{path}: no landmarks that can be read: {error}",
                "it holds (frames, 68, 2), x and y in pixels, NaN where no face was found",
            ) from error
        if stored.ndim != 3 or stored.shape[1:] != (68, 2) or len(stored) < clip.frames:
            raise KeyFaceError(
                f"{path}: has the shape {stored.shape}, expected ({clip.frames}, 68, 2)"
            )
        return np.array(stored[block.start : block.start + len(block.generated)], np.float32)


class Fan:
    """68 points by a FAN network's heat maps, in the box of our face detector.

    Args:
        weights: a TorchScript file: (1, 3, 256, 256) RGB in [0, 1] to (1, 68, h, w).
        device: where to compute.
    """

    points = 68

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self._network = load_torchscript(weights, device)
        self._path, self._device = weights, device
        self.source = f"FAN, 68 points ({weights.name}), boxes by MTCNN"

    @torch.inference_mode()
    def find(self, clip: Clip, block: Block, is_reference: bool) -> NDArray[np.floating]:
        """See `Landmarker`."""
        frames = block.reference if is_reference else block.generated
        assert frames is not None
        _, boxes = block.reference_faces if is_reference else block.faces
        found = np.full((len(frames), 68, 2), np.nan, np.float32)
        for i, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
            if not np.isfinite(box).all():
                continue
            side = float(box[2:].mean()) / _FACE_SHARE
            corner = box[:2] + box[2:] / 2 - side / 2
            scale = _FAN_SIDE / side
            matrix = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
            picture = cv2.warpAffine(frame, matrix, (_FAN_SIDE, _FAN_SIDE))
            pixels = torch.from_numpy(picture).to(self._device).permute(2, 0, 1)[None] / 255
            found[i] = heat_map_points(self._maps(pixels)) * side + corner
        return found

    def _maps(self, pixels: Tensor) -> Tensor:
        maps = self._network(pixels)
        maps = maps[-1] if isinstance(maps, (list, tuple)) else maps  # one per stacked hourglass
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[1] != 68:
            raise WeightsError(
                f"{self._path}: is no FAN network: it gives no 68 heat maps",
                "expected: a TorchScript file of 2DFAN, as the package face-alignment fetches",
            )
        return maps[0].float().cpu()


def heat_map_points(maps: Tensor) -> NDArray[np.float32]:
    """Return (P, 2) centroids around the peaks of heat maps (P, h, w), as shares of their side."""
    p, h, w = maps.shape
    peak = maps.flatten(1).argmax(1)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    near = ((x - (peak % w).view(p, 1, 1)).abs() <= _PEAK_RADIUS * w) & (
        (y - (peak // w).view(p, 1, 1)).abs() <= _PEAK_RADIUS * h
    )
    weights = maps.clamp(min=0) * near
    total = weights.sum((1, 2)).clamp(min=1e-12)
    centre = [((axis + 0.5) * weights).sum((1, 2)) / total for axis in (x, y)]
    return torch.stack([centre[0] / w, centre[1] / h], 1).numpy()


def choose_landmarker(choice: str, device: str = "cpu") -> Landmarker:
    """Return the source that an option names: "mtcnn", "files" or a FAN TorchScript file.

    Raises:
        WeightsError: the file is missing or no TorchScript.
    """
    if choice == "mtcnn":
        return FourPoints()
    if choice == "files":
        return StoredLandmarks()
    return Fan(Path(choice), device)
