"""Shards of made-up scenes, as those of drawn avatars look when they are encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keyface_cli.avatars import rig
from keyface_cli.presets import PRESETS

TINY = PRESETS["tiny"]


def make_shard(folder: Path, scenes: int = 3) -> Path:
    """A shard of made-up scenes, encoded, for the tiny model."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    size = TINY.latent_size
    for name, count in {"keyframes": 14, "runs": 27, "portraits": 1}.items():
        shape = (scenes, 2, count, TINY.latent_channels, size, size)
        np.save(folder / f"latents_{name}.npy", rng.standard_normal(shape).astype(np.float16))
        shown = (scenes, count, TINY.resolution, TINY.resolution, 3)
        np.save(folder / f"{name}.npy", rng.integers(0, 256, shown, np.uint8))
    np.save(folder / "emotions.npy", rng.uniform(-1, 1, (scenes, 175, 2)).astype(np.float16))
    np.save(folder / "rigs.npy", rng.uniform(-1, 1, (scenes, 175, len(rig.NAMES))))
    np.save(folder / "keyframe_starts.npy", np.arange(scenes) % 6)
    np.save(folder / "run_starts.npy", 50 * np.arange(scenes) % 149)
    # the first encoder tells the frame's number, the others tell which they are
    width = TINY.keyframe_unet.audio_dim // 2
    for position, name in enumerate(("wavlm", "wav2vec2", "beats")):
        numbers = np.arange(scenes * 175) if position == 0 else np.full(scenes * 175, position)
        features = numbers.astype(np.float32).reshape(scenes, 175, 1, 1)
        np.save(folder / f"features_{name}.npy", np.broadcast_to(features, (scenes, 175, 2, width)))
    return folder
