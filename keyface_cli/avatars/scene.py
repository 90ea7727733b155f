"""Whole scenes: speech and other sounds, the emotion, and the performance that goes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keyface_cli.avatars.alignment import AlignmentError
from keyface_cli.avatars.microphone import degrade, log_uniform, shift_voice, transmit
from keyface_cli.avatars.performance import Act, perform
from keyface_cli.avatars.recordings import Recording
from keyface_cli.avatars.sentences import draw_sentence
from keyface_cli.avatars.sounds import draw_sound
from keyface_cli.avatars.synthesis import LEVEL, synthesise
from keyface_cli.avatars.vocalisations import Vocalisation, draw_speaker, vocalise
from keyface_cli.avatars.voices import (
    SILENCE,
    VOCALISATIONS,
    Phone,
    Voice,
    append_phone,
    draw_voice,
)
from keyface_cli.config import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

QUIETEST_DB = -60.0  # of a recording without any voice
RECORDED = 8  # one scene in so many plays recordings of a real voice where there are any
_TRIES = 5  # sentences, until one is found in the sound of a voice that tells no phones


class Scene(NamedTuple):
    """A recording of a voice and the performance that goes with it; N = ceil(S / 640) frames."""

    waveform: Tensor  # (S,) float32, 16 kHz, as a microphone recorded it
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
    voiceless: float = 0.0,
    beneath: float = 0.0,
    natural: float = 0.0,
    recordings: Sequence[Recording] = (),
    transmitted: float = 0.0,
) -> Scene:
    """Make a scene of a few sentences of one voice, with pauses, an emotion and a recording.

    Args:
        seed: of all chance; the same seed makes the same scene.
        held_out: take sentences, voices and instruments that no training scene has.
        duration_s: cut to exactly this length; 1 to 3 sentences where None.
        voices: speak with one of these, see `voices.draw_voice`.
        sentences: say these in turn, from a place that the seed draws; drawn ones where empty.
        augmented: shift the voice and degrade the recording at random.
        vocal: how likely a vocalisation follows a pause; a third as likely there is no speech.
        only: a vocalisation that is the only sound, again and again.
        voiceless: how likely a sound that is no voice is played alone, see `sounds`, with the mouth
            at rest: in half of these scenes throughout, in the others around the first sentence.
        beneath: how likely such a sound lies beneath a whole scene, 2 to 25 dB below speech.
        natural: how likely a natural voice speaks, see `voices.draw_voice`.
        recordings: play these instead, in one of `RECORDED` scenes.
        transmitted: how likely the recording has come through a telephone, a codec or a hard room
            besides, where `augmented`.

    Raises:
        KeyFaceError: the voice's synthesiser is not installed.
    """
    generator = torch.Generator().manual_seed(seed)
    voice = draw_voice(generator, held_out, voices, natural)
    talk, wanted = _draw_talk(generator, voice, held_out, sentences, recordings, augmented)
    speaker = draw_speaker(generator)
    wordless = float(torch.rand((), generator=generator)) < vocal / 3
    # chance of its own, so that a seed says the same words whatever other sounds there are
    background = torch.Generator().manual_seed(seed ^ 0x5EED)
    besides = _OtherSounds(background, held_out, voiceless, beneath, transmitted)
    sound = _Recording()
    besides.before(sound, duration_s or 3.0 * wanted)
    sound.pause(generator)
    while not besides.throughout and (
        sound.turns < 2 * wanted if duration_s is None else sound.seconds < duration_s
    ):
        if only or wordless or float(torch.rand((), generator=generator)) < vocal:
            drawn = VOCALISATIONS[int(torch.randint(len(VOCALISATIONS), (), generator=generator))]
            sound.act(vocalise(only or drawn, generator, speaker))
        if not only and not wordless:
            talk.say(sound, generator)
            besides.after(sound)
            sound.pause(generator)
    return _recorded(sound, besides, talk.voice, duration_s, augmented, generator)


def _draw_talk(
    generator: torch.Generator,
    voice: Voice,
    held_out: bool,
    sentences: Sequence[str],
    recordings: Sequence[Recording],
    augmented: bool,
) -> tuple[_Talk, int]:
    """Draw who talks, from which sentence on and how shifted; and how many sentences.

    One of `RECORDED` talks plays recordings instead of the voice, where there are some.
    """
    if recordings and int(torch.randint(RECORDED, (), generator=generator)) == 0:
        voice = Voice("recording", "")
    else:
        recordings = ()
    place = int(torch.randint(len(sentences), (), generator=generator)) if sentences else 0
    wanted = 1 + int(torch.randint(3, (), generator=generator))
    # one shift for the whole scene: each sentence gets a generator that draws the same factor
    shift_seed = int(torch.randint(2**31, (), generator=generator))
    shift = shift_seed if augmented else None
    return _Talk(voice, held_out, sentences, place, recordings, shift), wanted


def recorded_scene(
    recording: Recording, seed: int, *, duration_s: float | None = None, augmented: bool = False
) -> Scene:
    """Let a recording of a real voice be acted out, with an emotion that the seed draws.

    Args:
        recording: one utterance.
        seed: of all chance.
        duration_s: cut to this length where it is longer.
        augmented: shift the voice and degrade the recording at random.
    """
    generator = torch.Generator().manual_seed(seed)
    shift_seed = int(torch.randint(2**31, (), generator=generator)) if augmented else None
    sound, voice = _Recording(), Voice("recording", recording.name)
    _Talk(voice, False, (), 0, (recording,), shift_seed).say(sound, generator)
    nothing = _OtherSounds(generator, False)
    return _recorded(sound, nothing, voice, duration_s, augmented, generator)


def _recorded(
    sound: _Recording,
    besides: _OtherSounds,
    voice: Voice,
    duration_s: float | None,
    augmented: bool,
    generator: torch.Generator,
) -> Scene:
    """Cut a recording to its length, act it out and record it by a microphone."""
    waveform = torch.cat(sound.pieces)
    if duration_s is not None:
        waveform = waveform[: round(duration_s * SAMPLE_RATE)]
    phones = _joined(sound.phones, len(waveform) / SAMPLE_RATE)
    num_frames = math.ceil(len(waveform) / SAMPLES_PER_FRAME)
    emotion = random_emotion(num_frames, generator)
    tracks = perform(phones, num_frames, emotion, generator, waveform=waveform, acts=sound.acts)
    waveform = besides.mixed(waveform, sound)
    if augmented:
        waveform = besides.sent(waveform)
        quietest_db = QUIETEST_DB if besides.throughout else -38.0
        waveform = degrade(waveform, generator, quietest_db)
    waveform = waveform.clamp(-1, 1)
    text = " ".join(sound.texts)
    return Scene(waveform, phones, emotion, tracks, text, voice, sound.acts)


class _Recording:
    """A sound that grows piece by piece, with what is in it."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        self.phones: list[Phone] = []
        self.acts: list[Act] = []
        self.texts: list[str] = []
        self.sounds: list[tuple[int, Tensor]] = []  # no voice: first sample, and sound
        self.seconds = 0.0
        self.turns = 0  # pieces of speech, vocalisations and pauses

    def add(self, piece: Tensor, timed: Sequence[Phone]) -> None:
        self._extend(piece, timed)
        self.turns += 1

    def _extend(self, piece: Tensor, timed: Sequence[Phone]) -> None:
        start_s = self.seconds
        self.phones.extend(Phone(name, start_s + a, start_s + b) for name, a, b in timed)
        self.pieces.append(piece)
        self.seconds += len(piece) / SAMPLE_RATE

    def pause(self, generator: torch.Generator) -> None:
        silent_s = 0.05 + 0.9 * float(torch.rand((), generator=generator)) ** 2
        silence = torch.zeros(round(silent_s * SAMPLE_RATE))
        self.add(silence, [Phone(SILENCE, 0.0, len(silence) / SAMPLE_RATE)])

    def stretch(self, sound: Tensor) -> None:
        """Add a sound that is no voice; the voice is silent meanwhile."""
        self.sounds.append((sum(map(len, self.pieces)), sound))
        self._extend(torch.zeros(len(sound)), [Phone(SILENCE, 0.0, len(sound) / SAMPLE_RATE)])

    def act(self, vocalisation: Vocalisation) -> None:
        name, waveform, _, start_s, end_s = vocalisation
        whole_s = len(waveform) / SAMPLE_RATE
        self.texts.append(f"<{name}>")
        self.acts.append(Act(self.seconds + start_s, self.seconds + end_s, vocalisation))
        timed = ((SILENCE, 0.0, start_s), (f"<{name}>", start_s, end_s), (SILENCE, end_s, whole_s))
        self.add(waveform, [Phone(*each) for each in timed])


