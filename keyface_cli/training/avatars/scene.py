"""Whole scenes: what is said and heard, the emotion, and the performance that goes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keyface_cli.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from keyface_cli.training.avatars.microphone import degrade, shift_voice
from keyface_cli.training.avatars.performance import Act, perform
from keyface_cli.training.avatars.sentences import draw_sentence
from keyface_cli.training.avatars.synthesis import synthesise
from keyface_cli.training.avatars.vocalisations import Vocalisation, draw_speaker, vocalise
from keyface_cli.training.avatars.voices import (
    SILENCE,
    VOCALISATIONS,
    Phone,
    Voice,
    draw_voice,
)


class Scene(NamedTuple):
    """A recording of a voice and the performance that goes with it; N = ceil(S / 640) frames."""

    waveform: Tensor  # (S,) float32, 16 kHz, as a microphone heard it
    phones: list[Phone]  # in the time of the waveform, without gaps
    emotion: Tensor  # (N, 2) valence and arousal in [-1, 1]
    rig: Tensor  # (N, R) in the order of rig.CONTROLS
    text: str
    voice: Voice
    acts: list[Act]


def random_emotion(num_frames: int, generator: torch.Generator) -> Tensor:
    """Draw a curve of valence and arousal: neutral, constant, or moving slowly between states.

    Returns:
        (N, 2) in [-1, 1].
    """
    kind = float(torch.rand((), generator=generator))
    if kind < 0.3:
        return torch.zeros(num_frames, 2)
    states = torch.rand(8, 2, generator=generator) * 2 - 1
    if kind < 0.65:
        return states[:1].expand(num_frames, 2).clone()
    pace_s = 1.0 + 3.0 * float(torch.rand((), generator=generator))
    place = torch.arange(num_frames) / (pace_s * FPS)
    lower = place.long()
    ease = (place - lower)[:, None]
    ease = ease * ease * (3 - 2 * ease)
    return torch.lerp(states[lower % 8], states[(lower + 1) % 8], ease)


def random_scene(
    seed: int,
    held_out: bool = False,
    duration_s: float | None = None,
    *,
    voices: Sequence[str] = (),
    sentences: Sequence[str] = (),
    augmented: bool = True,
    vocal: float = 0.0,
    only: str | None = None,
) -> Scene:
    """Make a scene of a few sentences of one voice, with pauses, an emotion and a recording.

    Args:
        seed: of all chance; the same seed makes the same scene.
        held_out: take sentences and voices that no training scene has.
        duration_s: cut to exactly this length; 1 to 3 sentences where None.
        voices: speak with one of these, see `voices.draw_voice`.
        sentences: say these in turn, from a place that the seed draws; drawn ones where empty.
        augmented: shift the voice and degrade the recording at random.
        vocal: how likely a vocalisation follows a pause; a third as likely there is no speech.
        only: a vocalisation that is all there is to hear, again and again.

    Raises:
        KeyFaceError: the voice's synthesiser is not installed.
    """
    generator = torch.Generator().manual_seed(seed)
    voice = draw_voice(generator, held_out, voices)
    place = int(torch.randint(len(sentences), (), generator=generator)) if sentences else 0
    wanted = 1 + int(torch.randint(3, (), generator=generator))
    sound = _Recording()
    # one shift for the whole scene: each sentence gets a generator that draws the same factor
    shift_seed = int(torch.randint(2**31, (), generator=generator))
    speaker = draw_speaker(generator)
    wordless = float(torch.rand((), generator=generator)) < vocal / 3
    sound.pause(generator)
    while len(sound.pieces) < 2 * wanted if duration_s is None else sound.seconds < duration_s:
        if only or wordless or float(torch.rand((), generator=generator)) < vocal:
            drawn = VOCALISATIONS[int(torch.randint(len(VOCALISATIONS), (), generator=generator))]
            sound.act(vocalise(only or drawn, generator, speaker))
        if only or wordless:
            continue
        if sentences:
            text = sentences[(place + len(sound.texts)) % len(sentences)]
        else:
            text = draw_sentence(generator, held_out, voice.language)
        speech = synthesise(text, voice)
        piece, scale = speech.waveform, 1.0
        if augmented:
            piece, scale = shift_voice(piece, torch.Generator().manual_seed(shift_seed))
        sound.texts.append(text)
        sound.add(piece, [Phone(name, a * scale, b * scale) for name, a, b in speech.phones])
        sound.pause(generator)
    waveform = torch.cat(sound.pieces)
    if duration_s is not None:
        waveform = waveform[: round(duration_s * SAMPLE_RATE)]
    phones = _joined(sound.phones, len(waveform) / SAMPLE_RATE)
    num_frames = math.ceil(len(waveform) / SAMPLES_PER_FRAME)
    emotion = random_emotion(num_frames, generator)
    tracks = perform(phones, num_frames, emotion, generator, waveform=waveform, acts=sound.acts)
    if augmented:
        waveform = degrade(waveform, generator)
    text = " ".join(sound.texts)
    return Scene(waveform, phones, emotion, tracks, text, voice, sound.acts)


class _Recording:
    """A sound that grows piece by piece, with what is in it."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        self.phones: list[Phone] = []
        self.acts: list[Act] = []
        self.texts: list[str] = []
        self.seconds = 0.0

    def add(self, piece: Tensor, timed: Sequence[Phone]) -> None:
        start_s = self.seconds
        self.phones.extend(Phone(name, start_s + a, start_s + b) for name, a, b in timed)
        self.pieces.append(piece)
        self.seconds += len(piece) / SAMPLE_RATE

    def pause(self, generator: torch.Generator) -> None:
        silent_s = 0.05 + 0.9 * float(torch.rand((), generator=generator)) ** 2
        silence = torch.zeros(round(silent_s * SAMPLE_RATE))
        self.add(silence, [Phone(SILENCE, 0.0, len(silence) / SAMPLE_RATE)])

    def act(self, vocalisation: Vocalisation) -> None:
        name, waveform, _, start_s, end_s = vocalisation
        whole_s = len(waveform) / SAMPLE_RATE
        self.texts.append(f"<{name}>")
        self.acts.append(Act(self.seconds + start_s, self.seconds + end_s, vocalisation))
        timed = ((SILENCE, 0.0, start_s), (f"<{name}>", start_s, end_s), (SILENCE, end_s, whole_s))
        self.add(waveform, [Phone(*each) for each in timed])


def _joined(phones: Sequence[Phone], duration_s: float) -> list[Phone]:
    """Join neighbouring silences, close the gaps that rounding left, and cut to the duration."""
    joined: list[Phone] = []
    for name, start_s, end_s in phones:
        if start_s >= duration_s:
            break
        end_s = min(end_s, duration_s)
        if joined and name == SILENCE == joined[-1].name:
            joined[-1] = joined[-1]._replace(end_s=end_s)
        else:
            joined.append(Phone(name, joined[-1].end_s if joined else start_s, end_s))
    return [*joined[:-1], joined[-1]._replace(end_s=duration_s)]
