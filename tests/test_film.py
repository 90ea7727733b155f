"""Curves taken from filmed faces, with a network of EmotiEffLib's inputs and outputs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from keyface_cli.emotion import load_emotion
from keyface_cli.emotion.film import fill_and_smooth, read_performance
from keyface_cli.errors import KeyFaceError
from keyface_cli.media.ffmpeg import find_ffmpeg

Main = Callable[..., tuple[int, str, str]]
AVATAR = Path(__file__).parent.parent / "examples" / "avatar.png"


def network(path: Path, outputs: int = 10) -> Path:
    """1x3x224x224 to (1, outputs): the last but one grows with red, the last with blue."""
    weights = np.zeros((3, outputs), np.float32)
    weights[0, -2] = weights[2, -1] = 0.25
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["means"]),
        helper.make_node("Flatten", ["means"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", outputs])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.flatten())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def film(path: Path, pictures: list[NDArray[np.uint8]], rate: int = 25) -> Path:
    height, width = pictures[0].shape[:2]
    command = [find_ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(rate), "-i", "-", "-c:v", "libx264"]
    command += ["-qp", "4", "-pix_fmt", "yuv444p", str(path)]
    subprocess.run(command, input=b"".join(p.tobytes() for p in pictures), check=True)
    return path


def face(red: float = 1.0, blue: float = 1.0) -> NDArray[np.uint8]:
    """The example avatar in other light."""
    with Image.open(AVATAR) as image:
        pixels = np.asarray(image.convert("RGB").resize((256, 256)), np.float32)
    return np.clip(pixels * (red, 1.0, blue), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 25 a second: the light goes from blue to red, and 0.2 s are empty."""
    pictures = [face(0.6 + 0.016 * n, 1.4 - 0.016 * n) for n in range(50)]
    for n in range(20, 25):
        pictures[n] = np.full_like(pictures[n], 127)
    return film(tmp_path_factory.mktemp("films") / "film.mp4", pictures)


def test_every_frame_is_read_and_gaps_are_known(filmed: Path, tmp_path: Path) -> None:
    found = read_performance(filmed, network(tmp_path / "a.onnx"))
    assert found.shape == (50, 2)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [20, 21, 22, 23, 24]
    seen = np.isfinite(found[:, 0])
    rise = np.polyfit(np.arange(50)[seen], found[seen], 1)[0]
    assert rise[0] > 0.003
    assert rise[1] < -0.003
    filled = fill_and_smooth(found, 0.0)
    assert_allclose(filled[seen], found[seen])
    assert found[19, 0] <= filled[22, 0] <= found[25, 0]


def test_the_network_sees_the_face_normalised_as_imagenet(tmp_path: Path) -> None:
    """The mean colour that a network of known weights reads is that of the picture's middle."""
    path = film(tmp_path / "still.mp4", [face()] * 5)
    found = read_performance(path, network(tmp_path / "a.onnx"))
    middle = face()[64:224, 56:200].reshape(-1, 3).mean(axis=0) / 255
    expected = 0.25 * (middle[[0, 2]] - (0.485, 0.406)) / (0.229, 0.225)
    assert_allclose(found, [np.clip(expected, -1, 1)] * 5, atol=0.1)
    assert_allclose(found, [found[0]] * 5, atol=0.02)


def test_other_rates_become_25(tmp_path: Path) -> None:
    path = film(tmp_path / "fast.mp4", [face()] * 50, rate=50)
    assert read_performance(path, network(tmp_path / "a.onnx")).shape == (25, 2)


def test_command_writes_sparse_keys_and_the_dense_track(
    main: Main, filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = network(tmp_path / "a.onnx")
    options = ("--model", model, "--tolerance", 0.05)
    code, out, err = main("emotion", "extract", filmed, "-o", "c.csv", "--dense", "d.csv", *options)
    assert (code, out) == (0, "c.csv\n")
    assert "warning: no face is seen in 5 of 50 frames: filled in" in err
    sparse, dense = load_emotion("c.csv"), load_emotion("d.csv")
    assert len(dense.keys) == 50
    assert Path("d.csv").read_text().startswith("frame,valence,arousal\n0,")
    assert len(sparse.keys) < 12
    assert np.abs(sparse.sample(50) - dense.sample(50)).max() < 0.15
    assert "c.csv: exists already" in main("emotion", "extract", filmed, "-o", "c.csv", *options)[2]
    assert "is an input" in main("emotion", "extract", filmed, "-o", filmed, "-f", *options)[2]


def test_what_cannot_be_used_is_refused(tmp_path: Path, filmed: Path) -> None:
    model = network(tmp_path / "a.onnx")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    blank = film(tmp_path / "blank.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 6)
    for video, network_file, message in (
        (tmp_path / "no.mp4", model, r"no\.mp4: no such video file"),
        (text, model, r"text\.mp4: not a video that can be read"),
        (blank, model, r"blank\.mp4: no face is seen in 6 frames"),
        (filmed, tmp_path / "no.onnx", r"no\.onnx: no such file"),
        (filmed, text, r"text\.mp4: not EmotiEffLib's valence and arousal model"),
        (filmed, network(tmp_path / "b.onnx", 8), r"its outputs are \[1, 8\]"),
    ):
        with pytest.raises(KeyFaceError, match=message):
            read_performance(video, network_file)
