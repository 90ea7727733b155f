"""Vocalisations: eight sounds that differ, and faces that move with them and come to rest."""

from __future__ import annotations

import math

import pytest
import torch

from keyface_cli.avatars import performance, rig, vocalisations, voices
from keyface_cli.avatars.performance import perform
from keyface_cli.avatars.scene import random_scene
from keyface_cli.avatars.vocalisations import Vocalisation, vocalise
from keyface_cli.avatars.voices import VOCALISATIONS


def made(name: str, seed: int = 0) -> Vocalisation:
    return vocalise(name, torch.Generator().manual_seed(seed))


def most(vocalisation: Vocalisation, control: str) -> float:
    return float(vocalisation.tracks[:, rig.INDEX[control]].max())


@pytest.mark.parametrize("name", VOCALISATIONS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sound_lies_inside_its_span_and_the_face_comes_to_rest(name: str, seed: int) -> None:
    vocalisation = made(name, seed)
    waveform = vocalisation.waveform
    assert len(waveform) == 160 * len(vocalisation.tracks)
    assert torch.isfinite(waveform).all()
    assert 0.01 < float(waveform.abs().max()) <= 0.98
    inside = waveform[round(vocalisation.start_s * 16000) : round(vocalisation.end_s * 16000)]
    # a laugh ends with a breath
    assert float(inside.square().sum()) > 0.95 * float(waveform.square().sum())
    assert float(vocalisation.tracks[0].abs().max()) < 0.02
    assert float(vocalisation.tracks[-1].abs().max()) < 0.02


def test_the_same_generator_makes_the_same_one_and_others_differ() -> None:
    assert torch.equal(made("laugh", 5).waveform, made("laugh", 5).waveform)
    first, second = made("laugh", 5), made("laugh", 6)
    assert first.waveform.shape != second.waveform.shape or not torch.equal(
        first.waveform, second.waveform
    )


def test_faces_tell_the_vocalisations_apart() -> None:
    assert most(made("yawn"), "jaw") > 0.85
    assert most(made("yawn"), "lid") > 0.6
    assert most(made("mhm"), "jaw") == 0
    assert most(made("mhm"), "press") > 0.5
    assert most(made("oh"), "round") > 0.7
    assert most(made("ah"), "jaw") > most(made("throat"), "jaw") + 0.4
    assert most(made("laugh"), "smile") > 0.6
    assert most(made("cough"), "lid") > 0.4


def test_a_speaker_sets_the_pitch() -> None:
    def pitch(f0: float) -> float:
        speaker = vocalisations.Speaker(f0, 1.0)
        waveform = vocalise("ah", torch.Generator().manual_seed(3), speaker).waveform
        middle = waveform[len(waveform) // 2 - 2048 : len(waveform) // 2 + 2048]
        spectrum = torch.fft.rfft(middle * torch.hann_window(4096)).abs()
        cepstrum = torch.fft.irfft((spectrum + 1e-3).log())  # free of the vowel's resonances
        shortest = 16000 // 400
        return 16000 / (int(cepstrum[shortest : 16000 // 60].argmax()) + shortest)

    assert 80 < pitch(100) < 160
    assert 1.5 < pitch(200) / pitch(100) < 2.5


def test_an_act_moves_the_face_at_its_time_and_not_elsewhere() -> None:
    laugh = made("laugh")
    act = performance.Act(1.0, 1.0 + laugh.end_s - laugh.start_s, laugh)
    phones = [voices.Phone(voices.SILENCE, 0.0, 5.0)]
    still = torch.zeros(125, 2)

    def smile(acts: list[performance.Act]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return perform(phones, 125, still, generator, acts=acts)[:, rig.INDEX["smile"]]

    added = smile([act]) - smile([])
    assert float(added[:15].abs().max()) < 1e-3
    first, last = math.ceil(act.start_s * 25) + 5, int(act.end_s * 25) - 5
    assert float(added[first:last].min()) > 0.5
    assert float(added[int((act.end_s + 0.6) * 25) :].abs().max()) < 1e-3


def test_scenes_of_one_vocalisation_need_no_synthesiser() -> None:
    scene = random_scene(4, held_out=True, duration_s=4.0, only="cough")
    assert len(scene.waveform) == 4 * 16000
    assert {act.name for act in scene.acts} == {"cough"}
    assert {phone.name for phone in scene.phones} == {voices.SILENCE, "<cough>"}
    labels = performance.phone_labels(scene.phones, 100)
    coughing = (labels == voices.PHONES.index("<cough>")).view(100, 2).all(1)
    jaw = scene.rig[:, rig.INDEX["jaw"]]
    assert float(jaw[coughing].mean()) > float(jaw[~coughing].mean()) + 0.1
