"""Voices: text to speech whose phones are timed, from the synthesisers that Debian packages.

Three engines speak: flite (a few recorded voices, the most natural), espeak-ng (formant synthesis,
hundreds of combinations of accent and timbre) and festival (diphones and a statistical voice). None
of them is needed to animate, only to train. Their phone sets are mapped onto `PHONES`. What a
microphone and a room do to a voice is in `microphone`.
"""

from __future__ import annotations

import atexit
import dataclasses
import math
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from keyface_cli.config import SAMPLE_RATE
from keyface_cli.errors import KeyFaceError
from keyface_cli.training.avatars.espeak import Speaker, SpeakerError
from keyface_cli.training.avatars.microphone import log_uniform

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

LEVEL = 0.06  # root mean square of the speech in every waveform that `synthesise` returns


class Phone(NamedTuple):
    """One phone of an utterance: its name in `PHONES` and its start and end in seconds."""

    name: str
    start_s: float
    end_s: float


class Speech(NamedTuple):
    """A waveform (S,), float32, mono, 16 kHz, and the phones that cover it without gaps."""

    waveform: Tensor
    phones: list[Phone]


@dataclass(frozen=True)
class Voice:
    """One speaker of one engine.

    `pitch` and `rate` multiply the voice's own pitch and speaking rate where the engine can do so
    (flite and festival's diphones: both; espeak: both; festival's statistical voice: neither).
    """

    engine: str  # "flite", "espeak" or "festival"
    name: str  # the voice, in espeak the accent or the language
    variant: str = ""  # in espeak the timbre
    pitch: float = 1.0
    rate: float = 1.0
    held_out: bool = False  # heard in evaluation only

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
}
_ENGINE_PACKAGES = {
    "flite": "flite",
    "espeak": "libespeak-ng1",
    "festival": "festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts",
}
# Seconds by which a voice's sound comes later than its phone times say, measured on the level
# around phone boundaries and on the correlation of the jaw with the level.
_DELAY_S = {
    ("flite", "slt"): 0.008,
    ("flite", "rms"): 0.004,
    ("festival", "cmu_us_slt_arctic_hts"): 0.01,
}


def draw_voice(
    generator: torch.Generator, held_out: bool = False, wanted: Sequence[str] = ()
) -> Voice:
    """Draw a voice and vary its pitch (0.85 to 1.2) and rate (0.8 to 1.25).

    Args:
        generator: the only source of chance.
        held_out: draw among the voices that training never hears.
        wanted: draw among these only, each an engine or ENGINE:NAME, such as `flite:awb`; where
            empty among all, but on the held-out side among the English ones.

    Raises:
        ValueError: no such voice is on that side.
    """
    voices = HELD_OUT_VOICES if held_out else TRAINING_VOICES
    if wanted:
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
    if voice.engine != "espeak":
        return voice.engine, voice.name
    if voice.language != "en":
        return "espeak", "foreign"
    return "espeak", "high" if voice.variant in _HIGH else "low"


def missing_engines() -> dict[str, str]:
    """Return the engines that this machine lacks, each with its Debian packages."""
    present = {
        "flite": shutil.which("flite") is not None,
        "espeak": _espeak_runs(),
        "festival": shutil.which("festival") is not None,
    }
    return {engine: _ENGINE_PACKAGES[engine] for engine, here in present.items() if not here}


def _espeak_runs() -> bool:
    try:
        _speaker(os.getpid())
    except KeyFaceError:
        return False
    return True


