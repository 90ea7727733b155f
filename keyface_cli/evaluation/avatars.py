"""How well a model's lips follow the sound, measured on avatars whose truth is known.

Held-out sentences are spoken by held-out voices for heads that no training has seen. The model
animates a portrait of each; a reader network then compares the generated mouth with the rig's own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyface_cli.evaluation.reader import CONTROLS, RigReader
from keyface_cli.pipeline import KeyFacePipeline
from keyface_cli.stream import GenerationOptions
from keyface_cli.training.avatars import identity, rig
from keyface_cli.training.avatars.performance import Scene, random_scene
from keyface_cli.training.pictures import render_uint8

SEED_STRIDE = 1000  # scene i of an evaluation has seed `seed * SEED_STRIDE + i`
MAX_LAG = 5  # frames


@dataclass(frozen=True)
class ClipResult:
    """The figures of one clip."""

    index: int
    voice: str
    text: str
    lip_sync: float  # Pearson correlation of mouth opening, read from the frames, with the rig's
    lag: int  # frames by which the picture is best shifted; positive: the mouth comes late
    lip_width: float  # the same correlation for the width of the lips
    lip_rounding: float  # and for their rounding
    silence_opening: float  # mean opening where the rig's mouth is shut and still
    psnr: float  # of the frames against the rendered truth, dB; blinks and nods differ freely


def evaluate(
    pipeline: KeyFacePipeline,
    reader: RigReader,
    clips: int = 20,
    seconds: float = 5.0,
    seed: int = 1,
    options: GenerationOptions | None = None,
    keep: Callable[[int, NDArray[np.uint8], NDArray[np.uint8]], None] | None = None,
) -> Iterator[ClipResult]:
    """Animate held-out scenes and compare them with their truth.

    Args:
        pipeline: the model.
        reader: of the mouth's controls.
        clips: how many scenes.
        seconds: length of each.
        seed: of the scenes and heads; training draws its own from other seeds.
        options: of the generation; None is the model's defaults.
        keep: called with each clip's index, generated frames and rendered truth, both uint8
            (N, H, W, 3).

    Yields:
        One result a clip, as it is done.

    Raises:
        KeyFaceError: no synthesiser is installed, or the model fails.
    """
    generator = torch.Generator().manual_seed(seed)
    people = identity.sample_identities(clips, generator)
    for i in range(clips):
        scene = random_scene(seed * SEED_STRIDE + i, held_out=True, duration_s=seconds)
        size = pipeline.config.resolution
        who = identity.select(people, [i] * len(scene.rig))
        truth = render_uint8(who, scene.rig, size)
        rest = torch.tensor([rig.REST])
        portrait = render_uint8(identity.select(people, [i]), rest, size)[0]
        pixels = portrait.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
        stream = pipeline.stream(
            pixels,
            scene.waveform.numpy().astype(np.float32),
            scene.emotion.numpy().astype(np.float32),
            options,
        )
        frames = np.concatenate(list(stream))
        if keep is not None:
            keep(i, frames, truth)
        yield compare(i, scene, frames, truth, reader)


def compare(
    index: int,
    scene: Scene,
    frames: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    reader: RigReader,
) -> ClipResult:
    """Score generated frames (N, H, W, 3) against a scene and its rendered truth."""
    read = reader.read(torch.from_numpy(frames))
    tracks = {name: read[:, i] for i, name in enumerate(CONTROLS)}
    jaw = scene.rig[:, rig.INDEX["jaw"]].float()
    lags = {lag: correlation(*_shifted(tracks["jaw"], jaw, lag)) for lag in _lags()}
    best = max(lags, key=lambda lag: (lags[lag], -abs(lag)))
    shut = (torch.nn.functional.max_pool1d(jaw[None, None], 5, 1, 2)[0, 0] < 0.03).numpy()
    error = float(np.mean((frames.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return ClipResult(
        index=index,
        voice=f"{scene.voice.engine}:{scene.voice.name}",
        text=scene.text,
        lip_sync=lags[0],
        lag=best,
        lip_width=correlation(tracks["width"], scene.rig[:, rig.INDEX["width"]].float()),
        lip_rounding=correlation(tracks["round"], scene.rig[:, rig.INDEX["round"]].float()),
        silence_opening=float(tracks["jaw"][shut].mean()) if shut.any() else float("nan"),
        psnr=float(10 * np.log10(255**2 / max(error, 1e-9))),
    )


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two tracks (N,); 0 where one of them stands still."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 1e-8 else 0.0


def _lags() -> range:
    return range(-MAX_LAG, MAX_LAG + 1)


def _shifted(read: Tensor, truth: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """Pair frame t + lag of what was read with frame t of the truth."""
    if lag >= 0:
        return read[lag:], truth[: len(truth) - lag]
    return read[:lag], truth[-lag:]


def summarise(results: list[ClipResult]) -> dict[str, dict[str, float]]:
    """Return median, lowest tenth and count of each figure; clips without a figure do not count."""
    summary = {}
    for name in ("lip_sync", "lag", "lip_width", "lip_rounding", "silence_opening", "psnr"):
        values = [float(getattr(r, name)) for r in results]
        values = [v for v in values if v == v]
        if values:
            low = float(np.quantile(values, 0.1))
            summary[name] = {"median": median(values), "low10": low, "n": len(values)}
    return summary


def write_csv(path: Path, results: list[ClipResult]) -> None:
    """Write one row a clip."""
    rows: list[dict[str, Any]] = [asdict(result) for result in results]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def strip(frames: NDArray[np.uint8], count: int = 8) -> NDArray[np.uint8]:
    """Lay frames of a video side by side, evenly spaced: (H, count W, 3)."""
    picked = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.concatenate([frames[i] for i in picked], axis=1)
