"""Sounds that are no voice: what they are like, and that a scene's mouth rests in them."""

from __future__ import annotations

import pytest
import torch

from keyface_cli.avatars import rig, sounds
from keyface_cli.avatars import scene as scenes
from keyface_cli.avatars.alignment import AlignmentError
from keyface_cli.avatars.scene import Scene, random_scene
from keyface_cli.avatars.sounds import KINDS, draw_sound, make_sound
from keyface_cli.avatars.synthesis import Speech
from keyface_cli.avatars.voices import SILENCE, Phone, Voice

JAW, PRESS = rig.INDEX["jaw"], rig.INDEX["press"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def level_db(sound: torch.Tensor) -> float:
    return float(20 * sound.square().mean().sqrt().log10())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_sound_has_the_length_and_level_asked_for_and_repeats(kind: str, held_out: bool) -> None:
    for seed in range(5):
        sound = make_sound(kind, 1.51, generator(seed), level_db=-40, held_out=held_out)
        assert sound.shape == (24160,)
        assert sound.dtype == torch.float32
        assert level_db(sound) == pytest.approx(-40, abs=0.1)
        again = make_sound(kind, 1.51, generator(seed), level_db=-40, held_out=held_out)
        assert torch.equal(sound, again)
        other = make_sound(kind, 1.51, generator(seed + 50), level_db=-40, held_out=held_out)
        assert float(torch.cosine_similarity(sound, other, dim=0)) < 0.9
    loud = make_sound(kind, 1.0, generator(), level_db=0, held_out=held_out)
    assert float(loud.abs().max()) <= 1


def test_very_short_sounds_can_be_made() -> None:
    for kind in KINDS:
        assert make_sound(kind, 0.01, generator(1)).isfinite().all()


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(KeyError):
        make_sound("silence", 1.0, generator())


def test_hum_has_the_lines_of_the_mains_and_notes_their_pitch() -> None:
    spectrum = torch.fft.rfft(make_sound("hum", 4.0, generator(3))).abs()
    strongest = float(spectrum.argmax()) / 4
    assert min(abs(strongest / base - round(strongest / base)) for base in (50, 60)) < 0.02
    for play in (sounds._pluck, sounds._bell):
        note = play(220.0, 1.0, generator(2))
        peaks = torch.fft.rfft(note, n=160000).abs()
        assert float(peaks[2100:2300].max()) > 20 * float(peaks[2400:4000].median())


def test_kinds_are_drawn_all_and_repeat() -> None:
    first = [draw_sound(0.2, generator(seed)) for seed in range(3)]
    assert all(torch.equal(a, draw_sound(0.2, generator(i))) for i, a in enumerate(first))


def tone(text: str, voice: Voice) -> Speech:
    """Stand in for a synthesiser: half a second of an open vowel, after a closed mouth."""
    wave = torch.zeros(12000)
    wave[4000:] = 0.1 * torch.sin(torch.arange(8000) / 8)
    return Speech(wave, [Phone(SILENCE, 0.0, 0.25), Phone("aa", 0.25, 0.75)])


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No synthesiser, microphone, emotion or shift of the voice."""
    monkeypatch.setattr(scenes, "synthesise", tone)
    monkeypatch.setattr(
        scenes, "random_emotion", lambda num_frames, generator: torch.zeros(num_frames, 2)
    )


def spoken(scene: Scene) -> torch.Tensor:
    mask = torch.zeros(len(scene.waveform), dtype=torch.bool)
    for name, start_s, end_s in scene.phones:
        mask[round(start_s * 16000) : round(end_s * 16000)] = name != SILENCE
    return mask


@pytest.mark.usefixtures("still")
def test_mouths_rest_while_there_is_no_voice() -> None:
    throughout = stretches = 0
    for seed in range(12):
        scene = random_scene(seed, duration_s=4.0, voiceless=1.0)
        assert torch.equal(
            scene.waveform, random_scene(seed, duration_s=4.0, voiceless=1.0).waveform
        )
        assert len(scene.waveform) == 64000
        mouth = spoken(scene)
        if not mouth.any():
            throughout += 1
            assert {phone.name for phone in scene.phones} == {SILENCE}
            assert float(scene.rig[:, JAW].abs().max()) == 0
            assert float(scene.waveform.abs().max()) > 0
            assert -61 < level_db(scene.waveform) <= -13.9
            assert scene.text == ""
        else:
            plain = random_scene(seed, duration_s=4.0)
            assert scene.text in plain.text
            silent = [b - a for name, a, b in scene.phones if name == SILENCE]
            usual = [b - a for name, a, b in plain.phones if name == SILENCE]
            stretches += max(silent) > max(usual)
    assert throughout > 1
    assert stretches > 1


@pytest.mark.usefixtures("still")
def test_a_stretch_moves_neither_sound_nor_mouth_of_the_words_apart() -> None:
    for seed in range(20):
        scene = random_scene(seed, duration_s=6.0, voiceless=1.0, augmented=False)
        mask = spoken(scene)
        if mask.any():
            assert level_db(scene.waveform[mask]) == pytest.approx(-23, abs=0.2)
            opening = scene.rig[:, JAW]
            frames = mask.view(-1, 640).float().mean(1)
            assert float(opening[frames == 1].median()) > 0.5
            assert float(opening[frames == 0].median()) < 0.05


@pytest.mark.usefixtures("still")
def test_what_lies_beneath_speech_does_not_move_the_mouth() -> None:
    for seed in range(5):
        plain = random_scene(seed, duration_s=4.0, augmented=False)
        under = random_scene(seed, duration_s=4.0, augmented=False, beneath=1.0)
        assert torch.equal(plain.rig, under.rig)
        assert plain.phones == under.phones
        added = under.waveform - plain.waveform
        assert -24.5 - 25 - 3 < level_db(added) < -24.4 - 1.9  # peaked ones stay below


@pytest.mark.usefixtures("still")
def test_what_is_sent_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def transmit(waveform: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sent.append(len(waveform))
        return -waveform

    monkeypatch.setattr(scenes, "transmit", transmit)
    plain = random_scene(2, duration_s=3.0)
    assert not sent
    changed = random_scene(2, duration_s=3.0, transmitted=1.0)
    assert sent == [48000]
    assert torch.equal(plain.rig, changed.rig)
    assert not torch.equal(plain.waveform, changed.waveform)
    random_scene(2, duration_s=3.0, transmitted=1.0, augmented=False)
    assert len(sent) == 1


def test_another_sentence_is_said_where_the_words_are_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def fails_at_first(text: str, voice: Voice) -> Speech:
        asked.append(text)
        if len(asked) < 3:
            raise AlignmentError("cannot be aligned")
        return tone(text, voice)

    monkeypatch.setattr(scenes, "synthesise", fails_at_first)
    scene = random_scene(1, duration_s=0.5, sentences=("One.", "Two.", "Three.", "Four."))
    assert len(set(asked)) == 3
    assert scene.text == asked[-1]

    def fails(text: str, voice: Voice) -> Speech:
        raise AlignmentError(f"cannot be aligned: {text!r}")

    monkeypatch.setattr(scenes, "synthesise", fails)
    with pytest.raises(AlignmentError):
        random_scene(1, duration_s=0.5)
