"""Clips that the UNets train on: latents, audio features and emotion of rendered scenes, cached.

The VAE and the audio encoders are frozen by the time the UNets train, so each frame is encoded
once, as it is and mirrored, and each recording is heard once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES
from keyface_cli.models.speech import encode
from keyface_cli.models.vae import LatentCodec

logger = logging.getLogger(__name__)
ENCODE_BATCH = 16


class Clips(NamedTuple):
    """A batch of clips; latents are in the scaled domain."""

    latents: Tensor  # (B, T, C, h, w)
    features: Tensor  # (B, T, 2, A)
    emotion: Tensor  # (B, T, 2)


@torch.inference_mode()
def encode_shard(folder: Path, codec: LatentCodec, encoders: Mapping[str, nn.Module]) -> None:
    """Encode the pictures and the sound of a shard that `scenes.render_frames` has finished.

    Writes `latents_keyframes.npy` and `latents_runs.npy`, float16 (n, 2, T, C, h, w) with the
    mirrored frames second, and `features.npy`, float16 (n, N, 2, A).
    """
    waveforms = np.load(folder / "waveforms.npy", mmap_mode="r")
    features = []
    for samples in waveforms:
        wave = torch.from_numpy(np.array(samples)).float() / 32768
        heard = encode(encoders, wave)
        features.append(torch.cat([heard[name] for name in encoders], -1).half().numpy())
    for name in ("keyframes", "runs"):
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r")
        latents = []
        for frames in pictures:
            x = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
            both = torch.cat([x, x.flip(-1)])
            parts = [codec.encode(part) for part in torch.split(both, ENCODE_BATCH)]
            latents.append(torch.stack(torch.cat(parts).chunk(2)).half().numpy())
        np.save(folder / f"latents_{name}.npy", np.stack(latents))
    partial = folder / "features.part.npy"
    np.save(partial, np.stack(features))
    os.replace(partial, folder / "features.npy")  # last: it says that the shard is complete
    logger.info("encoded %s", folder)


class ClipSource:
    """Draws batches of clips from every shard that is complete; new shards join as they come.

    Args:
        data: the folder of shards.
        kind: "keyframes" for clips of fourteen frames 13 apart, "runs" for consecutive ones.

    Raises:
        FileNotFoundError: there is no complete shard yet.
    """

    def __init__(self, data: Path, kind: str) -> None:
        self.data, self.kind = data, kind
        self.shards: dict[Path, dict[str, np.ndarray]] = {}
        self.refresh()
        if not self.shards:
            raise FileNotFoundError(f"no encoded shard in {data}")

    def refresh(self) -> None:
        """Take in shards that have been completed since."""
        for path in sorted(self.data.glob("*/features.npy")):
            folder = path.parent
            if folder in self.shards:
                continue
            starts = "keyframe_starts" if self.kind == "keyframes" else "run_starts"
            self.shards[folder] = {
                "latents": np.load(folder / f"latents_{self.kind}.npy", mmap_mode="r"),
                "features": np.load(path, mmap_mode="r"),
                "emotions": np.load(folder / "emotions.npy"),
                "starts": np.load(folder / f"{starts}.npy"),
            }

    def batch(self, size: int, generator: torch.Generator) -> Clips:
        """Draw clips, mirrored half of the time."""
        folders = sorted(self.shards)

        def draw(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        latents, features, emotions = [], [], []
        for _ in range(size):
            shard = self.shards[folders[draw(len(folders))]]
            scene, mirrored = draw(len(shard["starts"])), draw(2)
            start = int(shard["starts"][scene])
            frames = np.arange(NUM_FRAMES)
            if self.kind == "keyframes":
                times = start + KEYFRAME_STEP * frames
            else:
                frames = frames + draw(shard["latents"].shape[2] - NUM_FRAMES + 1)
                times = start + frames
            latents.append(shard["latents"][scene, mirrored, frames[0] : frames[-1] + 1])
            features.append(shard["features"][scene, times])
            emotions.append(shard["emotions"][scene, times])
        return Clips(*(torch.from_numpy(np.stack(part)).float()
                       for part in (latents, features, emotions)))  # fmt: skip