class _Talk(NamedTuple):
    """Who says what in a scene."""

    voice: Voice
    held_out: bool
    sentences: Sequence[str]
    place: int  # of the first sentence among them
    recordings: Sequence[Recording]  # of a real voice, instead of sentences
    shift_seed: int | None  # no shift of the voice where None

    def say(self, sound: _Recording, generator: torch.Generator) -> None:
        """Speak the next sentence."""
        text, piece, phones = self._next(len(sound.texts), generator)
        scale = 1.0
        if self.shift_seed is not None:
            piece, scale = shift_voice(piece, torch.Generator().manual_seed(self.shift_seed))
        sound.texts.append(text)
        sound.add(piece, [Phone(name, a * scale, b * scale) for name, a, b in phones])

    def _next(self, said: int, generator: torch.Generator) -> tuple[str, Tensor, list[Phone]]:
        """Draw a text and how it sounds; another one where its phones are not found."""
        if self.recordings:
            pick = int(torch.randint(len(self.recordings), (), generator=generator))
            _, waveform, phones, text = self.recordings[pick]
            return text, waveform, phones
        attempt = 0
        while True:
            if self.sentences:
                text = self.sentences[(self.place + said + attempt) % len(self.sentences)]
            else:
                text = draw_sentence(generator, self.held_out, self.voice.language)
            try:
                return text, *synthesise(text, self.voice)
            except AlignmentError:
                attempt += 1
                if attempt == _TRIES:
                    raise


