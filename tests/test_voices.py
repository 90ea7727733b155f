"""Timed speech: the phone sets, the split of the voices, augmentation, and each engine's timing."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from engines import missing_engines

from keyface_cli.avatars import microphone, sentences, synthesis, voices
from keyface_cli.avatars.voices import SILENCE, Phone, Voice
from keyface_cli.errors import KeyFaceError

needs = {
    engine: pytest.mark.skipif(
        engine in missing_engines(), reason=f"the Debian package of {engine} is absent"
    )
    for engine in ("flite", "espeak", "festival")
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_held_out_voices_share_neither_speaker_nor_accent_nor_timbre_with_training() -> None:
    training = voices.TRAINING_VOICES
    assert voices.HELD_OUT_VOICES
    for voice in voices.HELD_OUT_VOICES:
        assert not any(voice.engine == v.engine and voice.name == v.name for v in training)
        if voice.engine == "espeak":
            assert voice.variant not in {v.variant for v in training}


def test_drawn_voices_repeat_with_the_seed_and_vary() -> None:
    drawn = [voices.draw_voice(generator(seed)) for seed in range(60)]
    assert drawn == [voices.draw_voice(generator(seed)) for seed in range(60)]
    assert {voice.engine for voice in drawn} == {"flite", "espeak", "festival"}
    assert not any(voice.held_out for voice in drawn)
    assert all(0.8 <= voice.rate <= 1.25 and 0.85 <= voice.pitch <= 1.2 for voice in drawn)
    assert voices.draw_voice(generator(1), wanted=("flite",)).engine == "flite"
    with pytest.raises(ValueError, match="held-out"):
        voices.draw_voice(generator(), held_out=True, wanted=("festival",))


def test_espeak_phones_map_allophones_splits_pauses_and_closures() -> None:
    mapped = synthesis.espeak_phones(
        [
            ("_:", 0.0, 0.1),
            ("@2", 0.1, 0.2),
            ("t", 0.2, 0.26),
            ("A@", 0.26, 0.46),
            ("?", 0.46, 0.5),
            ("b", 0.5, 0.5),
            ("l", 0.5, 0.6),
        ]
    )
    assert [phone.name for phone in mapped] == ["pau", "ax", "t", "aa", "r", "b", "l"]
    for before, after in itertools.pairwise(mapped):
        assert before.end_s == pytest.approx(after.start_s)
    times = {phone.name: (phone.start_s, phone.end_s) for phone in mapped}
    assert times["t"] == pytest.approx((0.16, 0.26))  # the closure before the burst
    assert times["r"] == pytest.approx((0.36, 0.5))  # prolonged by the glottal stop
    assert times["b"] == pytest.approx((0.5, 0.54))  # given no time by the library


def test_tidying_shifts_clips_and_fills_with_silence() -> None:
    spoken = [Phone("aa", 0.1, 0.3), Phone(SILENCE, 0.3, 0.4), Phone(SILENCE, 0.4, 0.9)]
    tidy = synthesis._tidy(spoken, 0.6, 0.01)
    assert [phone.name for phone in tidy] == [SILENCE, "aa", SILENCE]
    assert [phone.start_s for phone in tidy] == pytest.approx([0, 0.11, 0.31])
    assert [phone.end_s for phone in tidy] == pytest.approx([0.11, 0.31, 0.6])


def test_shifting_a_voice_scales_time_as_it_says() -> None:
    tone = torch.sin(2 * torch.pi * 200 * torch.arange(16000) / 16000)
    for seed in range(5):
        shifted, scale = microphone.shift_voice(tone, generator(seed))
        assert 1 / 1.16 < scale < 1.16
        assert len(shifted) == pytest.approx(16000 * scale, abs=2)
        peak = int(torch.fft.rfft(shifted, n=160000).abs().argmax()) / 10
        assert peak == pytest.approx(200 / scale, rel=0.01)


def test_noise_has_the_ratio_that_was_asked_for() -> None:
    tone = torch.sin(torch.arange(32000) / 10)
    for colour in (0.0, 1.0):
        noise = microphone.add_noise(tone, 12.0, colour, generator()) - tone
        ratio = 10 * torch.log10(tone.square().mean() / noise.square().mean())
        assert float(ratio) == pytest.approx(12.0, abs=0.01)


def test_degrading_repeats_keeps_length_and_does_not_move_the_sound() -> None:
    pulse = torch.zeros(16000)
    pulse[6000:8000] = torch.randn(2000, generator=generator(7))
    changed = 0
    for seed in range(20):
        recorded = microphone.degrade(pulse, generator(seed))
        assert torch.equal(recorded, microphone.degrade(pulse, generator(seed)))
        assert recorded.shape == pulse.shape
        assert recorded.isfinite().all()
        assert float(recorded.abs().max()) <= 1
        spectrum = torch.fft.rfft(recorded).conj() * torch.fft.rfft(pulse)
        lag = int(torch.fft.irfft(spectrum).argmax())
        assert min(lag, 16000 - lag) <= 1
        similarity = torch.cosine_similarity(recorded, pulse, dim=0)
        changed += float(similarity) < 0.999
    assert 8 <= changed <= 19


SENT = ("_telephone", "_few_bits", "_hard_room")


@pytest.mark.parametrize("way", SENT)
@pytest.mark.parametrize("size", [16000, 15999])
def test_what_is_sent_repeats_keeps_length_and_does_not_move_the_sound(way: str, size: int) -> None:
    pulse = torch.zeros(size)
    burst = microphone.coloured_noise(4000, 1.0, generator(7))
    pulse[6000:10000] = 0.1 * burst / burst.std()
    send = getattr(microphone, way)
    for seed in range(5):
        sent = send(pulse, generator(seed))
        assert torch.equal(sent, send(pulse, generator(seed)))
        assert sent.shape == pulse.shape
        assert sent.isfinite().all()
        spectrum = torch.fft.rfft(sent).conj() * torch.fft.rfft(pulse)
        lag = int(torch.fft.irfft(spectrum, n=size).argmax())
        assert min(lag, size - lag) <= 1
        similarity = float(torch.cosine_similarity(sent, pulse, dim=0))
        assert 0.3 < similarity < 0.99
    assert not send(torch.zeros(size), generator()).any()


def test_ways_lose_what_they_are_known_to_lose() -> None:
    noise = 0.1 * torch.randn(32000, generator=generator(1))
    before = torch.fft.rfft(noise).abs()
    telephone = torch.fft.rfft(microphone._telephone(noise, generator(2))).abs()
    band = slice(2 * 900, 2 * 2500)  # bins of half a hertz
    assert float(telephone[band].mean() / before[band].mean()) == pytest.approx(1, abs=0.05)
    assert float(telephone[: 2 * 60].mean() / before[: 2 * 60].mean()) < 0.1
    assert float(telephone[2 * 4100 :].mean() / before[2 * 4100 :].mean()) < 0.02
    coded = microphone._few_bits(noise, generator(2))
    assert float(torch.fft.rfft(coded).abs()[2 * 7600 :].mean() / before.mean()) < 0.05
    drawn = {float(microphone.transmit(noise, generator(seed)).sum()) for seed in range(9)}
    assert len(drawn) == 9


def test_a_missing_engine_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for engine, package in (("flite", "flite"), ("festival", "festvox-us-slt-hts")):
        with pytest.raises(KeyFaceError, match=engine) as caught:
            synthesis.synthesise("hello", Voice(engine, "slt"))
        assert package in (caught.value.hint or "")


def test_an_unknown_engine_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown engine 'parrot'"):
        synthesis.synthesise("hello", Voice("parrot", "polly"))


SPOKEN = (
    pytest.param(Voice("flite", "slt"), marks=needs["flite"]),
    pytest.param(Voice("flite", "kal16", rate=1.2), marks=needs["flite"]),
    pytest.param(Voice("espeak", "en-us", "f3"), marks=needs["espeak"]),
    pytest.param(Voice("espeak", "en", "m1", rate=0.8), marks=needs["espeak"]),
    pytest.param(Voice("festival", "ked_diphone"), marks=needs["festival"]),
)


@pytest.mark.parametrize("voice", SPOKEN, ids=lambda voice: f"{voice.engine}-{voice.name}")
def test_phones_agree_with_the_sound(voice: Voice) -> None:
    """The level of each phone's class, moved in time, fits best where it is: within 20 ms."""
    expected_level = {SILENCE: 0.0, **dict.fromkeys(voices.VOWELS, 1.0)}
    levels, expected = [], []
    for text in sentences.TRAINING_SENTENCES[:4]:
        speech = synthesis.synthesise(text, voice)
        assert speech.waveform.dtype == torch.float32
        assert float(speech.waveform.abs().max()) <= 1
        assert speech.phones[0].start_s == 0
        assert speech.phones[-1].end_s == pytest.approx(len(speech.waveform) / 16000)
        assert {phone.name for phone in speech.phones} <= set(voices.PHONES)
        hops = speech.waveform[: len(speech.waveform) // 80 * 80].reshape(-1, 80)
        power = torch.nn.functional.avg_pool1d(
            hops.square().mean(1)[None], 5, 1, padding=2, count_include_pad=False
        )[0]
        level = 10 * torch.log10(power + 1e-6)
        wanted = torch.zeros(len(level))
        for name, start, end in speech.phones:
            usual = 0.25 if name in "ptkbdg" else 0.6
            wanted[round(start * 200) : round(end * 200)] = expected_level.get(name, usual)
        levels += [level, torch.full((40,), -60.0)]
        expected += [wanted, torch.zeros(40)]
    level, wanted = torch.cat(levels), torch.cat(expected)
    fits = {
        lag: float(torch.corrcoef(torch.stack([wanted, level.roll(-lag)]))[0, 1])
        for lag in range(-20, 21)
    }
    best, _ = max(fits.items(), key=lambda item: item[1])
    assert abs(best) <= 4  # of 5 ms
    assert fits[0] > 0.7


@needs["espeak"]
def test_espeak_always_gives_the_same_sound() -> None:
    voice = Voice("espeak", "en-us", "f3")
    first = synthesis.synthesise("The same words again.", voice)
    synthesis.synthesise("Something else.", Voice("espeak", "en-029", "m1"))
    again = synthesis.synthesise("The same words again.", voice)
    assert torch.equal(first.waveform, again.waveform)
    assert first.phones == again.phones


@needs["espeak"]
def test_espeak_refuses_an_unknown_voice_and_goes_on() -> None:
    with pytest.raises(KeyFaceError, match="no voice 'en-atlantis'"):
        synthesis.synthesise("hello", Voice("espeak", "en-atlantis"))
    assert len(synthesis.synthesise("hello", Voice("espeak", "en-us")).waveform) > 1600


def test_sentences_are_many_and_the_held_out_ones_stay_out() -> None:
    held_out = set(sentences.HELD_OUT_SENTENCES)
    assert len(held_out) == len(sentences.HELD_OUT_SENTENCES) == 60
    assert len(set(sentences.TRAINING_SENTENCES)) == len(sentences.TRAINING_SENTENCES)
    source = generator(3)
    drawn = [sentences.draw_sentence(source) for _ in range(3000)]
    assert len(set(drawn)) > 1900
    assert held_out.isdisjoint(drawn)
    assert held_out.isdisjoint(sentences.TRAINING_SENTENCES)
    assert not any("{" in text or "  " in text or text[0].islower() for text in drawn)
    assert sentences.draw_sentence(generator(5)) == sentences.draw_sentence(generator(5))
    assert sentences.draw_sentence(generator(5), held_out=True) in held_out
