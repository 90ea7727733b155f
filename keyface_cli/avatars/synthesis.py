"""Text to speech whose phones are timed, by the synthesisers that Debian packages, or two more.

None of them is needed to animate, only to train. Their phone sets are mapped onto `voices.PHONES`;
the neural ones of `natural` tell no phones, which are found in their sound.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from keyface_cli.avatars import natural
from keyface_cli.avatars.alignment import AlignmentError, align
from keyface_cli.avatars.espeak import Speaker, SpeakerError
from keyface_cli.avatars.voices import PHONES, SILENCE, Phone, Voice, append_phone
from keyface_cli.config import SAMPLE_RATE
from keyface_cli.errors import KeyFaceError

LEVEL = 0.06  # root mean square of the speech in every waveform that `synthesise` returns
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


class Speech(NamedTuple):
    """A waveform (S,), float32, mono, 16 kHz, and the phones that cover it without gaps."""

    waveform: Tensor
    phones: list[Phone]


def synthesise(text: str, voice: Voice) -> Speech:
    """Speak a text, at the same loudness whatever the voice.

    Raises:
        AlignmentError: the phones of a natural voice are not found in its sound.
        KeyFaceError: the engine is not installed, fails, or says nothing.
    """
    engines: dict[str, Callable[[str, Voice], tuple[np.ndarray, int, list[Phone]]]] = {
        "flite": _flite,
        "espeak": _espeak,
        "festival": _festival,
        "piper": _natural,
        "kokoro": _natural,
    }
    if voice.engine not in engines:
        raise ValueError(f"unknown engine {voice.engine!r}")
    samples, rate, phones = engines[voice.engine](text, voice)
    speech = timed(samples, rate, phones, _DELAY_S.get((voice.engine, voice.name), 0.0))
    if speech is None:
        raise KeyFaceError(f"{voice.engine} voice {voice.name!r} said nothing for {text!r}")
    return speech


def timed(
    samples: np.ndarray, rate: int, phones: Iterable[Phone], delay_s: float = 0.0
) -> Speech | None:
    """Bring speech to its rate and its loudness, and let its phones cover it.

    Args:
        samples: (S,).
        rate: of the samples, hertz.
        phones: in their order; gaps between them are silence.
        delay_s: by which the sound comes later than the phones say.

    Returns:
        The speech, or None where nothing is said.
    """
    waveform = torch.from_numpy(_resampled(samples, rate))
    phones = _tidy(phones, len(waveform) / SAMPLE_RATE, delay_s)
    if not any(phone.name != SILENCE for phone in phones):
        return None
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


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _tidy(phones: Iterable[Phone], duration_s: float, delay_s: float) -> list[Phone]:
    """Shift, clip to the sound, join neighbouring silences and fill both ends with silence."""
    tidy: list[Phone] = []
    reached = 0.0
    for name, start, end in (*phones, Phone(SILENCE, duration_s, duration_s)):
        start = min(max(start + delay_s, reached), duration_s)
        end = min(max(end + delay_s, start), duration_s)
        if start - reached > 1e-6:
            append_phone(tidy, Phone(SILENCE, reached, start))
        if end - start > 1e-6:
            append_phone(tidy, Phone(name, start, end))
        reached = max(reached, end)
    return tidy


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


# --- Piper and Kokoro, which do not tell when they say what

_BEFORE_S, _AFTER_S = 0.1, 0.15  # of silence that is left around the speech


def _natural(text: str, voice: Voice) -> tuple[np.ndarray, int, list[Phone]]:
    samples, rate = natural.speak(voice.engine, text, voice.name, voice.variant, voice.rate)
    samples = _resampled(samples, rate)
    phones = align(torch.from_numpy(samples), text, pronounce)
    spoken = [phone for phone in phones if phone.name != SILENCE]
    first = max(0, int((spoken[0].start_s - _BEFORE_S) * SAMPLE_RATE)) if spoken else 0
    last = int((spoken[-1].end_s + _AFTER_S) * SAMPLE_RATE) if spoken else len(samples)
    cut_s = first / SAMPLE_RATE
    phones = [Phone(name, max(a - cut_s, 0.0), b - cut_s) for name, a, b in phones if b > cut_s]
    return samples[first:last], SAMPLE_RATE, phones


def aligned(samples: np.ndarray, rate: int, text: str) -> Speech:
    """Find the phones of a text in a recording of it, see `alignment.align`.

    Args:
        samples: (S,) float32, of one speaker.
        rate: of the samples, hertz.
        text: English, numbers in words.

    Returns:
        The whole recording at the loudness of all speech.

    Raises:
        AlignmentError: they do not fit.
        KeyFaceError: pocketsphinx or flite is not installed.
    """
    samples = _resampled(samples, rate)
    speech = timed(samples, SAMPLE_RATE, align(torch.from_numpy(samples), text, pronounce))
    if speech is None:
        raise AlignmentError(f"nothing is said: {text!r}")
    return speech


@cache
def pronounce(word: str) -> list[str]:
    """Return the phones of an English word, with flite's lexicon and rules.

    Raises:
        KeyFaceError: flite is not installed, or fails.
    """
    printed = _run([_program("flite"), "-t", word, "-ps", "none"], "flite")
    return [name for name in map(_radio_phone, printed.split()) if name != SILENCE]


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