class _OtherSounds:
    """The sounds of a scene besides the voice, see `random_scene`."""

    def __init__(
        self,
        generator: torch.Generator,
        held_out: bool,
        voiceless: float = 0.0,
        beneath: float = 0.0,
        transmitted: float = 0.0,
    ) -> None:
        self.generator, self.held_out, self.transmitted = generator, held_out, transmitted
        alone, turn, under = torch.rand(3, generator=generator).tolist()
        self.throughout = alone < voiceless / 2
        somewhere = not self.throughout and alone < voiceless
        self.starts = somewhere and turn < 0.5
        self.follows = somewhere and turn >= 0.5
        self.under = under < beneath and not self.throughout

    def before(self, sound: _Recording, whole_s: float) -> None:
        """Begin with a sound, of the length of the scene where there is no other sound."""
        if self.throughout:
            self._stretch(sound, whole_s)
        elif self.starts:
            self._stretch(sound, log_uniform(0.7, 4.0, self.generator))

    def after(self, sound: _Recording) -> None:
        """Go on with a sound after the first sentence."""
        if self.follows:
            self.follows = False
            self._stretch(sound, log_uniform(0.7, 4.0, self.generator))

    def _stretch(self, sound: _Recording, seconds: float) -> None:
        level_db = -55 + 40 * float(torch.rand((), generator=self.generator))
        sound.stretch(draw_sound(seconds, self.generator, level_db, self.held_out))

    def mixed(self, waveform: Tensor, sound: _Recording) -> Tensor:
        """Return a voice (S,) with all the other sounds."""
        out = waveform.clone()
        for start, part in sound.sounds:
            part = part[: max(0, len(out) - start)]
            out[start : start + len(part)] += part
        if self.under:
            below_db = 2 + 23 * float(torch.rand((), generator=self.generator))
            level_db = 20 * math.log10(LEVEL) - below_db
            seconds = len(out) / SAMPLE_RATE
            out += draw_sound(seconds, self.generator, level_db, self.held_out)[: len(out)]
        return out

    def sent(self, waveform: Tensor) -> Tensor:
        """Return a recording (S,) as it arrives, mostly as it was."""
        if float(torch.rand((), generator=self.generator)) < self.transmitted:
            return transmit(waveform, self.generator)
        return waveform


def _joined(phones: Sequence[Phone], duration_s: float) -> list[Phone]:
    """Join neighbouring silences, close the gaps that rounding left, and cut to the duration."""
    joined: list[Phone] = []
    for name, start_s, end_s in phones:
        if start_s >= duration_s:
            break
        start_s = joined[-1].end_s if joined else start_s
        append_phone(joined, Phone(name, start_s, min(end_s, duration_s)))
    return [*joined[:-1], joined[-1]._replace(end_s=duration_s)]
