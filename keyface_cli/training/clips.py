"""Clips that the UNets train on: latents, audio features and emotion of rendered scenes, cached.

The VAE and the audio encoders are frozen by the time the UNets train, so each frame is encoded
once, as it is and mirrored, and each recording is heard once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
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
    mirrored frames second, and for each encoder `features_NAME.npy`, float16 (n, N, 2, D).
    """
    heard: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for samples in np.load(folder / "waveforms.npy", mmap_mode="r"):
        wave = torch.from_numpy(np.array(samples)).float() / 32768
        for name, features in encode(encoders, wave).items():
            heard[name].append(features.half().numpy())
    for name, each in heard.items():
        np.save(folder / f"features_{name}.npy", np.stack(each))
    for name in ("keyframes", "runs"):
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r")
        latents = []
        for frames in pictures:
            x = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
            both = torch.cat([x, x.flip(-1)])
            parts = [codec.encode(part) for part in torch.split(both, ENCODE_BATCH)]
            latents.append(torch.stack(torch.cat(parts).chunk(2)).half().numpy())
        partial = folder / f"latents_{name}.part.npy"
        np.save(partial, np.stack(latents))
        os.replace(partial, folder / f"latents_{name}.npy")
    logger.info("encoded %s", folder)


def encoded_shards(data: Path) -> list[Path]:
    """Return the shards in a folder that `encode_shard` has finished."""
    return sorted(path.parent for path in data.glob("*/latents_runs.npy"))


class ClipSource:
    """Draws batches of clips from every shard that is complete; new shards join as they come.

    Args:
        data: the folder of shards.
        kind: "keyframes" for clips of fourteen frames 13 apart, "runs" for consecutive ones.
        encoders: whose features the clips hold, side by side in this order.

    Raises:
        FileNotFoundError: there is no complete shard yet.
    """

    def __init__(self, data: Path, kind: str, encoders: Sequence[str]) -> None:
        self.data, self.kind, self.encoders = data, kind, encoders
        self.shards: dict[Path, dict[str, np.ndarray]] = {}
        self.refresh()
        if not self.shards:
            raise FileNotFoundError(f"no encoded shard in {data}")

    def refresh(self) -> None:
        """Take in shards that have been completed since."""
        for folder in encoded_shards(self.data):
            if folder in self.shards:
                continue
            starts = "keyframe_starts" if self.kind == "keyframes" else "run_starts"
            self.shards[folder] = {
                "latents": np.load(folder / f"latents_{self.kind}.npy", mmap_mode="r"),
                "emotions": np.load(folder / "emotions.npy"),
                "starts": np.load(folder / f"{starts}.npy"),
                **{name: np.load(folder / f"features_{name}.npy", mmap_mode="r")
                   for name in self.encoders},
            }  # fmt: skip

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
            features.append(np.concatenate([shard[e][scene, times] for e in self.encoders], -1))
            emotions.append(shard["emotions"][scene, times])
        return Clips(*(torch.from_numpy(np.stack(part)).float()
                       for part in (latents, features, emotions)))  # fmt: skip
