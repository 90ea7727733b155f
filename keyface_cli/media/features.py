"""Audio features in a file: made once from a recording, used with many portraits.

A safetensors file with a tensor `audio.NAME` (N, 2, D) for each encoder, N video frames of two
tokens. Its metadata say which recording and which encoders it belongs to, so that it is used with
no other. It is written and read a piece at a time, however long the recording is.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import FeaturesError
from keyface_cli.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from keyface_cli.checkpoints.checkpoint import Checkpoint

    Blocks: TypeAlias = Iterable[Tensor]

FORMAT = "keyface features 1"
PREFIX = "audio."
_NEAR = 32  # frames so far apart at most are read together
_BLOCK_FRAMES = 1500  # that are checked at a time


def origin(
    sound: str, start_s: float, duration_s: float | None, checkpoint: Checkpoint, encoders: Any
) -> dict[str, str]:
    """Return what features belong to: the file's metadata.

    Args:
        sound: SHA-256 of the recording.
        start_s: seconds left out at its beginning.
        duration_s: seconds used; None is to its end.
        checkpoint: the model whose encoders made them.
        encoders: names of its encoders.
    """
    recorded = checkpoint.manifest["files"]
    hashes = {
        name: [
            facts["sha256"]
            for path, facts in sorted(recorded.items())
            if path.startswith(f"{name}/") and path.endswith(".safetensors")
        ]
        for name in encoders
    }
    return {
        "format": FORMAT,
        "audio": sound,
        "start_s": repr(start_s),
        "duration_s": repr(duration_s),
        "encoders": json.dumps(hashes, sort_keys=True),
    }


class StoredFeatures:
    """The features of one encoder in a file, of which only the frames asked for are read.

    Args:
        path: of the file.
        position: of the first number in it, in bytes.
        shape: (N, 2, D); the numbers are float32.
    """

    def __init__(self, path: Path, position: int, shape: tuple[int, ...]) -> None:
        self.path, self.position, self.shape = path, position, shape

    def __getitem__(self, frames: Tensor) -> Tensor:
        import torch

        wanted, places = np.unique(frames.numpy(), return_inverse=True)  # in rising order
        # a clip of keyframes also takes the first frame of all: what lies between is not read
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _NEAR) + 1)
        read = [self.read(run[0], run[-1] + 1)[run - run[0]] for run in runs]
        return torch.from_numpy(np.concatenate(read)[places])

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the frames first..last, (last - first, 2, D).

        Raises:
            FeaturesError: the file cannot be read any more.
        """
        size = math.prod(self.shape[1:])
        try:
            with self.path.open("rb") as file:
                file.seek(self.position + 4 * first * size)
                found = np.fromfile(file, "<f4", (last - first) * size)
            return found.reshape(last - first, *self.shape[1:])
        except (OSError, ValueError) as error:
            raise FeaturesError(f"cannot read {self.path}: {error}", "make it anew") from error


def save_features(
    path: Path, features: Mapping[str, Blocks], num_frames: int, metadata: dict[str, str]
) -> dict[str, tuple[int, ...]]:
    """Write features block by block under another name and move the file into place.

    Args:
        path: the file to write.
        features: for each encoder its features in order, each block (n, 2, D) float32.
        num_frames: N, of all blocks of an encoder together.
        metadata: as from `origin`.

    Returns:
        The shape (N, 2, D) of each encoder's features.

    Raises:
        FeaturesError: the file cannot be written.
    """
    opened = {name: iter(blocks) for name, blocks in features.items()}
    firsts = {name: next(blocks) for name, blocks in opened.items()}
    shapes = {name: (num_frames, *first.shape[1:]) for name, first in firsts.items()}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        header[f"{PREFIX}{name}"] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers are aligned, as the format recommends
    with replacing(path, FeaturesError) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, blocks in opened.items():
            for block in chain([firsts[name]], blocks):
                file.write(block.cpu().contiguous().numpy().astype("<f4").tobytes())
    return shapes


def load_features(
    path: Path, expected: dict[str, str], num_frames: int
) -> dict[str, StoredFeatures]:
    """Open the features of a recording, if they are of this one and for this model.

    Args:
        path: a file of `save_features`.
        expected: as from `origin`, of the recording and the model in use.
        num_frames: N.

    Returns:
        For each encoder (N, 2, D) float32, read when they are asked for.

    Raises:
        FeaturesError: the file is missing, damaged, or belongs to something else.
    """
    metadata, found = _open(path)
    reasons = {
        "format": "is no file of keyface embed",
        "audio": "was made of another recording",
        "start_s": "was made with another --start",
        "duration_s": "was made with another --duration",
        "encoders": "was made with another model's encoders",
    }
    for key, reason in reasons.items():
        if metadata.get(key) != expected[key]:
            raise FeaturesError(f"{path} {reason}", "make it anew with keyface embed")
    for name in json.loads(expected["encoders"]):
        if name not in found or found[name].shape[:2] != (num_frames, 2):
            raise FeaturesError(f"{path} is damaged: {name}", "make it anew with keyface embed")
        for first in range(0, num_frames, _BLOCK_FRAMES):
            block = found[name].read(first, min(first + _BLOCK_FRAMES, num_frames))
            if not np.isfinite(block).all():
                raise FeaturesError(f"{path} is damaged: {name} contains NaN", "make it anew")
    return found


def _open(path: Path) -> tuple[dict[str, str], dict[str, StoredFeatures]]:
    """Return what a file says of itself, and its features; the library checks that it is whole."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FeaturesError(f"file not found: {path}", "make it with keyface embed")
    try:
        with safe_open(path, framework="pt") as checked:
            metadata = checked.metadata() or {}
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise FeaturesError(f"cannot read {path}: {error}", "make it anew") from error
    found = {
        name.removeprefix(PREFIX): StoredFeatures(
            path, 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
        )
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }
    return metadata, found