def synthesise(text: str, voice: Voice) -> Speech:
    """Speak a text, at the same loudness whatever the voice.

    Raises:
        KeyFaceError: the engine is not installed, fails, or says nothing.
    """
    engines: dict[str, Callable[[str, Voice], tuple[np.ndarray, int, list[Phone]]]] = {
        "flite": _flite,
        "espeak": _espeak,
        "festival": _festival,
    }
    if voice.engine not in engines:
        raise ValueError(f"unknown engine {voice.engine!r}")
    samples, rate, phones = engines[voice.engine](text, voice)
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    phones = _tidy(
        phones, len(waveform) / SAMPLE_RATE, _DELAY_S.get((voice.engine, voice.name), 0.0)
    )
    if not any(phone.name != SILENCE for phone in phones):
        raise KeyFaceError(f"{voice.engine} voice {voice.name!r} said nothing for {text!r}")
    voiced = torch.cat(
        [
            waveform[int(phone.start_s * SAMPLE_RATE) : int(phone.end_s * SAMPLE_RATE)]
            for phone in phones
            if phone.name != SILENCE
        ]
    )
    gain = LEVEL / voiced.square().mean().sqrt().clamp(min=1e-6)
    gain = torch.minimum(gain, 0.98 / waveform.abs().max().clamp(min=1e-6))
    return Speech(waveform * gain, phones)


def _tidy(phones: Iterable[Phone], duration_s: float, delay_s: float) -> list[Phone]:
    """Shift, clip to the sound, join neighbouring silences and fill both ends with silence."""
    tidy: list[Phone] = []
    reached = 0.0
    for name, start, end in (*phones, Phone(SILENCE, duration_s, duration_s)):
        start = min(max(start + delay_s, reached), duration_s)
        end = min(max(end + delay_s, start), duration_s)
        if start - reached > 1e-6:
            tidy.append(Phone(SILENCE, reached, start))
        if end - start > 1e-6:
            tidy.append(Phone(name, start, end))
        reached = max(reached, end)
    joined: list[Phone] = []
    for phone in tidy:
        if joined and phone.name == SILENCE == joined[-1].name:
            joined[-1] = joined[-1]._replace(end_s=phone.end_s)
        else:
            joined.append(phone)
    return joined


# --- flite and festival: the radio phone set, nearly `PHONES` itself

_RADIO_SPECIAL = {
    "axr": "er",
    "dx": "d",
    "nx": "n",
    "el": "l",
    "em": "m",
    "en": "n",
    "hv": "hh",
    "h#": SILENCE,
    "brth": SILENCE,
    "sil": SILENCE,
    "ssil": SILENCE,
}


def _radio_phone(name: str) -> str:
    name = _RADIO_SPECIAL.get(name, name)
    if name not in PHONES:
        raise KeyFaceError(f"the synthesiser speaks an unknown phone {name!r}")
    return name


def _from_end_times(ends: Iterable[tuple[str, float]]) -> list[Phone]:
    """Turn (phone, end) pairs of the radio set into phones."""
    phones: list[Phone] = []
    start = 0.0
    for name, end in ends:
        phones.append(Phone(_radio_phone(name), start, end))
        start = end
    return phones


_FLITE_MEAN_F0 = {"kal": 95.0, "kal16": 95.0}  # Hz; the other voices know a relative shift


