"""Loudness and pitch of a voice, and the curves that are estimated from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import TensorProto, helper

from keyface_cli.emotion.load import estimate_curve
from keyface_cli.emotion.speech_model import estimate_with_model
from keyface_cli.emotion.thin import resample, smooth, thin
from keyface_cli.emotion.voice import estimate, loudness, phrases, pitch, speaks, syllables
from keyface_cli.errors import EmotionError

RATE = 16_000
Sound = NDArray[np.float32]


def tone(seconds: float, hz: float | NDArray[np.float64] = 150.0, loud: float = 0.2) -> Sound:
    """A buzz with overtones, as a voice has, whose pitch may move."""
    count = round(seconds * RATE)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, count)) / RATE
    return (loud * sum(np.sin(n * phase) / n for n in range(1, 6)) / 2).astype(np.float32)


def speech(seconds: float, rate: float = 4.0, melody: float = 2.0, loud: float = 0.2) -> Sound:
    """Syllables at a rate, on a melody that swings by so many semitones."""
    t = np.arange(round(seconds * RATE)) / RATE
    hz = 150 * 2 ** (melody * np.sin(2 * np.pi * 0.7 * t) / 12)
    shape = np.maximum(0.03, np.sin(np.pi * rate * t) ** 2)
    return (tone(seconds, hz, loud) * shape).astype(np.float32)


def silence(seconds: float) -> Sound:
    return np.zeros(round(seconds * RATE), np.float32)


def test_loudness_is_that_of_each_frame() -> None:
    level = loudness(np.concatenate([tone(1), 0.1 * tone(1), silence(0.98)]))
    assert len(level) == 75
    assert_allclose(level[5:20] - level[30:45], 20, atol=0.2)
    assert (level[51:] == -80).all()
    square = np.full(640, 0.5, np.float32)
    assert_allclose(loudness(square), [-6.02], atol=0.01)


@pytest.mark.parametrize("hz", [80.0, 120.0, 220.0, 380.0])
def test_pitch_of_a_buzz(hz: float) -> None:
    found = pitch(tone(1, hz))
    assert_allclose(found[2:-2], hz, rtol=0.02)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert np.isnan(pitch(noise)).mean() > 0.9
    assert np.isnan(pitch(silence(1))).all()


def test_phrases_lie_between_pauses() -> None:
    sound = np.concatenate([silence(0.4), speech(1), silence(0.4), speech(1), silence(0.12)])
    found = phrases(loudness(np.concatenate([sound, speech(1), silence(1)])))
    starts = [0.4, 1.8]
    assert_allclose([start for start, _ in found], starts, atol=0.09)
    assert_allclose([end for _, end in found], [1.4, 3.92], atol=0.09)
    assert phrases(loudness(silence(2))) == []
    assert phrases(loudness(tone(1))) == [(0.0, 1.0)]


@pytest.mark.parametrize("rate", [2.0, 4.0, 6.0])
def test_syllables_are_counted(rate: float) -> None:
    level = loudness(speech(5, rate))
    assert_allclose(syllables(level, speaks(level)).sum(), 5 * rate, atol=2)


def test_estimate_rises_with_loudness_melody_and_rate() -> None:
    calm = estimate(speech(6, 3.0, 1.0)).sample(150)[:, 1]
    for livelier in (speech(6, 3.0, 6.0), speech(6, 6.0, 1.0)):
        assert estimate(livelier).sample(150)[:, 1].mean() > calm.mean() + 0.1
    louder = np.concatenate([speech(6, loud=0.05), speech(6, loud=0.3)])
    found = estimate(louder).sample(300)[:, 1]
    assert found[200:].mean() > found[:100].mean() + 0.3


def test_estimate_is_gentle_and_says_nothing_of_valence() -> None:
    sounds = np.concatenate([speech(3, 7, 8, 0.5), silence(2), speech(3, 2, 0, 0.01)])
    track = estimate(sounds)
    found = track.sample(200)
    assert (found[:, 0] == 0).all()
    assert np.abs(found[:, 1]).max() < 0.81
    assert np.abs(np.diff(found[:, 1])).max() < 0.05
    assert len(track.keys) < 30
    gain = estimate((0.25 * sounds).astype(np.float32)).sample(200)
    assert_allclose(gain, found, atol=0.1)


@pytest.mark.parametrize("sound", [silence(1), silence(0.04), tone(0.04), tone(0.2)])
def test_any_sound_gives_a_curve(sound: Sound) -> None:
    found = estimate(sound).sample(10)
    assert np.isfinite(found).all()


def test_thinned_curve_stays_within_its_tolerance() -> None:
    rng = np.random.default_rng(1)
    times = np.arange(500) / 25
    values = smooth(rng.normal(0, 1.5, (500, 2)), 12.0)
    for tolerance in (0.02, 0.1, 0.3):
        track = thin(times, values, tolerance)
        assert np.abs(track.at(times) - np.clip(values, -1, 1)).max() <= tolerance + 2e-3
    assert len(thin(times, values, 0.3).keys) < len(thin(times, values, 0.02).keys) < 500
    line = np.stack([times / 20, -times / 20], axis=1)
    assert len(thin(times, line, 0.01).keys) == 2
    assert len(thin(times, 0 * line + 0.4, 0.01).keys) == 1
    assert thin(times[:1], line[:1], 0).keys[0].time_s == 0


def test_smoothing_leaves_out_what_counts_nothing() -> None:
    values = np.array([[1.0, 0.0]] * 10 + [[99.0, 99.0]] * 5 + [[1.0, 0.0]] * 10)
    weights = np.array([1.0] * 10 + [0.0] * 5 + [1.0] * 10)
    assert_allclose(smooth(values, 1.0, weights), [[1.0, 0.0]] * 25, atol=1e-9)
    assert_allclose(smooth(values, 1.0, 0 * weights), 0)
    assert_allclose(smooth(values, 0.0), values)
    times, found = resample(np.array([0.0, 0.1, 0.2]), np.array([[0.0, 1], [1, 0], [0, 1]]))
    assert_allclose(times, [0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert_allclose(found[:, 0], [0, 0.4, 0.8, 0.8, 0.4, 0], atol=1e-9)


def speech_model(path: Path, outputs: int = 3) -> Path:
    """A model in the layout of audEERING's: arousal is louder than -, valence below the mean."""
    nodes = [
        helper.make_node("ReduceL2", ["signal", "axes"], ["loud"], keepdims=1),
        helper.make_node("Mul", ["loud", "scale"], ["arousal"]),
        helper.make_node("Concat", ["arousal", *["half"] * (outputs - 1)], ["logits"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("signal", TensorProto.FLOAT, [1, None])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, outputs])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1, 1], [0.03]),
            helper.make_tensor("half", TensorProto.FLOAT, [1, 1], [0.25]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def test_voice_model_gives_valence_and_arousal(tmp_path: Path) -> None:
    path = speech_model(tmp_path / "voice.onnx")
    sound = np.concatenate([speech(8, loud=0.05), speech(8, loud=0.3)])
    track = estimate_with_model(sound, path)
    found = track.sample(400)
    assert_allclose(found[:, 0], -0.5, atol=1e-6)
    assert found[350, 1] > found[50, 1] + 0.2
    assert estimate_curve(sound, path) == track
    assert estimate_curve(silence(1), path).keys[0].valence == 0


def test_unusable_voice_model_is_refused(tmp_path: Path) -> None:
    sound = speech(2)
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    with pytest.raises(EmotionError, match=r"text\.onnx: not a speech-emotion model: "):
        estimate_with_model(sound, text)
    with pytest.raises(EmotionError, match=r"no\.onnx: no such file"):
        estimate_with_model(sound, tmp_path / "no.onnx")
    other = speech_model(tmp_path / "other.onnx", outputs=5)
    with pytest.raises(EmotionError, match=r"its outputs are \[1, 5\]"):
        estimate_with_model(sound, other)
