"""From timed phones and emotion to the rig: what the mouth must do, and what may be random."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from keyface_cli.avatars import performance, rig, synthesis, voices
from keyface_cli.avatars import scene as scenes
from keyface_cli.avatars.performance import perform, phone_labels
from keyface_cli.avatars.scene import random_emotion, random_scene
from keyface_cli.avatars.voices import PHONES, SILENCE, VOWELS, Phone


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def timed(names: str, vowel_s: float = 0.12, other_s: float = 0.07) -> list[Phone]:
    """Phones of plausible length between half a second of silence on both sides."""
    phones = [Phone(SILENCE, 0.0, 0.5)]
    for name in names.split():
        start = phones[-1].end_s
        phones.append(Phone(name, start, start + (vowel_s if name in VOWELS else other_s)))
    return [*phones, Phone(SILENCE, phones[-1].end_s, phones[-1].end_s + 0.5)]


def acted(names: str) -> tuple[torch.Tensor, list[Phone]]:
    phones = timed(names)
    count = math.ceil(phones[-1].end_s * 25)
    return perform(phones, count, torch.zeros(count, 2), generator()), phones


def column(tracks: torch.Tensor, name: str) -> torch.Tensor:
    return tracks[:, rig.INDEX[name]]


def at(tracks: torch.Tensor, phone: Phone, name: str) -> float:
    return float(column(tracks, name)[int((phone.start_s + phone.end_s) / 2 * 25)])


def test_every_phone_has_a_viseme_and_silence_is_label_zero() -> None:
    assert set(performance.VISEMES) == set(PHONES)
    assert PHONES[0] == SILENCE
    assert len(set(PHONES)) == len(PHONES)


def test_labels_are_read_in_the_middle_of_each_slot() -> None:
    phones = [Phone(SILENCE, 0.0, 0.031), Phone("aa", 0.031, 0.05), Phone("m", 0.05, 0.1)]
    names = [PHONES[label] for label in phone_labels(phones, 3).tolist()]
    assert names == [SILENCE, SILENCE, "m", "m", "m", SILENCE]


def test_the_mouth_rests_closed_in_silence() -> None:
    tracks, phones = acted("aa m iy")
    quiet = slice(0, int((phones[0].end_s - 0.15) * 25))
    assert float(column(tracks, "jaw")[quiet].max()) < 0.01
    assert float(column(tracks, "teeth")[quiet].max()) < 0.01
    still = perform([Phone(SILENCE, 0, 4)], 100, torch.zeros(100, 2), generator(2))
    assert float(still[:, performance._MOUTH_INDEX].std(0).max()) < 1e-6


@pytest.mark.parametrize("vowel_s", [0.06, 0.12])
@pytest.mark.parametrize("other_s", [0.045, 0.09])
@pytest.mark.parametrize("offset", [0.0, 0.013, 0.027])
def test_every_closure_is_seen_closed(vowel_s: float, other_s: float, offset: float) -> None:
    phones = [
        Phone(name, start + offset, end + offset)
        for name, start, end in timed("aa p aa b ae m ao p ay m aa", vowel_s, other_s)
    ]
    mouth = performance.mouth_tracks(phones, 60)
    for phone in phones:
        if phone.name in "pbm":
            first, last = int(phone.start_s * 25), int(phone.end_s * 25)
            assert float(mouth[first : last + 1, 0].min()) == 0
            assert float(mouth[first : last + 1, 4].max()) > 0.3
    for phone in phones:
        if phone.name in VOWELS:
            assert float(mouth[int((phone.start_s + phone.end_s) / 2 * 25), 0]) > 0.15


def test_phones_look_as_they_should() -> None:
    tracks, phones = acted("aa f iy s uw dh aa")
    by_name = {phone.name: phone for phone in phones}
    assert at(tracks, by_name["aa"], "jaw") > 0.6
    assert at(tracks, by_name["f"], "jaw") < 0.2
    assert at(tracks, by_name["f"], "teeth") > 0.5
    assert at(tracks, by_name["s"], "teeth") > 0.5
    assert at(tracks, by_name["iy"], "width") > 0.5
    assert at(tracks, by_name["uw"], "round") > 0.7
    assert at(tracks, by_name["dh"], "tongue") > 0.5


def test_lips_round_ahead_through_a_yielding_consonant() -> None:
    rounded, phones = acted("iy t uw")
    spread, _ = acted("iy t iy")
    assert at(rounded, phones[2], "round") > at(spread, phones[2], "round") + 0.2


def test_a_louder_vowel_opens_wider() -> None:
    phones = timed("t aa t t t aa t")
    wave = torch.randn(math.ceil(phones[-1].end_s * 16000), generator=generator()) * 0.01
    loud, quiet = (phone for phone in phones if phone.name == "aa")
    wave[int(loud.start_s * 16000) : int(loud.end_s * 16000)] *= 20
    count = math.ceil(len(wave) / 640)
    tracks = perform(phones, count, torch.zeros(count, 2), generator(), waveform=wave)
    assert at(tracks, loud, "jaw") > 1.2 * at(tracks, quiet, "jaw")


def test_expression_is_zero_at_neutral_and_smooth_over_the_square() -> None:
    assert not performance.expression(torch.zeros(1, 2)).any()
    line = torch.linspace(-1, 1, 201)
    grid = torch.cartesian_prod(line, line)
    added = performance.expression(grid).reshape(201, 201, -1)
    assert float(added.diff(dim=0).abs().max()) < 0.03
    assert float(added.diff(dim=1).abs().max()) < 0.03
    assert float(added.diff(n=2, dim=0).abs().max()) < 0.002
    assert float(added.diff(n=2, dim=1).abs().max()) < 0.002


def test_emotions_have_their_faces() -> None:
    names = ("joy", "anger", "sorrow", "surprise", "calm")
    points = torch.tensor([[0.85, 0.6], [-0.5, 0.9], [-0.85, -0.35], [0.0, 0.85], [0.5, -0.7]])
    faces = dict(zip(names, performance.expression(points), strict=True))

    def face(emotion: str, control: str) -> float:
        return float(faces[emotion][rig.INDEX[control]])

    assert face("joy", "smile") > 0.6
    assert face("anger", "smile") < -0.2
    assert face("sorrow", "smile") < -0.5
    assert face("anger", "furrow") > 0.35
    assert face("sorrow", "furrow") < -0.3
    assert face("surprise", "brow") > 0.5
    assert face("anger", "brow") < face("surprise", "brow") - 0.25
    assert face("surprise", "lid") < -0.15
    assert face("calm", "lid") > 0.15


def test_performances_repeat_stay_in_range_and_move_like_a_person() -> None:
    phones = [
        phone._replace(start_s=phone.start_s + 2 * k, end_s=phone.end_s + 2 * k)
        for k in range(15)
        for phone in timed("hh ax l ow w er l d")
    ]
    count = 750
    emotion = random_emotion(count, generator(9))
    tracks = perform(phones, count, emotion, generator(4))
    assert torch.equal(tracks, perform(phones, count, emotion, generator(4)))
    other = perform(phones, count, emotion, generator(5))
    for name in ("yaw", "pitch", "tilt", "gaze_x", "blink"):
        assert not torch.equal(column(tracks, name), column(other, name))
    assert torch.equal(column(tracks, "jaw"), column(other, "jaw"))
    for control in rig.CONTROLS:
        values = column(tracks, control.name)
        assert control.low - 1e-6 <= float(values.min()) <= float(values.max()) <= control.high
    lid = column(tracks, "blink")
    blinks = int(((lid[1:-1] > 0.95) & (lid[1:-1] >= lid[2:]) & (lid[1:-1] > lid[:-2])).sum())
    assert 4 <= blinks <= 16  # in 30 s
    for name, most in (
        ("shift_x", 0.03),
        ("shift_y", 0.045),
        ("tilt", 0.06),
        ("yaw", 0.5),
        ("pitch", 0.7),
    ):
        values = column(tracks, name)
        assert float(values.abs().max()) <= most
        assert float(values.diff().abs().max()) < most / 3
    straight = perform(phones, count, emotion, generator(4), head_motion=0.0)
    assert not column(straight, "yaw").any()
    at_viewer = (column(straight, "gaze_x").abs() < 0.15).float().mean()
    assert float(at_viewer) > 0.5


def test_emotion_curves_repeat_and_stay_in_the_square() -> None:
    kinds = set()
    for seed in range(40):
        curve = random_emotion(200, generator(seed))
        assert torch.equal(curve, random_emotion(200, generator(seed)))
        assert curve.shape == (200, 2)
        assert float(curve.abs().max()) <= 1
        assert float(curve.diff(dim=0).abs().max()) < 0.13
        moving = bool(curve.diff(dim=0).any())
        kinds.add("moving" if moving else "constant" if curve.any() else "neutral")
    assert kinds == {"moving", "constant", "neutral"}


def test_one_frame_is_enough() -> None:
    tracks = perform([Phone("aa", 0, 0.04)], 1, torch.zeros(1, 2), generator())
    assert tracks.shape == (1, len(rig.CONTROLS))
    assert tracks.isfinite().all()


def tone(text: str, voice: voices.Voice) -> synthesis.Speech:
    """Stand in for a synthesiser: a buzz in every word, silence between."""
    phones = timed(" pau ".join("m aa" for _ in text.split()))
    wave = torch.zeros(round(phones[-1].end_s * 16000))
    for phone in phones:
        if phone.name != SILENCE:
            span = slice(round(phone.start_s * 16000), round(phone.end_s * 16000))
            wave[span] = 0.1 * torch.sin(torch.arange(len(wave[span])) / 8)
    return synthesis.Speech(wave, phones)


@pytest.mark.parametrize("duration_s", [None, 3.0, 2.999])
@pytest.mark.parametrize("held_out", [False, True])
def test_scenes_are_consistent_and_repeat(
    monkeypatch: pytest.MonkeyPatch, duration_s: float | None, held_out: bool
) -> None:
    monkeypatch.setattr(scenes, "synthesise", tone)
    for seed in range(2):
        scene = random_scene(seed, held_out, duration_s)
        again = random_scene(seed, held_out, duration_s)
        assert torch.equal(scene.waveform, again.waveform)
        assert torch.equal(scene.rig, again.rig)
        count = math.ceil(len(scene.waveform) / 640)
        assert scene.rig.shape == (count, len(rig.CONTROLS))
        assert scene.emotion.shape == (count, 2)
        if duration_s is not None:
            assert len(scene.waveform) == round(duration_s * 16000)
        assert scene.voice.held_out == held_out
        assert scene.phones[0].start_s == 0
        assert scene.phones[-1].end_s == pytest.approx(len(scene.waveform) / 16000)
        for before, after in itertools.pairwise(scene.phones):
            assert before.end_s == after.start_s


def test_a_scene_keeps_phones_and_sound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resampling moves every time: the buzz must still lie where the phones say."""
    monkeypatch.setattr(scenes, "synthesise", tone)
    monkeypatch.setattr(scenes, "degrade", lambda waveform, *_: waveform)
    for seed in range(5):
        scene = random_scene(seed)
        spoken = torch.zeros(len(scene.waveform), dtype=torch.bool)
        for phone in scene.phones:
            if phone.name != SILENCE:
                spoken[round(phone.start_s * 16000) : round(phone.end_s * 16000)] = True
        power = scene.waveform.square()
        assert float(power[~spoken].sum() / power.sum()) < 0.01
