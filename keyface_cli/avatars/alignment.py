"""Phone times of a voice that gives none: PocketSphinx finds the words, which are known, in it.

Measured on speech whose times are known, 12 sentences or 280 to 330 phones of each of seven voices:
the beginning of a phone is found with a median error of 5 to 10 ms. With flite and festival nine of
ten are within 24 ms and 1 of 100 is more than 50 ms off; with espeak's formant synthesis, the
least like a person, it is 36 ms and 5 of 100, and one sentence of 24 was not found.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from keyface_cli.avatars.voices import PHONES, SILENCE, Phone
from keyface_cli.config import SAMPLE_RATE
from keyface_cli.errors import KeyFaceError

DELAY_S = 0.010  # by which the aligner is early
_LONGEST_SCHWA_S = 0.07
_BEAM = 1e-80  # nothing is pruned: the words are known
_QUIET_DB, _SHORTEST_PAUSE_S = -34.0, 0.12  # of silence within a phone, below the loudest sound
_PLOSIVES, _CLOSURE_S = frozenset("ptkbdg"), 0.05


class AlignmentError(KeyFaceError):
    """The words are not found in the sound."""


def align(waveform: Tensor, text: str, pronounce: Callable[[str], list[str]]) -> list[Phone]:
    """Find out when each phone of a text is spoken.

    Args:
        waveform: (S,), 16 kHz, of one speaker.
        text: English, numbers in words.
        pronounce: gives the phones of a word, of `PHONES`; of words that the aligner does not know,
            and to tell stressed `ah` from unstressed `ax`, which it takes for one.

    Returns:
        The phones and the silences between them, without gaps, in steps of 10 ms.

    Raises:
        AlignmentError: they do not fit.
        KeyFaceError: pocketsphinx is not installed.
    """
    decoder, known = _decoder(os.getpid())
    words = re.findall(
        r"[a-z]+(?:'[a-z]+)*", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    for word in {*words} - known:
        if decoder.lookup_word(word) is None:
            names = ["ah" if name == "ax" else name for name in pronounce(word)]
            decoder.add_word(word, " ".join(names).upper(), True)
        known.add(word)
    sound = (waveform.clamp(-1, 1) * 32767).numpy().astype("<i2").tobytes()
    decoder.reinit_feat()  # or the result depends on what came before
    try:
        decoder.set_align_text(" ".join(words))
        _recognise(decoder, sound)
        decoder.set_alignment()
        _recognise(decoder, sound)
        # read at once, for its parts live only as long as it does
        found = [
            (word.name, [(part.name.lower(), part.start, part.duration) for part in word])
            for word in decoder.get_alignment()
        ]
    except (RuntimeError, TypeError) as error:  # the second where there is no alignment
        raise AlignmentError(f"cannot be aligned: {text!r}") from error
    phones = [phone for word, spoken in found for phone in _named(word, spoken, pronounce)]
    return _with_pauses(phones, waveform)


def _recognise(decoder: Any, sound: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(sound, full_utt=True)
    decoder.end_utt()


def _named(
    word: str, spoken: list[tuple[str, int, int]], pronounce: Callable[[str], list[str]]
) -> list[Phone]:
    """Name the phones of one word, given as name, start and duration in hundredths of a second."""
    names = [name if name in PHONES else SILENCE for name, _, _ in spoken]
    if "ah" in names:
        usual = pronounce(re.sub(r"\(\d+\)$", "", word))
        if ["ah" if name == "ax" else name for name in usual] == names:
            names = usual
        else:
            names = [
                "ax" if name == "ah" and duration / 100 < _LONGEST_SCHWA_S else name
                for name, (_, _, duration) in zip(names, spoken, strict=True)
            ]
    return [
        Phone(name, start / 100 + DELAY_S, (start + duration) / 100 + DELAY_S)
        for name, (_, start, duration) in zip(names, spoken, strict=True)
    ]


def _with_pauses(phones: list[Phone], waveform: Tensor) -> list[Phone]:
    """Part long phones where the sound is silent: the aligner lets some of them run into pauses."""
    hop = SAMPLE_RATE // 100
    power = waveform[: len(waveform) // hop * hop].view(-1, hop).square().mean(1)
    power = torch.nn.functional.avg_pool1d(power[None], 3, 1, 1)[0]
    quiet = power < torch.quantile(power, 0.95) * 10 ** (_QUIET_DB / 10)
    parted: list[Phone] = []
    for phone in phones:
        first, last = round(phone.start_s * 100), round(phone.end_s * 100)
        start, end = _longest_run(quiet[first:last].tolist())
        if phone.name == SILENCE or end - start < _SHORTEST_PAUSE_S * 100:
            parted.append(phone)
            continue
        pause = Phone(SILENCE, (first + start) / 100, (first + end) / 100)
        if phone.name in _PLOSIVES:  # their closure is silent too
            pause = pause._replace(end_s=max(pause.end_s - _CLOSURE_S, pause.start_s))
        before, after = pause.start_s - phone.start_s, phone.end_s - pause.end_s
        if before >= after:  # it is the longer part
            parted += [phone._replace(end_s=pause.start_s), pause._replace(end_s=phone.end_s)]
        else:
            parted += [pause._replace(start_s=phone.start_s), phone._replace(start_s=pause.end_s)]
    return parted


def _longest_run(flags: list[bool]) -> tuple[int, int]:
    """Return begin and end of the longest run of true ones."""
    runs, at = [(0, 0)], 0
    for flag, group in itertools.groupby(flags):
        size = len(list(group))
        if flag:
            runs.append((at, at + size))
        at += size
    return max(runs, key=lambda run: run[1] - run[0])


@cache
def _decoder(process: int) -> tuple[Any, set[str]]:
    """The aligner of one process, and the words that it has met."""
    try:
        from pocketsphinx import Decoder, get_model_path
    except ImportError as error:
        raise KeyFaceError(
            "phone times of this voice need pocketsphinx", 'pip install "keyface[voices]"'
        ) from error
    decoder = Decoder(
        hmm=get_model_path("en-us/en-us"),
        dict=get_model_path("en-us/cmudict-en-us.dict"),
        lm=None,
        loglevel="FATAL",
        bestpath=False,
        cmn="batch",
        beam=_BEAM,
        pbeam=_BEAM,
        wbeam=_BEAM,
        silprob=0.5,  # speakers pause
    )
    return decoder, set()
