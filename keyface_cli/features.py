"""Audio features in a file: made once from a recording, used with many portraits.

A safetensors file with a tensor `audio.NAME` (N, 2, D) for each encoder, N video frames of two
tokens. Its metadata say which recording and which encoders it belongs to, so that it is used with
no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.errors import FeaturesError

if TYPE_CHECKING:
    from torch import Tensor

    from keyface_cli.checkpoint import Checkpoint

FORMAT = "keyface features 1"
PREFIX = "audio."


def origin(
    audio: Path, start_s: float, duration_s: float | None, checkpoint: Checkpoint, encoders: Any
) -> dict[str, str]:
    """Return what features belong to: the file's metadata.

    Args:
        audio: the recording.
        start_s: seconds left out at its beginning.
        duration_s: seconds used; None is to its end.
        checkpoint: the model that hears it.
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
    with audio.open("rb") as file:
        sound = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "format": FORMAT,
        "audio": sound,
        "start_s": repr(start_s),
        "duration_s": repr(duration_s),
        "encoders": json.dumps(hashes, sort_keys=True),
    }


def save_features(path: Path, features: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write features under another name and move them into place.

    Raises:
        FeaturesError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial")
    try:
        tensors = {f"{PREFIX}{name}": t.cpu().contiguous() for name, t in features.items()}
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise FeaturesError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load_features(path: Path, expected: dict[str, str], num_frames: int) -> dict[str, Tensor]:
    """Read the features of a recording, if they are of this one and for this model.

    Args:
        path: a file of `save_features`.
        expected: as from `origin`, of the recording and the model in use.
        num_frames: N.

    Returns:
        For each encoder (N, 2, D) float32.

    Raises:
        FeaturesError: the file is missing, damaged, or belongs to something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FeaturesError(f"file not found: {path}", "make it with keyface embed")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            features = {
                name.removeprefix(PREFIX): file.get_tensor(name).float()
                for name in file.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        raise FeaturesError(f"cannot read {path}: {error}", "make it anew") from error
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
    wanted = json.loads(expected["encoders"])
    for name in wanted:
        if name not in features or features[name].shape[:2] != (num_frames, 2):
            raise FeaturesError(f"{path} is damaged: {name}", "make it anew with keyface embed")
        if not bool(features[name].isfinite().all()):
            raise FeaturesError(f"{path} is damaged: {name} holds NaN", "make it anew")
    return features
