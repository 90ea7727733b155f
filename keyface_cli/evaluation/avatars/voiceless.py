"""How far a mouth opens when there is no voice: noise, music, hum, the tone of a room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

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
    """One clip: the kind of its sound, and how far the mouth opened in it on average."""

    kind: str
    opening: float


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
        portrait = portrait_of(heads.head(i))
        frames = animate(pipeline, portrait, scene, options)
        tracks = reader.read(torch.from_numpy(frames), torch.from_numpy(portrait))
        opening = tracks[:, CONTROLS.index("jaw")].clamp(min=0).mean()
        yield SoundResult(kind, float(opening))