def _flite(text: str, voice: Voice) -> tuple[np.ndarray, int, list[Phone]]:
    program = _program("flite")
    settings = [f"duration_stretch={1 / voice.rate:.4f}"]
    if voice.name in _FLITE_MEAN_F0:
        settings.append(f"int_f0_target_mean={_FLITE_MEAN_F0[voice.name] * voice.pitch:.2f}")
    else:
        settings.append(f"f0_shift={voice.pitch:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        options = [argument for setting in settings for argument in ("--setf", setting)]
        command = [program, "-voice", voice.name, *options, "-psdur", "-t", text, "-o", str(path)]
        printed = _run(command, "flite")
        samples, rate = soundfile.read(path, dtype="float32")
    pairs = (item.rsplit(":", 1) for item in printed.split())
    return samples, rate, _from_end_times((name, float(end)) for name, end in pairs)


_FESTIVAL_MEAN_F0 = {"kal_diphone": 105.0, "ked_diphone": 105.0}


def _festival(text: str, voice: Voice) -> tuple[np.ndarray, int, list[Phone]]:
    program = _program("festival")
    quoted = text.replace("\\", " ").replace('"', " ")
    lines = [f"(voice_{voice.name})", f"(Parameter.set 'Duration_Stretch {1 / voice.rate:.4f})"]
    if voice.name in _FESTIVAL_MEAN_F0:
        mean = _FESTIVAL_MEAN_F0[voice.name] * voice.pitch
        lines.append(
            f"(set! int_lr_params '((target_f0_mean {mean:.2f}) (target_f0_std 16)"
            " (model_f0_mean 170) (model_f0_std 34)))"
        )
    with tempfile.TemporaryDirectory() as folder:
        path, segments, script = (Path(folder, name) for name in ("a.wav", "a.seg", "a.scm"))
        lines += [
            f'(set! speech (utt.synth (Utterance Text "{quoted}")))',
            f'(utt.save.segs speech "{segments}")',
            f'(utt.save.wave speech "{path}" (quote riff))',
        ]
        script.write_text("\n".join(lines))
        _run([program, "-b", str(script)], "festival")
        if not path.exists():
            raise KeyFaceError(
                f"festival cannot speak with the voice {voice.name}", _hint("festival")
            )
        samples, rate = soundfile.read(path, dtype="float32")
        rows = [line.split() for line in segments.read_text().splitlines()]
    ends = ((row[2], float(row[0])) for row in rows if len(row) == 3)
    return samples, rate, _from_end_times(ends)


def _program(engine: str) -> str:
    path = shutil.which(engine)
    if path is None:
        raise KeyFaceError(f"the synthesiser {engine} is not installed", _hint(engine))
    return path


def _hint(engine: str) -> str:
    return f"install the Debian packages it needs: apt-get install {_ENGINE_PACKAGES[engine]}"


def _run(command: list[str], engine: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KeyFaceError(f"{engine} failed: {reason}")
    return done.stdout


# --- espeak-ng

_NORMAL_RATE, _NORMAL_PITCH = 175, 50  # words a minute; percent of the voice's range
# What espeak calls the start of an unvoiced plosive is its burst; the silence before it, when the
# lips or the tongue are closed, is this long.
_ESPEAK_CLOSURE_S = 0.04
_UNVOICED_PLOSIVES = frozenset(("p", "t", "k", "ch"))
_SHORTEST_S = 0.04  # of a phone, espeak sometimes gives the second of a cluster no time at all


@cache
def _speaker(process: int) -> Speaker:
    """The synthesiser of one process: after a fork, each gets its own."""
    try:
        speaker = Speaker()
    except SpeakerError as error:
        raise KeyFaceError(f"espeak: {error}", _hint("espeak")) from error
    atexit.register(speaker.close)
    return speaker


def _espeak(text: str, voice: Voice) -> tuple[np.ndarray, int, list[Phone]]:
    name = voice.name + (f"+{voice.variant}" if voice.variant else "")
    pitch = round(_NORMAL_PITCH * (1 + 1.5 * math.log2(voice.pitch)))
    speaker = _speaker(os.getpid())
    try:
        sound, rate, starts = speaker.speak(
            text, name, round(_NORMAL_RATE * voice.rate), min(max(pitch, 0), 99)
        )
    except SpeakerError as error:
        if not speaker.running:
            _speaker.cache_clear()  # the next utterance starts another
        raise KeyFaceError(f"espeak: {error}") from error
    samples = np.frombuffer(sound, dtype=np.int16).astype(np.float32) / 32768
    ends = [start for _, start in starts[1:]] + [len(samples)]
    timed = ((name, at / rate, end / rate) for (name, at), end in zip(starts, ends, strict=True))
    return samples, rate, espeak_phones(timed, voice.language)


# espeak's mnemonics; two names share the time evenly
_ESPEAK_PHONES = {
    SILENCE: SILENCE, "t#": "d", ";": "y", "@L": "ax l", "VR": "er", "IR": "er", "ER": "er",
    "p": "p", "b": "b", "t": "t", "d": "d", "k": "k", "g": "g", "m": "m", "n": "n", "N": "ng",
    "f": "f", "v": "v", "T": "th", "D": "dh", "s": "s", "z": "z", "S": "sh", "Z": "zh",
    "h": "hh", "x": "k", "C": "sh", "tS": "ch", "dZ": "jh", "w": "w", "j": "y", "r": "r",
    "l": "l", "R": "r", "*": "d", "?": "", "W": "w",
    "@": "ax", "a": "ae", "aa": "aa", "A": "aa", "A:": "aa", "a:": "aa", "O": "ao", "0": "aa",
    "O:": "ao", "o": "ow", "o:": "ow", "V": "ah", "E": "eh", "e": "eh", "e:": "ey", "E:": "eh",
    "I": "ih", "i": "iy", "i:": "iy", "U": "uh", "u": "uw", "u:": "uw", "3": "er", "3:": "er",
    "eI": "ey", "aI": "ay", "OI": "oy", "oU": "ow", "aU": "aw",
    "A@": "aa r", "O@": "ao r", "o@": "ao r", "e@": "eh er", "i@": "iy er", "U@": "uh er",
    "aI@": "ay er", "aI3": "ay er", "aU@": "aw er", "i@3": "iy er", "I@": "ih er",
}  # fmt: skip

# where other languages mean another mouth by a mnemonic
_FOREIGN_PHONES = {
    "y": "uw", "y:": "uw", "Y": "uw", "Y:": "uw", "8": "uh", "W": "uh", "W~": "uh", "a": "aa",
    "a-": "aa", "e": "eh", "o": "ao", "3": "ax", "Q": "g", "B": "b", "pF": "p f", "ts": "t s",
    "ts;": "t s", "dz": "d z", "dz;": "d z", "ss": "s", "sx": "sh", "x": "hh", "l^": "l y",
    "n^": "n y", "R2": "d", "*": "d", "r": "g", "R": "d",
}  # fmt: skip


def espeak_phones(timed: Iterable[tuple[str, float, float]], language: str = "en") -> list[Phone]:
    """Map espeak's phone mnemonics, with start and end in seconds, onto `PHONES`.

    Marks such as `2`, `#` or `-` only tell allophones apart and are dropped from the right until
    the rest is known. A glottal stop prolongs what was before it. Unvoiced plosives begin with
    their closure, and a phone that was given no time takes some from the next.
    """
    table = _ESPEAK_PHONES if language == "en" else _ESPEAK_PHONES | _FOREIGN_PHONES
    phones: list[Phone] = []
    for mnemonic, start, end in timed:
        known = SILENCE if mnemonic.startswith(("_", "|")) or not mnemonic else mnemonic
        while known and known not in table:
            known = known[:-1]
        names = table.get(known, "").split()
        if not names and phones:
            phones[-1] = phones[-1]._replace(end_s=end)
        step = (end - start) / max(len(names), 1)
        for i, name in enumerate(names):
            phones.append(Phone(name, start + i * step, start + (i + 1) * step))
    for i in range(1, len(phones)):
        before, phone = phones[i - 1], phones[i]
        length = before.end_s - before.start_s
        if before.name != SILENCE and length < 0.01 and phone.name != SILENCE:
            bound = before.start_s + min(_SHORTEST_S, 0.4 * (phone.end_s - before.start_s))
        elif phone.name in _UNVOICED_PLOSIVES:
            bound = phone.start_s - min(_ESPEAK_CLOSURE_S, 0.6 * length)
        else:
            continue
        phones[i - 1] = before._replace(end_s=bound)
        phones[i] = phone._replace(start_s=bound)
    return phones
