"""Clips that the UNets train on: latents, audio features, emotion and pictures of finished shards.

The VAE and the audio encoders are frozen by the time the UNets train, so each frame and each
recording are encoded once. There are two kinds of shards: those of drawn avatars, which
`encode_shard` completes and which hold every frame mirrored too, and those of real videos (see
`shards`). A clip of keyframes is fourteen frames, 13 apart, the first of which is the identity
frame; a run is fourteen consecutive frames.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES
from keyface_cli.files import save_array
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.speech import encode
from keyface_cli.training.shards import PreparedShard, prepared_shards

logger = logging.getLogger(__name__)
ENCODE_BATCH = 16
# kind of clip -> frames from one to the next, and the name of the first one's position
KINDS = {"keyframes": (KEYFRAME_STEP, "keyframe_starts"), "runs": (1, "run_starts")}
# written by `sampled.sample_keyframes`: float16 (n, P, 2, C, h, w), and where each pair lies, int64
# (n, P, 2): the run's first frame within what the shard holds, and whether it is mirrored
SAMPLED_KEYFRAMES, SAMPLED_PLACES = "keyframes_sampled.npy", "keyframes_sampled_places.npy"


class Clips(NamedTuple):
    """A batch of clips; latents are in the scaled domain."""

    latents: Tensor  # (B, T, C, h, w), float16 or float32
    features: Tensor  # (B, T, 2, A)
    emotion: Tensor  # (B, T, 2)
    pictures: Tensor | None = None  # (B, H, W, 3) uint8 of one frame of each clip
    frame: Tensor | None = None  # which one, 0-d
    # (B, 2, C, h, w), keyframes that the frames between are made from; None is the true ones
    keyframes: Tensor | None = None


class Window(NamedTuple):
    """Where a clip lies: in which shard, and what that shard needs to find it."""

    shard: Shard
    clip: int
    start: int  # within what the shard holds of the clip
    mirrored: bool = False
    from_rest: bool = False  # the first frame is the portrait at rest, not what is true
    sampled: int | None = None  # which pair of sampled keyframes it lies between; None is true ones


class Shard(Protocol):
    """Finished clips of one folder or file."""

    sources: list[str]
    """What each clip was cut from; clips of one source show one person."""

    def windows(self, clip: int) -> int:
        """Return at how many places a clip of the asked kind can begin."""

    def read(self, window: Window) -> tuple[NDArray[np.float16], ...]:
        """Return latents (T, C, h, w), features (T, 2, A) and emotion (T, 2) of a window."""

    def picture(self, window: Window, frame: int) -> NDArray[np.uint8]:
        """Return a frame of a window: (H, W, 3)."""


@torch.inference_mode()
def encode_shard(folder: Path, codec: LatentCodec, encoders: Mapping[str, nn.Module]) -> None:
    """Encode the pictures and the sound of a shard that `scenes.render_frames` has finished.

    Writes `latents_portraits.npy`, `latents_keyframes.npy` and `latents_runs.npy`, float16
    (n, 2, T, C, h, w) with the mirrored frames second, and for each encoder `features_NAME.npy`,
    float16 (n, N, 2, D).
    """
    device = next(codec.parameters()).device
    encoded: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for samples in np.load(folder / "waveforms.npy", mmap_mode="r"):
        wave = torch.from_numpy(np.array(samples)).float() / 32768
        for name, features in encode(encoders, wave).items():
            encoded[name].append(features.half().cpu().numpy())
    for name, each in encoded.items():
        save_array(folder / f"features_{name}.npy", np.stack(each))
    for name in ("portraits", "keyframes", "runs"):
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r")
        latents = []
        for frames in pictures:
            x = torch.from_numpy(np.array(frames)).to(device)
            x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
            both = torch.cat([x, x.flip(-1)])
            parts = [codec.encode(part) for part in torch.split(both, ENCODE_BATCH)]
            latents.append(torch.stack(torch.cat(parts).chunk(2)).half().cpu().numpy())
        save_array(folder / f"latents_{name}.npy", np.stack(latents))
    logger.info("encoded %s", folder)


def encoded_shards(data: Path) -> list[Path]:
    """Return the shards of drawn avatars in a folder that `encode_shard` has finished."""
    return sorted(path.parent for path in data.glob("*/latents_runs.npy"))


class DrawnShard:
    """A shard of drawn avatars: each scene has one place for a clip of keyframes."""

    def __init__(self, folder: Path, kind: str, encoders: Sequence[str]) -> None:
        self.folder, self.kind, self.encoders = folder, kind, encoders
        self.latents = np.load(folder / f"latents_{kind}.npy", mmap_mode="r")
        self.emotions = np.load(folder / "emotions.npy")
        self.starts = np.load(folder / f"{KINDS[kind][1]}.npy")
        self.features = {
            name: np.load(folder / f"features_{name}.npy", mmap_mode="r") for name in encoders
        }
        self.sources = [f"{folder.name}/{i}" for i in range(len(self.starts))]
        path = folder / "latents_portraits.npy"  # shards of earlier versions have none
        self.portraits = np.load(path, mmap_mode="r") if path.is_file() else None
        self.sampled_pairs = 0  # of each clip
        if (folder / SAMPLED_KEYFRAMES).is_file():
            self.sampled = np.load(folder / SAMPLED_KEYFRAMES, mmap_mode="r")
            self.sampled_places = np.load(folder / SAMPLED_PLACES)
            self.sampled_pairs = self.sampled.shape[1]

    def windows(self, clip: int) -> int:
        """See `Shard`."""
        return int(self.latents.shape[2]) - NUM_FRAMES + 1

    def read(self, window: Window) -> tuple[NDArray[np.float16], ...]:
        """See `Shard`."""
        clip, frames = window.clip, slice(window.start, window.start + NUM_FRAMES)
        times = int(self.starts[clip]) + KINDS[self.kind][0] * np.arange(NUM_FRAMES) + window.start
        latents = self.latents[clip, int(window.mirrored), frames]
        if window.from_rest and self.portraits is not None:
            latents = np.concatenate([self.portraits[clip, int(window.mirrored)], latents[1:]])
        return (
            latents,
            np.concatenate([self.features[name][clip, times] for name in self.encoders], -1),
            self.emotions[clip, times],
        )

    def between_sampled(self, clip: int, pair: int) -> Window:
        """Return the run between a pair of keyframes that stage one has sampled."""
        start, mirrored = self.sampled_places[clip, pair].tolist()
        return Window(self, clip, start, bool(mirrored), sampled=pair)

    def picture(self, window: Window, frame: int) -> NDArray[np.uint8]:
        """See `Shard`."""
        name, place = self.kind, window.start + frame
        if window.from_rest and frame == 0 and self.portraits is not None:
            name, place = "portraits", 0
        pictures = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        picture = np.array(pictures[window.clip, place])
        return picture[:, ::-1] if window.mirrored else picture


class ClipSource:
    """Draws batches of clips from every shard that is complete; new shards join as they come.

    Every place where a clip can begin is drawn equally often.

    Args:
        data: a folder of shards of drawn avatars, or one that `keyface dataset prepare` has made.
        kind: "keyframes" for clips of fourteen frames 13 apart, "runs" for consecutive ones.
        encoders: whose features the clips hold, side by side in this order.
        held_out: clips that are kept from training: the last ones of the first shard, and
            whatever shows the same people.
        pictures: give one frame of each clip as a picture too.
        from_rest: share of the drawn avatars' clips of keyframes that begin with the portrait at
            rest, as every clip does when a portrait is animated.
        sampled_keyframes: share of the drawn avatars' runs that lie between keyframes as stage one
            makes them, where `sampled.sample_keyframes` has been there.

    Raises:
        FileNotFoundError: there is no complete shard yet.
    """

    def __init__(
        self,
        data: Path,
        kind: str,
        encoders: Sequence[str],
        *,
        held_out: int = 0,
        pictures: bool = False,
        from_rest: float = 0.0,
        sampled_keyframes: float = 0.0,
    ) -> None:
        self.data, self.kind, self.encoders, self.pictures = data, kind, encoders, pictures
        self.from_rest = from_rest if kind == "keyframes" else 0.0
        self.sampled_keyframes = sampled_keyframes if kind == "runs" else 0.0
        self.shards: dict[Path, Shard] = {}
        self._held_out: list[Window] = []
        self._wanted = held_out
        self.refresh()
        if not self.shards:
            raise FileNotFoundError(f"no encoded shard in {data}")

    def refresh(self) -> None:
        """Take in shards that have been completed since."""
        for folder in encoded_shards(self.data):
            if folder not in self.shards:
                self.shards[folder] = DrawnShard(folder, self.kind, self.encoders)
        for path in prepared_shards(self.data):
            if path not in self.shards:
                step = KINDS[self.kind][0]
                self.shards[path] = PreparedShard(path, step, self.encoders)
        self._arrange()

    def _arrange(self) -> None:
        """Set clips aside, and count the windows of all others."""
        ordered = [self.shards[path] for path in sorted(self.shards)]
        places = [
            (shard, clip)
            for shard in ordered
            for clip in range(len(shard.sources))
            if shard.windows(clip) > 0
        ]
        if ordered and self._wanted and not self._held_out:
            first = [(shard, clip) for shard, clip in places if shard is ordered[0]]
            for shard, clip in first[-self._wanted :]:
                self._held_out.append(Window(shard, clip, shard.windows(clip) // 2))
        people = {w.shard.sources[w.clip] for w in self._held_out}
        drawn = [(s, clip) for s, clip in places if s.sources[clip] not in people]
        ends = np.cumsum([0, *(shard.windows(clip) for shard, clip in drawn)])
        self._places = drawn, ends  # at once: other threads may be drawing

    def __len__(self) -> int:
        """Return at how many places a clip can begin."""
        return int(self._places[1][-1])

    def held_out(self) -> list[tuple[Clips, NDArray[np.uint8]]]:
        """Return the clips that are kept from training, each with its pictures (T, H, W, 3).

        Those whose pictures have been deleted since they were encoded are left out.
        """
        found = []
        for window in self._held_out:
            try:
                shown = [window.shard.picture(window, i) for i in range(NUM_FRAMES)]
            except FileNotFoundError as error:
                logger.warning("a held-out clip has no pictures: %s", error.filename)
                continue
            found.append((_stack([window.shard.read(window)]), np.stack(shown)))
        return found

    def batch(self, size: int, generator: torch.Generator) -> Clips:
        """Draw clips; those of drawn avatars are mirrored half of the time."""

        def draw(stop: int) -> int:
            return int(torch.randint(stop, (), generator=generator))

        def happens(share: float) -> bool:
            return float(torch.rand((), generator=generator)) < share

        windows = []
        places, ends = self._places
        for _ in range(size):
            number = draw(int(ends[-1]))
            place = int(np.searchsorted(ends, number, "right")) - 1
            shard, clip = places[place]
            start = number - int(ends[place])
            drawn = isinstance(shard, DrawnShard)
            mirrored = drawn and draw(2) == 1
            window = Window(shard, clip, start, mirrored, drawn and happens(self.from_rest))
            if (
                self.sampled_keyframes
                and isinstance(shard, DrawnShard)
                and (pairs := shard.sampled_pairs)
                and happens(self.sampled_keyframes)
            ):
                window = shard.between_sampled(clip, draw(pairs))
            windows.append(window)
        clips = _stack([window.shard.read(window) for window in windows])
        if any(window.sampled is not None for window in windows):
            clips = clips._replace(keyframes=torch.from_numpy(_keyframes(clips, windows)))
        if not self.pictures:
            return clips
        frame = draw(NUM_FRAMES)  # the same of all clips, as published
        pictures = np.stack([window.shard.picture(window, frame) for window in windows])
        return clips._replace(pictures=torch.from_numpy(pictures), frame=torch.tensor(frame))


def _keyframes(clips: Clips, windows: list[Window]) -> NDArray[np.float16]:
    """Return the keyframes of runs, (B, 2, C, h, w): sampled ones where a window has them."""
    keyframes = clips.latents[:, [0, -1]].numpy().copy()
    for given, window in zip(keyframes, windows, strict=True):
        if window.sampled is not None and isinstance(window.shard, DrawnShard):
            given[:] = window.shard.sampled[window.clip, window.sampled]
    return keyframes


def _stack(parts: list[tuple[NDArray[np.float16], ...]]) -> Clips:
    return Clips(*(torch.from_numpy(np.stack(each)) for each in zip(*parts, strict=True)))
