"""Sound that stays the same is silenced; voices, sung or whispered or in noise, are not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from keyface_cli.avatars.sounds import make_sound
from keyface_cli.avatars.vocalisations import vocalise
from keyface_cli.config import SAMPLE_RATE
from keyface_cli.models.speech import encoded_sound
from keyface_cli.models.steady_sound import FADE, SteadySilenced
from keyface_cli.presets import PRESETS

Wave = NDArray[np.float32]


def sound(kind: str, seconds: float, seed: int = 0) -> Wave:
    generator = torch.Generator().manual_seed(seed)
    return make_sound(kind, seconds, generator, level_db=-25).numpy().astype(np.float32)


def syllables(seconds: float, whispered: bool = False) -> Wave:
    """Five vowels a second, each of its own two formants."""
    draw = np.random.default_rng(0)
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    source = draw.normal(0, 1, len(time_s))
    if not whispered:
        pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time_s)
        phase = np.cumsum(pitch) / SAMPLE_RATE
        source = sum(np.cos(2 * np.pi * order * phase) for order in range(1, 50))
    spectrum = np.fft.rfft(source)
    hertz = np.fft.rfftfreq(len(time_s), 1 / SAMPLE_RATE)
    made = np.zeros(len(time_s))
    for index in range(round(5 * seconds)):
        shape = sum(
            np.exp(-0.5 * ((hertz - formant) / 120) ** 2)
            for formant in (draw.uniform(250, 900), draw.uniform(900, 2800))
        )
        loud = np.exp(-0.5 * ((time_s - (index + 0.5) / 5) / 0.05) ** 2)
        made += loud * np.fft.irfft(spectrum * shape, len(time_s))
    return (0.1 * made / made.std()).astype(np.float32)


def silenced(wave: Wave) -> float:
    """The share of a recording that becomes silence."""
    changed = SteadySilenced(wave)[: len(wave)]
    return float(((changed == 0) & (wave != 0)).mean())


@pytest.mark.parametrize("kind", ["noise", "hum"])
def test_noise_is_silence(kind: str) -> None:
    assert np.mean([silenced(sound(kind, 4.0, seed)) for seed in range(6)]) > 0.8


@pytest.mark.parametrize("kind", ["music", "clicks", "tones"])
def test_what_changes_is_kept(kind: str) -> None:
    assert all(silenced(sound(kind, 4.0, seed)) == 0 for seed in range(6))


@pytest.mark.parametrize("whispered", [False, True])
@pytest.mark.parametrize("noise", ["noise", "hum", "room"])
def test_a_voice_is_kept_in_noise_as_loud_as_itself(noise: str, whispered: bool) -> None:
    voice, around = syllables(6, whispered), sound(noise, 6.0)
    assert silenced(voice + around * voice.std() / around.std()) == 0


@pytest.mark.parametrize("name", ["mhm", "oh", "ah", "sigh", "yawn", "laugh"])
def test_vocalisations_are_kept(name: str) -> None:
    waves = (vocalise(name, torch.Generator().manual_seed(seed)).waveform for seed in range(6))
    assert all(silenced(wave.numpy().astype(np.float32)) == 0 for wave in waves)


@pytest.mark.parametrize("vibrato", [0.005, 0.02])
@pytest.mark.parametrize("pitch", [110, 220, 440])
def test_a_long_sung_note_is_kept(pitch: float, vibrato: float) -> None:
    time_s = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    phase = np.cumsum(pitch * (1 + vibrato * np.sin(2 * np.pi * 5.5 * time_s))) / SAMPLE_RATE
    orders = range(1, int(7000 / pitch))
    note = sum(np.sin(2 * np.pi * order * phase) / order for order in orders)
    assert silenced((0.1 * np.asarray(note)).astype(np.float32)) == 0


def test_only_the_noise_between_two_voices_goes_and_fades() -> None:
    voice = syllables(2)
    noise = 0.3 * sound("noise", 5.0, 1)
    wave = np.concatenate([voice, noise, voice])
    changed = SteadySilenced(wave)[:]
    begin, end = len(voice), len(voice) + len(noise)
    kept = np.r_[0 : begin + SAMPLE_RATE // 5, end - SAMPLE_RATE // 5 : len(wave)]
    assert np.array_equal(changed[kept], wave[kept])
    gone = np.flatnonzero((changed == 0) & (wave != 0))
    assert len(gone) > 3 * SAMPLE_RATE
    ratio = changed[gone[0] - FADE : gone[0]] / wave[gone[0] - FADE : gone[0]]
    assert np.all(np.diff(ratio) < 0)


def test_any_slice_holds_what_the_whole_holds() -> None:
    wave = np.concatenate([syllables(2), sound("noise", 5.0), syllables(1.3)])
    shown = SteadySilenced(wave)
    whole = shown[:]
    draw = np.random.default_rng(0)
    for start, stop in np.sort(draw.integers(0, len(wave), (40, 2)), axis=1):
        assert np.array_equal(shown[start:stop], whole[start:stop])


@pytest.mark.parametrize("size", [0, 1, 640, 31_999, 32_000, 32_001])
def test_short_recordings(size: int) -> None:
    wave = sound("noise", 3.0)[:size]
    assert len(SteadySilenced(wave)[:]) == len(SteadySilenced(wave)) == size


def test_a_model_says_whether_it_wants_this() -> None:
    noise = sound("noise", 3.0)
    assert encoded_sound(PRESETS["keyface"], noise) is noise
    assert not np.any(encoded_sound(PRESETS["mini"], noise)[:])
    still = dataclasses.replace(PRESETS["mini"].sampling, silence_steady_sound=False)
    assert encoded_sound(dataclasses.replace(PRESETS["mini"], sampling=still), noise) is noise
