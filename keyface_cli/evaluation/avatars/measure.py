"""How well a model's faces follow sound and emotion, measured on avatars whose truth is known.

Held-out sentences are spoken by held-out voices for heads that no training has seen. The model
animates a portrait of each; a reader network then compares the generated face with the rig's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.heads import motion_of
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.recordings import read_recording
from keyface_cli.avatars.scene import Scene, random_scene, recorded_scene
from keyface_cli.config import FPS, KEYFRAME_STEP
from keyface_cli.evaluation.avatars import face
from keyface_cli.evaluation.avatars.heldout import HeldOut, portrait_of
from keyface_cli.evaluation.avatars.reader import CONTROLS, RigReader
from keyface_cli.evaluation.metrics.lipsync import best_lag
from keyface_cli.files import csv_text, write_text
from keyface_cli.options import GenerationOptions
from keyface_cli.pipeline import KeyFacePipeline

SEED_STRIDE = 1000  # scene i of an evaluation has seed `seed * SEED_STRIDE + i`
MAX_LAG = 5  # frames
CLOSED = 0.1  # of the mouth's range: lips that touch
MOVING = 0.1  # deviation of a curve of valence or arousal from which on it can be followed
ENDS_S = 5.0  # what counts as the beginning and the end of a video, a quarter of it at most

Frames = NDArray[np.uint8]  # (N, H, W, 3)


@dataclass(frozen=True)
class ClipResult:
    """The figures of one clip; those that it has no occasion for are NaN."""

    index: int
    voice: str
    text: str
    lip_sync: float  # Pearson correlation of mouth opening, read from the frames, with the rig's
    lag: int  # frames by which the picture is best shifted; positive: the mouth comes late
    lip_width: float  # the same correlation for the width of the lips
    lip_rounding: float  # and for their rounding
    opening: float  # mean opening of the mouth
    silence_opening: float  # the same where the rig's mouth is shut and still
    bilabial_closure: float  # share of p, b and m at which the lips are seen closed
    valence: float  # correlation of the smile that is read with a curve that moves
    arousal: float  # of the brows' height with a curve that moves
    blink_rate: float  # how often the lids come half way down and more, a minute
    lid_closure: float  # how far they close at the rig's blinks, 1 is closed
    head_motion: float  # deviation of the face's place, percent of the picture's side
    mouth_sharpness: float  # gradient energy in the mouth's box over that of the truth
    psnr: float  # of the frames against the rendered truth, dB; what no condition says differs
    drift: float  # error of the last seconds over that of the first, both against the truth
    colour_drift: float  # how far the mean colour wanders from first to last seconds, of 255
    seam_ratio: float  # frame-to-frame change at segment borders over that elsewhere
    seconds_per_second: float  # the time that it took
    of_truth: dict[str, float] = field(default_factory=dict)  # those of `FOLLOWED`, of the truth


FIGURES = tuple(
    name
    for name in ClipResult.__annotations__
    if name not in ("index", "voice", "text", "of_truth")
)
FOLLOWED = (
    *("lip_sync", "lip_width", "lip_rounding", "opening", "silence_opening", "bilabial_closure"),
    *("valence", "arousal", "blink_rate", "lid_closure", "head_motion"),
)
"""What is read from frames; where the reader errs, the rendered truth itself falls short."""


@dataclass(frozen=True)
class Material:
    """Which held-out scenes a model is measured on.

    Args:
        clips: how many.
        seconds: length of each.
        seed: of scenes and heads; training draws its own from others.
        voices: speak with one of these, see `voices.draw_voice`; the usual ones where empty.
        sentences: say these; the held-out ones where empty.
        recordings: play these in turn instead: sound files and their texts.
        cast: held-out people whose photographs move; None draws heads.
    """

    clips: int = 20
    seconds: float = 5.0
    seed: int = 1
    voices: Sequence[str] = ()
    sentences: Sequence[str] = ()
    recordings: Sequence[tuple[Path, str]] = ()
    cast: Cast | None = None

    def heads(self, size: int) -> HeldOut:
        """Return the heads, one a clip, of pictures of `size` pixels."""
        return HeldOut(self.clips, self.seed, size, self.cast)

    def scene(self, index: int) -> Scene:
        """Make one scene.

        Raises:
            KeyFaceError: a synthesiser is not installed, or a recording cannot be read.
            ValueError: there is no such voice.
        """
        seed = self.seed * SEED_STRIDE + index
        if self.recordings:
            recording = read_recording(*self.recordings[index % len(self.recordings)])
            return recorded_scene(recording, seed, duration_s=self.seconds)
        return random_scene(
            seed,
            held_out=True,
            duration_s=self.seconds,
            voices=self.voices,
            sentences=self.sentences,
        )


def animate(
    pipeline: KeyFacePipeline,
    portrait: Frames,
    scene: Scene,
    options: GenerationOptions | None,
    features: Mapping[str, Tensor] | None = None,
) -> Frames:
    """Let a portrait speak a scene's sound with its emotion: all frames.

    A model with conditions for the motion of head, eyes and lids gets that of the scene's truth.
    """
    pixels = portrait.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    wave, emotion = (part.numpy().astype(np.float32) for part in (scene.waveform, scene.emotion))
    motion: dict[str, Any] = {}
    if pipeline.config.motion:
        motion["motion"] = motion_of(scene.rig).numpy().astype(np.float32)
    stream = pipeline.stream(pixels, wave, emotion, options, features=features, **motion)
    return np.concatenate(list(stream))


def evaluate(
    pipeline: KeyFacePipeline,
    reader: RigReader,
    material: Material,
    options: GenerationOptions | None = None,
    keep: Callable[[ClipResult, Frames, Frames], None] | None = None,
) -> Iterator[ClipResult]:
    """Animate held-out scenes and compare them with their truth.

    Args:
        pipeline: the model.
        reader: of the face's controls.
        material: the scenes.
        options: of the generation; None is the model's defaults.
        keep: called with each clip's figures, generated frames and rendered truth.

    Yields:
        One result a clip, as it is done.

    Raises:
        KeyFaceError: no synthesiser is installed, or the model fails.
        ValueError: there is no such voice.
    """
    heads = material.heads(pipeline.config.resolution)
    for i in range(material.clips):
        scene, draw = material.scene(i), heads.head(i)
        portrait = portrait_of(draw)
        started = time.perf_counter()
        frames = animate(pipeline, portrait, scene, options)
        spent = time.perf_counter() - started
        truth = draw(scene.rig)
        result = compare(i, scene, frames, truth, portrait, reader, spent)
        if keep is not None:
            keep(result, frames, truth)
        yield result


def compare(
    index: int,
    scene: Scene,
    frames: Frames,
    truth: Frames,
    portrait: Frames,
    reader: RigReader,
    spent_s: float = float("nan"),
) -> ClipResult:
    """Score generated frames against a scene, its rendered truth and the portrait given."""
    rest = torch.from_numpy(portrait)
    tracks, true_tracks = (
        dict(zip(CONTROLS, reader.read(torch.from_numpy(part), rest).T, strict=True))
        for part in (frames, truth)
    )
    jaw = scene.rig[:, rig.INDEX["jaw"]].float()
    lag, _ = best_lag(tracks["jaw"].double().numpy(), jaw.double().numpy(), MAX_LAG)
    pairs = zip(frames, truth, strict=True)
    error = np.stack([((a.astype(np.float32) - b) ** 2).mean() for a, b in pairs])
    ends = max(1, min(int(ENDS_S * FPS), len(frames) // 4))
    colours = frames.mean((1, 2))
    wander = np.abs(colours[-ends:].mean(0) - colours[:ends].mean(0)).max()
    return ClipResult(
        index=index,
        voice=f"{scene.voice.engine}:{scene.voice.name}",
        text=scene.text,
        lag=lag,
        **follow(scene, tracks, face.head_motion(frames, portrait)),
        mouth_sharpness=face.mouth_sharpness(frames, truth),
        psnr=float(10 * np.log10(255**2 / max(float(error.mean()), 1e-9))),
        drift=float(np.sqrt(error[-ends:].mean() / max(float(error[:ends].mean()), 1e-9))),
        colour_drift=float(wander),
        seam_ratio=seam_ratio(frames),
        seconds_per_second=spent_s * FPS / len(frames),
        of_truth=follow(scene, true_tracks, face.head_motion(truth, portrait)),
    )


def follow(scene: Scene, tracks: Mapping[str, Tensor], head_motion: float) -> dict[str, float]:
    """Return the figures of `FOLLOWED`, see `ClipResult`.

    Args:
        scene: what is true.
        tracks: (N,) of each of the reader's controls, as read from frames.
        head_motion: see `face.head_motion`.
    """

    def as_rig(name: str) -> float:
        return correlation(tracks[name], scene.rig[:, rig.INDEX[name]].float())

    def as_curve(name: str, axis: int) -> float:
        curve = scene.emotion[:, axis].float()
        return correlation(tracks[name], curve) if float(curve.std()) > MOVING else float("nan")

    jaw = scene.rig[:, rig.INDEX["jaw"]].float()
    shut = torch.nn.functional.max_pool1d(jaw[None, None], 5, 1, 2)[0, 0] < 0.03
    values = (
        as_rig("jaw"),
        as_rig("width"),
        as_rig("round"),
        float(tracks["jaw"].clamp(min=0).mean()),
        float(tracks["jaw"][shut].mean()) if shut.any() else float("nan"),
        closures(scene, tracks["jaw"]),
        as_curve("smile", 0),
        as_curve("brow", 1),
        face.blinks_a_minute(tracks["lid"]),
        face.lid_closure(scene, tracks["lid"]),
        head_motion,
    )
    return dict(zip(FOLLOWED, values, strict=True))


def closures(scene: Scene, opening: Tensor) -> float:
    """Return the share of p, b and m in whose time a frame shows closed lips; NaN without any.

    Args:
        scene: whose phones say when.
        opening: (N,) of the mouth, as read from the frames.
    """
    seen = []
    for phone in scene.phones:
        if phone.name in ("p", "b", "m"):
            first, last = int(phone.start_s * FPS), int(phone.end_s * FPS)
            if last < len(opening):
                seen.append(float(opening[first : last + 1].min()) < CLOSED)
    return float(np.mean(seen)) if seen else float("nan")


def seam_ratio(frames: Frames) -> float:
    """Mean frame-to-frame change at segment borders over that elsewhere; NaN where nothing moves.

    The frames at a border are those on both sides of a keyframe.
    """
    change = np.array([np.abs(a.astype(np.int16) - b).mean() for a, b in pairwise(frames)])
    step = np.arange(1, len(frames)) % KEYFRAME_STEP
    border = (step == 0) | (step == 1)
    border[0] = False  # nothing comes before the first keyframe
    inside = change[~border].mean() if (~border).any() else 0.0
    return float(change[border].mean() / inside) if border.any() and inside > 0 else float("nan")


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two tracks (N,); 0 where one of them stands still."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 1e-8 else 0.0


def summarise(results: Sequence[ClipResult]) -> dict[str, dict[str, float]]:
    """Return the spread of each figure, see `spread`; clips without a figure do not count."""
    return {
        name: figures
        for name in FIGURES
        if (figures := spread([float(getattr(r, name)) for r in results]))
    }


def of_truth(results: Sequence[ClipResult]) -> dict[str, dict[str, float]]:
    """Return what `summarise` does, of the rendered truth: what a perfect model would be given."""
    return {
        name: figures
        for name in FOLLOWED
        if (figures := spread([r.of_truth[name] for r in results if name in r.of_truth]))
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return {median, mean, low10, n} of the numbers among values; empty where there is none."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return {}
    low = float(np.quantile(numbers, 0.1))
    mean = float(np.mean(numbers))
    return {"median": median(numbers), "mean": mean, "low10": low, "n": len(numbers)}


def write_csv(path: Path, results: Sequence[ClipResult]) -> None:
    """Write one row a clip."""
    rows = []
    for result in results:
        row: dict[str, Any] = asdict(result)
        truth = row.pop("of_truth")
        rows.append(row | {f"truth_{name}": value for name, value in truth.items()})
    write_text(path, csv_text(rows[0], (row.values() for row in rows)))


def strip(frames: Frames, count: int = 8) -> Frames:
    """Lay frames of a video side by side, evenly spaced: (H, count W, 3)."""
    picked = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.concatenate([frames[i] for i in picked], axis=1)
