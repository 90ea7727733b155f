"""Whether a model's face follows a curve of emotion: one sentence, one head, many moods.

Every held-out head says its sentence under each curve. What is read of its frames, smile and brow,
is compared with the curve's valence and arousal, and its lips with those of the neutral one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from keyface_cli.avatars import rig
from keyface_cli.avatars.performance import perform
from keyface_cli.avatars.scene import Scene
from keyface_cli.config import FPS
from keyface_cli.emotion import EmotionTrack, load_emotion
from keyface_cli.evaluation.avatars.heldout import portrait_of
from keyface_cli.evaluation.avatars.measure import (
    Frames,
    Material,
    animate,
    correlation,
    strip,
)
from keyface_cli.evaluation.avatars.reader import CONTROLS, RigReader
from keyface_cli.options import GenerationOptions
from keyface_cli.pipeline import KeyFacePipeline

NEUTRAL = "neutral"


@dataclass(frozen=True)
class HeadResult:
    """How one head followed the curves."""

    index: int
    voice: str
    text: str
    valence: float  # correlation of the smile that is read with the curves' valence, all moods
    arousal: float  # of the brows' height with the curves' arousal
    lip_sync: Mapping[str, float]  # mood -> correlation of mouth opening with the rig's


def curves(seconds: float) -> dict[str, EmotionTrack]:
    """Return the moods that a sentence of some length is said in; the last is a sweep.

    Args:
        seconds: of the sentence, more than 0.
    """
    corners = ("happy", "calm", "sad", "angry")  # of the square of valence and arousal
    moods = {name: load_emotion(name) for name in (NEUTRAL, *corners)}
    return moods | {"sad to happy": load_emotion(f"sad@0 happy@{seconds:.3f}")}


def evaluate(
    pipeline: KeyFacePipeline,
    reader: RigReader,
    material: Material,
    options: GenerationOptions | None = None,
    keep: Callable[[int, str, Frames], None] | None = None,
) -> Iterator[HeadResult]:
    """Let held-out heads say held-out sentences in every mood.

    Args:
        pipeline: the model.
        reader: of the face's controls.
        material: the scenes; their own emotion is not used.
        options: of the generation; None is the model's defaults.
        keep: called with the number of the head, the mood and its frames.

    Yields:
        One result a head, as it is done.

    Raises:
        KeyFaceError: no synthesiser is installed, or the model fails.
    """
    heads = material.heads(pipeline.config.resolution)
    for i in range(material.clips):
        scene = material.scene(i)
        portrait = portrait_of(heads.head(i))
        read, given = [], []
        lip_sync = {}
        for mood, track in curves(len(scene.rig) / FPS).items():
            acted = in_mood(scene, track)
            frames = animate(pipeline, portrait, acted, options)
            if keep is not None:
                keep(i, mood, frames)
            controls = reader.read(torch.from_numpy(frames), torch.from_numpy(portrait))
            jaw = acted.rig[:, rig.INDEX["jaw"]].float()
            lip_sync[mood] = correlation(controls[:, CONTROLS.index("jaw")], jaw)
            read.append(controls)
            given.append(acted.emotion)
        seen, wanted = torch.cat(read), torch.cat(given).float()
        valence = correlation(seen[:, CONTROLS.index("smile")], wanted[:, 0])
        arousal = correlation(seen[:, CONTROLS.index("brow")], wanted[:, 1])
        voice = f"{scene.voice.engine}:{scene.voice.name}"
        yield HeadResult(i, voice, scene.text, valence, arousal, lip_sync)


def in_mood(scene: Scene, track: EmotionTrack) -> Scene:
    """Return a scene whose performance is that of another emotion."""
    emotion = torch.from_numpy(track.sample(len(scene.rig)))
    generator = torch.Generator().manual_seed(0)
    performed = perform(
        scene.phones,
        len(scene.rig),
        emotion,
        generator,
        waveform=scene.waveform,
        acts=scene.acts,
    )
    return scene._replace(emotion=emotion, rig=performed)


def summarise(results: list[HeadResult]) -> dict[str, float]:
    """Return the medians over heads, of valence, arousal and lip sync, and what lips lose.

    "lip_sync_loss" is the largest difference of a mood's median to the neutral one; below 0 where
    every mood is better.
    """
    figures = {
        "valence": median(result.valence for result in results),
        "arousal": median(result.arousal for result in results),
    }
    lips = {mood: median(r.lip_sync[mood] for r in results) for mood in results[0].lip_sync}
    figures |= {f"lip_sync {mood}": value for mood, value in lips.items()}
    others = [value for mood, value in lips.items() if mood != NEUTRAL]
    return figures | {"lip_sync_loss": lips[NEUTRAL] - min(others)}


def sheet(clips: Mapping[str, Frames], count: int = 6) -> Frames:
    """Lay one row of frames a mood below each other: (moods H, count W, 3)."""
    return np.concatenate([strip(frames, count) for frames in clips.values()])
