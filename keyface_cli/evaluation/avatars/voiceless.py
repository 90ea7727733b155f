"""How far a mouth opens when there is no voice: noise, music, hum, the tone of a room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from keyface_cli.avatars import rig
from keyface_cli.avatars.photographs.casting import Cast
from keyface_cli.avatars.scene import Scene
from keyface_cli.avatars.sounds import make_sound
from keyface_cli.avatars.voices import SILENCE, Phone, Voice
from keyface_cli.config import FPS
from keyface_cli.evaluation.avatars.heldout import HeldOut, portrait_of
from keyface_cli.evaluation.avatars.measure import SEED_STRIDE, animate
from keyface_cli.evaluation.avatars.reader import CONTROLS, RigReader
from keyface_cli.options import GenerationOptions
from keyface_cli.pipeline import KeyFacePipeline

LEVELS_DB = {"noise": -25.0, "music": -25.0, "hum": -25.0, "room": -40.0}
"""The sounds, and how loud each is."""
SECONDS = 3.0


@dataclass(frozen=True)
class SoundResult:
    """One clip: the kind of its sound, and how far the mouth is seen open in it on average.

    Args:
        kind: of the sound, of `LEVELS_DB`.
        opening: in the generated frames.
        of_truth: in frames of the same head at rest, beyond which no model can be seen to come.
    """

    kind: str
    opening: float
    of_truth: float


def scene_of(kind: str, seed: int) -> Scene:
    """Make a clip of a sound without any voice, on instruments that training never plays."""
    generator = torch.Generator().manual_seed(seed)
    sound = make_sound(kind, SECONDS, generator, level_db=LEVELS_DB[kind], held_out=True)
    frames = round(SECONDS * FPS)
    return Scene(
        waveform=sound,
        phones=[Phone(SILENCE, 0.0, SECONDS)],
        emotion=torch.zeros(frames, 2),
        rig=torch.tensor([rig.REST]).repeat(frames, 1),
        text="",
        voice=Voice("sound", kind, held_out=True),
        acts=[],
    )


def evaluate(
    pipeline: KeyFacePipeline,
    reader: RigReader,
    each: int,
    seed: int = 1,
    options: GenerationOptions | None = None,
    cast: Cast | None = None,
) -> Iterator[SoundResult]:
    """Animate held-out heads with every kind of sound.

    Args:
        pipeline: the model.
        reader: of the mouth's opening.
        each: clips of every kind.
        seed: of sounds and heads.
        options: of the generation; None is the model's defaults.
        cast: held-out people whose photographs move; None draws heads.

    Yields:
        One result a clip.
    """
    kinds = list(LEVELS_DB) * each
    heads = HeldOut(len(kinds), seed + 2 * SEED_STRIDE, pipeline.config.resolution, cast)
    for i, kind in enumerate(kinds):
        scene = scene_of(kind, (seed + 700) * SEED_STRIDE + i)
        draw = heads.head(i)
        portrait = portrait_of(draw)
        videos = animate(pipeline, portrait, scene, options), draw(scene.rig)
        yield SoundResult(kind, *(_opening(reader, video, portrait) for video in videos))


def _opening(reader: RigReader, frames: NDArray[np.uint8], portrait: NDArray[np.uint8]) -> float:
    tracks = reader.read(torch.from_numpy(frames), torch.from_numpy(portrait))
    return float(tracks[:, CONTROLS.index("jaw")].clamp(min=0).mean())
