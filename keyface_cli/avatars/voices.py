"""Phones, and the voices that speak them: who they are, and which ones training leaves out.

Three engines speak: flite (a few recorded voices), espeak-ng (formant synthesis, hundreds of
combinations of accent and timbre) and festival (diphones and a statistical voice); `synthesis` runs
them. Two more are optional, Piper and Kokoro, whose voices are more natural. What a microphone and
a room do to a voice is in `microphone`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from keyface_cli.avatars.microphone import log_uniform
from keyface_cli.avatars.natural import KOKORO_VOICES

SILENCE = "pau"
_VOWELS = "aa ah ax ae aw ao ay eh ey er ih iy ow oy uw uh"
_CONSONANTS = "m p b f v w r l s z sh zh ch jh th dh t d n k g ng y hh"
VOCALISATIONS = ("mhm", "oh", "ah", "cough", "sigh", "yawn", "throat", "laugh")
# A phone's position is its label; a vocalisation counts as one, in brackets.
PHONES = (
    SILENCE,
    *_VOWELS.split(),
    *_CONSONANTS.split(),
    *(f"<{name}>" for name in VOCALISATIONS),
)
VOWELS = frozenset(_VOWELS.split())


class Phone(NamedTuple):
    """One phone of an utterance: its name in `PHONES` and its start and end in seconds."""

    name: str
    start_s: float
    end_s: float


def append_phone(phones: list[Phone], phone: Phone) -> None:
    """Add a phone to those before it; a silence after a silence prolongs that."""
    if phones and phone.name == SILENCE == phones[-1].name:
        phones[-1] = phones[-1]._replace(end_s=phone.end_s)
    else:
        phones.append(phone)


@dataclass(frozen=True)
class Voice:
    """One speaker of one engine.

    `pitch` and `rate` multiply the voice's own pitch and speaking rate where the engine can do so
    (flite and festival's diphones: both; espeak: both; festival's statistical voice: neither; Piper
    and Kokoro: the rate).
    """

    engine: str  # "flite", "espeak", "festival", "piper" or "kokoro"
    name: str  # the voice, in espeak the accent or the language
    variant: str = ""  # in espeak the timbre, in kokoro a voice to blend with
    pitch: float = 1.0
    rate: float = 1.0
    held_out: bool = False  # for evaluation only

    @property
    def language(self) -> str:
        """Two letters; all but some of espeak's voices speak English."""
        return self.name[:2] if self.engine == "espeak" else "en"


# Held out: flite's Scottish speaker, and in espeak the Scottish accent and Italian with any timbre
# and two timbres with any accent; the evaluation speaks with those that are new in both respects.
# ("en" is British).
_ACCENTS = "en-us en en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc en-029"
_HIGH_TIMBRES = (
    "f1 f2 f3 f5 Alicia Andrea Annie aunty belinda grandma linda shelby steph steph2 steph3 zac"
)
_LOW_TIMBRES = (
    "m1 m2 m3 m4 m5 m7 m8 klatt klatt2 klatt3 klatt4 adam Alex Andy antonio benjamin boris caleb "
    "david Denis Diogo ed edward edward2 gene gene2 grandpa Gustave Henrique Hugo iven iven2 iven3 "
    "Jacky john kaukovalta Lee marcelo Marco Mario max Michael michel miguel mike norbert pablo "
    "paul pedro quincy rob robert sandro travis victor"
)
_TIMBRES = f"{_HIGH_TIMBRES} {_LOW_TIMBRES}"
_LANGUAGES = "de fr es pl sv"
_HELD_OUT_ACCENTS = ("en-gb-scotland", "it")
_HELD_OUT_TIMBRES = ("f4", "m6")
_HIGH = frozenset((*_HIGH_TIMBRES.split(), "f4"))

VOICES = (
    *(Voice("flite", name) for name in ("slt", "rms", "kal16", "kal")),
    Voice("flite", "awb", held_out=True),
    *(
        Voice("espeak", accent, timbre)
        for accent in f"{_ACCENTS} {_LANGUAGES}".split()
        for timbre in _TIMBRES.split()
    ),
    *(
        Voice("espeak", accent, timbre, held_out=True)
        for accent in _HELD_OUT_ACCENTS
        for timbre in _HELD_OUT_TIMBRES
    ),
    *(Voice("festival", name) for name in ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")),
)
NATURAL_VOICES = (
    Voice("piper", "joe"),
    *(Voice("kokoro", name) for name in KOKORO_VOICES),
    *(Voice("kokoro", *pair) for pair in itertools.combinations(KOKORO_VOICES, 2)),
)
TRAINING_VOICES = tuple(voice for voice in VOICES if not voice.held_out)
HELD_OUT_VOICES = tuple(voice for voice in VOICES if voice.held_out)

# How often each voice is drawn; the natural ones carry more than their number.
_VOICE_SHARE = {
    ("flite", "slt"): 0.22,
    ("flite", "rms"): 0.16,
    ("flite", "kal16"): 0.05,
    ("flite", "kal"): 0.02,
    ("flite", "awb"): 0.50,
    ("espeak", "high"): 0.19,  # all of them together
    ("espeak", "low"): 0.21,
    ("espeak", "foreign"): 0.15,
    ("festival", "kal_diphone"): 0.02,
    ("festival", "ked_diphone"): 0.04,
    ("festival", "cmu_us_slt_arctic_hts"): 0.04,
    ("piper", "joe"): 0.4,
    ("kokoro", "all"): 0.6,
}


def draw_voice(
    generator: torch.Generator,
    held_out: bool = False,
    wanted: Sequence[str] = (),
    natural: float = 0.0,
) -> Voice:
    """Draw a voice and vary its pitch (0.85 to 1.2) and rate (0.8 to 1.25).

    Args:
        generator: the only source of chance.
        held_out: draw among the voices that training leaves out.
        wanted: draw among these only, each an engine or ENGINE:NAME, such as `flite:awb`; where
            empty among all of flite, espeak and festival, but on the held-out side among the
            English ones.
        natural: how likely it is one of `NATURAL_VOICES` instead; training uses all of those.

    Raises:
        ValueError: no such voice is on that side.
    """
    voices = HELD_OUT_VOICES if held_out else TRAINING_VOICES
    if natural and float(torch.rand((), generator=generator)) < natural:
        voices = NATURAL_VOICES
    elif wanted:
        voices = voices if held_out else voices + NATURAL_VOICES
        voices = tuple(v for v in voices if {v.engine, f"{v.engine}:{v.name}"} & {*wanted})
    elif held_out:
        voices = tuple(v for v in voices if v.language == "en")
    if not voices:
        raise ValueError(f"no {'held-out' if held_out else 'training'} voice of {wanted}")
    groups = [_share_group(voice) for voice in voices]
    sizes = Counter(groups)
    shares = torch.tensor([_VOICE_SHARE[group] / sizes[group] for group in groups])
    voice = voices[int(torch.multinomial(shares, 1, generator=generator))]
    pitch = log_uniform(0.85, 1.2, generator)
    rate = log_uniform(0.8, 1.25, generator)
    return dataclasses.replace(voice, pitch=pitch, rate=rate)


def _share_group(voice: Voice) -> tuple[str, str]:
    if voice.engine == "kokoro":
        return "kokoro", "all"
    if voice.engine != "espeak":
        return voice.engine, voice.name
    if voice.language != "en":
        return "espeak", "foreign"
    return "espeak", "high" if voice.variant in _HIGH else "low"
