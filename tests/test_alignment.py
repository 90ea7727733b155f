"""Phones of a voice that tells none: names, times, pauses, and words that do not fit."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from engines import missing_engines

from keyface_cli.avatars import alignment, sentences, synthesis
from keyface_cli.avatars.alignment import AlignmentError, align
from keyface_cli.avatars.voices import SILENCE, Voice
from keyface_cli.errors import KeyFaceError

PRONOUNCED = {"a": ["ax"], "above": ["ax", "b", "ah", "v"], "zorb": ["z", "ao", "r", "b"]}
Word = tuple[str, list[tuple[str, int, int]]]


class FakeDecoder:
    """Stands in for PocketSphinx: knows two words, and finds what it was told to find."""

    found: list[Word] | None = None

    def __init__(self, **options: object) -> None:
        self.words = {"a": "AH", "above": "AH B AH V"}
        self.aligned: list[bytes] = []

    def lookup_word(self, word: str) -> str | None:
        return self.words.get(word)

    def add_word(self, word: str, phones: str, update: bool) -> None:
        self.words[word] = phones

    def reinit_feat(self) -> None:
        self.aligned.clear()

    def set_align_text(self, text: str) -> None:
        self.text = text

    def start_utt(self) -> None: ...

    def end_utt(self) -> None: ...

    def process_raw(self, sound: bytes, full_utt: bool) -> None:
        self.aligned.append(sound)

    def set_alignment(self) -> None:
        if self.found is None:
            raise RuntimeError("Failed to set up sub-word alignment")

    def get_alignment(self) -> Iterator[object]:
        for name, parts in self.found or []:
            yield Spoken(name, parts)


class Spoken:
    def __init__(self, name: str, parts: list[tuple[str, int, int]]) -> None:
        self.name, self.parts = name, parts

    def __iter__(self) -> Iterator[object]:
        for name, start, duration in self.parts:
            yield SimpleNamespace(name=name, start=start, duration=duration)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeDecoder]]:
    module = ModuleType("pocketsphinx")
    module.Decoder = FakeDecoder  # type: ignore[attr-defined]
    module.get_model_path = lambda name: name  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pocketsphinx", module)
    monkeypatch.setattr(FakeDecoder, "found", None)
    alignment._decoder.cache_clear()
    yield FakeDecoder
    alignment._decoder.cache_clear()


def pronounce(word: str) -> list[str]:
    return PRONOUNCED[word]


def test_phones_take_names_and_times(
    decoder: type[FakeDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Word] = [
        ("<sil>", [("SIL", 0, 10)]),
        ("above(2)", [("AH", 10, 5), ("B", 15, 6), ("AH", 21, 12), ("V", 33, 5)]),
        ("a", [("AH", 38, 4)]),
        ("[NOISE]", [("+NSN+", 42, 8)]),
    ]
    monkeypatch.setattr(decoder, "found", found)
    phones = align(torch.randn(8000), "Above a\N{RIGHT SINGLE QUOTATION MARK}.", pronounce)
    assert [p.name for p in phones] == [SILENCE, "ax", "b", "ah", "v", "ax", SILENCE]
    assert phones[1].start_s == pytest.approx(0.10 + alignment.DELAY_S)
    assert phones[-1].end_s == pytest.approx(0.50 + alignment.DELAY_S)
    for before, after in itertools.pairwise(phones):
        assert before.end_s == pytest.approx(after.start_s)


def test_unstressed_vowels_are_told_by_their_length_where_the_lexicon_differs(
    decoder: type[FakeDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Word] = [("above", [("AH", 0, 5), ("V", 5, 5), ("AH", 10, 9)])]
    monkeypatch.setattr(decoder, "found", found)
    phones = align(torch.randn(8000), "above", pronounce)
    assert [p.name for p in phones] == ["ax", "v", "ah"]


def test_new_words_are_pronounced_once_and_the_sound_is_aligned_twice(
    decoder: type[FakeDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "found", [("zorb", [("Z", 0, 50)])])
    wave = torch.linspace(-2, 2, 8000)
    align(wave, "Zorb, a zorb!", pronounce)
    used, known = alignment._decoder(os.getpid())
    assert used.text == "zorb a zorb"
    assert used.words["zorb"] == "Z AO R B"
    assert known == {"zorb", "a"}
    assert len(used.aligned) == 2
    samples = np.frombuffer(used.aligned[0], "<i2")
    assert (samples.min(), samples.max()) == (-32767, 32767)


def test_a_pause_that_a_phone_ran_into_becomes_silence(
    decoder: type[FakeDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = torch.randn(16000)
    wave[3200:8000] = 0  # 0.2 to 0.5 s
    found: list[Word] = [("above", [("AH", 0, 10), ("V", 10, 30), ("B", 40, 30), ("AH", 70, 30)])]
    monkeypatch.setattr(decoder, "found", found)
    phones = align(wave, "above", pronounce)
    assert [p.name for p in phones] == ["ah", "v", SILENCE, "b", "ah"]
    pause = phones[2]
    assert pause.start_s == pytest.approx(0.2, abs=0.03)
    assert pause.end_s == pytest.approx(0.41)
    assert phones[3].start_s == pytest.approx(pause.end_s)


def test_words_that_do_not_fit_are_an_error(decoder: type[FakeDecoder]) -> None:
    with pytest.raises(AlignmentError, match=r"cannot be aligned: 'a a'"):
        align(torch.randn(8000), "a a", pronounce)


def test_a_missing_aligner_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    alignment._decoder.cache_clear()
    with pytest.raises(KeyFaceError, match="pocketsphinx") as caught:
        align(torch.zeros(8000), "a", pronounce)
    assert "keyface[voices]" in (caught.value.hint or "")


@pytest.mark.skipif(
    importlib.util.find_spec("pocketsphinx") is None or "flite" in missing_engines(),
    reason="pocketsphinx or the Debian package of flite is absent",
)
def test_known_phone_times_are_found() -> None:
    errors = []
    for text in sentences.TRAINING_SENTENCES[:3]:
        speech = synthesis.synthesise(text, Voice("flite", "slt"))
        found = synthesis.aligned(speech.waveform.numpy(), 16000, text).phones
        again = synthesis.aligned(speech.waveform.numpy(), 16000, text).phones
        assert found == again
        true_names = [phone.name for phone in speech.phones]
        if [phone.name for phone in found] == true_names:
            errors += [
                abs(a.start_s - b.start_s) for a, b in zip(found, speech.phones, strict=True)
            ]
    assert len(errors) > 20
    assert float(np.median(errors)) < 0.015
