"""The whole program with the tiny model: what it makes, what it says, and every way it fails."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from keyface_cli import __version__, device
from keyface_cli.emotion import load_emotion
from keyface_cli.errors import KeyFaceError
from keyface_cli.files import file_hash
from keyface_cli.media.ffmpeg import find_ffmpeg
from keyface_cli.options import GenerationOptions
from keyface_cli.output import writer
from keyface_cli.pipeline import KeyFacePipeline

Main = Callable[..., tuple[int, str, str]]
Animate = Callable[..., tuple[int, str, str]]
FAST = ("--steps", 1, "--dtype", "float32", "--device", "cpu", "--crop", "center")


@pytest.fixture
def animate(
    main: Main,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Animate:
    """A function that animates in an empty folder; options overrule the fast ones."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(
        *options: object,
        portrait: Path = portrait_png,
        audio: Path = tone_wav,
        model: Path = tiny_checkpoint,
    ) -> tuple[int, str, str]:
        return main("animate", portrait, audio, "--model", model, *FAST, *options)

    return run


def files() -> list[str]:
    return sorted(os.listdir())


def comment(path: Path) -> dict[str, object]:
    command = [find_ffmpeg(), "-v", "error", "-i", path, "-f", "ffmetadata", "-"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^comment=(.*)$", text, re.MULTILINE)
    assert found is not None
    made: dict[str, object] = json.loads(re.sub(r"\\(.)", r"\1", found[1]))
    return made


def count_frames(path: Path) -> int:
    command = [find_ffmpeg(), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    return len(subprocess.run(command, check=True, capture_output=True).stdout) // 64**2


def test_video_is_made_and_its_path_printed(animate: Animate) -> None:
    code, out, err = animate()
    assert (code, out) == (0, "portrait-tone.mp4\n")
    assert files() == ["portrait-tone.mp4"]
    assert count_frames(Path("portrait-tone.mp4")) == 25
    lines = err.splitlines()
    assert lines[0] == "model: tiny, on cpu in float32"
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "audio",
        "keyframes",
        "interpolation",
        "decoding",
    ]
    assert re.match(r"1\.00 s of video in .* frames/s\): load .*, encode \d+\.\d$", lines[5])
    assert len(lines) == 6


def test_json_object_and_metadata_say_how_it_was_made(
    animate: Animate, portrait_png: Path, tone_wav: Path
) -> None:
    code, out, err = animate(
        *("-o", "a.mp4", "--json", "--quiet", "--seed", 7, "--start", 0.2, "--duration", 0.5),
        *("--identity-guidance", 1, "--emotion", "Happy:0.8@0:hold", "--emotion-strength", 0.5),
    )
    assert (code, err) == (0, "")
    result = json.loads(out)
    timings = result.pop("timings")
    assert list(timings) == [
        *("load", "audio", "keyframes", "interpolation", "decode", "encode", "total")
    ]
    assert timings["total"] >= sum(timings.values()) / 2 > 0
    emotion = result.pop("emotion")
    assert emotion["keys"] == [{"time": 0, "valence": 0.34, "arousal": 0.3, "ease": "hold"}]
    assert [h["frame"] for h in emotion["at_keyframes"]] == [0, 12]
    assert result == {
        "output": "a.mp4",
        "frames": 13,
        "fps": 25,
        "seconds": 0.52,
        "width": 64,
        "height": 64,
        "model": "tiny",
        "seed": 7,
        "device": "cpu",
        "dtype": "float32",
    }
    assert count_frames(Path("a.mp4")) == 13
    made = comment(Path("a.mp4"))
    assert len(str(made.pop("job"))) == 64
    assert len(str(made.pop("model_sha256"))) == 64
    assert made.pop("portrait_sha256") == file_hash(portrait_png)
    assert made.pop("audio_sha256") == file_hash(tone_wav)
    assert made.pop("command") == (
        "keyface animate portrait.png tone.wav --model tiny --crop center "
        "--emotion Happy:0.8@0:hold --emotion-strength 0.5 "
        "--start 0.2 --duration 0.5 --seed 7 --steps 1 --identity-guidance 1.0"
    )
    assert made == {
        "tool": f"keyface {__version__}",
        "model": "tiny",
        "seed": 7,
        "steps": 1,
        "schedule": "ays",
        "audio_guidance": 5.0,
        "identity_guidance": 1.0,
        "autoguidance": 2.0,
        "emotion_guidance": 1.0,
        "liveliness": 0.0,
        "sigma_min": 0.002,
        "guidance_interval": None,
        "half_vae": False,
        "silence_steady_sound": False,
        "emotion": "Happy:0.8@0:hold",
        "emotion_curve": "0.34,0.3@0:hold",
    }


def test_curve_that_hardly_means_what_it_says_is_told(animate: Animate) -> None:
    line = "happy@0 sad@0.2 angry@0.3 happy@0.5 calm@90"
    code, _, err = animate("--emotion", line, "-q", "--keep-job", "-o", "a.mp4")
    assert code == 0
    assert load_emotion("a.mp4.keyface/emotion.csv") == load_emotion(line)
    assert "1 of 5 keys lie after the end of the sound (0:01), the last at 1:30" in err
    assert "2 places that the model may miss" in err


def test_same_command_gives_the_same_frames_and_another_seed_others(animate: Animate) -> None:
    videos = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        assert animate("-o", f"{name}.mp4", "-q", "--seed", seed)[0] == 0
        command = [find_ffmpeg(), "-v", "error", "-i", f"{name}.mp4", "-map", "0:v", "-f", "md5"]
        videos.append(subprocess.run([*command, "-"], check=True, capture_output=True).stdout)
    assert videos[0] == videos[1] != videos[2]


def test_choices_reach_the_model(
    animate: Animate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def stream(_: KeyFacePipeline, **arguments: Any) -> None:
        calls.append(arguments)
        raise KeyFaceError("stopped here")

    monkeypatch.setattr(KeyFacePipeline, "stream", stream)
    curve = tmp_path / "curve.csv"
    curve.write_text("time,valence,arousal\n0,0,0\n0.8,1,-0.5\n")
    assert animate("--emotion", curve, "--start", 0.25, "--duration", 0.7)[2].endswith(
        "error: stopped here\n"
    )
    animate(
        *("--seed", 3, "--steps", 4, "--audio-guidance", 1.5, "--identity-guidance", 2.5),
        *("--autoguidance", 3.5, "--chunk", 6, "--emotion", "angry"),
    )
    animate("--emotion", "auto", "--emotion-strength", 2)
    first, second, _ = calls
    emotion, angry, auto = (call["emotion"] for call in calls)
    assert auto.shape == (25, 2)
    assert (auto[:, 0] == 0).all()
    assert first["portrait"].shape == (3, 64, 64)
    assert len(first["waveform"]) == 0.7 * 16000
    assert emotion.shape == (18, 2)
    np.testing.assert_allclose(emotion[10], [0.5, -0.25])
    np.testing.assert_allclose(angry, [[-0.443, 0.908]] * 25, rtol=1e-6)
    assert second["options"] == GenerationOptions(3, 4, 1.5, 2.5, 3.5, 6)
    assert files() == []


@pytest.mark.parametrize("samples", [640, 641, 22_400])
def test_frames_cover_the_sound(animate: Animate, tmp_path: Path, samples: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, samples)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    code, out, _ = animate("--json", audio=tmp_path / "a.wav")
    assert code == 0
    assert json.loads(out)["frames"] == math.ceil(samples / 640)
    assert count_frames(Path("portrait-a.mp4")) == math.ceil(samples / 640)


def test_existing_output_is_replaced_only_on_request(animate: Animate) -> None:
    Path("a.mp4").write_text("old")
    code, out, err = animate("-o", "a.mp4")
    assert (code, out) == (1, "")
    assert err.startswith("error: a.mp4: exists already\nhint: ")
    assert Path("a.mp4").read_text() == "old"
    assert animate("-o", "a.mp4", "--force")[0] == 0
    assert count_frames(Path("a.mp4")) == 25
    shutil.copy("a.mp4", "b.mp4")
    code, _, err = animate("-o", "b.mp4", "--force", audio=Path("b.mp4"))
    assert code == 1
    assert "is an input" in err


def assert_refused(outcome: tuple[int, str, str], message: str) -> None:
    """Exit code 1, one line of error that says `message`, and nothing else on stdout or on disk."""
    code, out, err = outcome
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if not line.startswith("model: ")]
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0])
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "a.avi"), r"a\.avi: the output must end in \.mp4"),
        (("-o", "no/a.mp4"), "no: no such folder"),
        (("-o", "/proc/self/a.mp4"), "cannot be written to"),
        (("--emotion", "hapy"), "unknown emotion: hapy"),
        (("--emotion", "no.csv"), r"no\.csv: no such emotion file"),
        (("--emotion", "sad@2 happy@1"), r"key 2 \(happy@1\): 1 s comes after 2 s"),
        (("--voice-model", "no.onnx"), "--voice-model works only with --emotion auto"),
        (("--emotion", "auto", "--voice-model", "no.onnx"), r"no\.onnx: no such voice model"),
        (("--start", 1), "a start at 1 s is beyond its end"),
        (("--device", "cuda:99"), "this machine has no cuda:99 device"),
    ],
)
def test_bad_options_are_refused(
    animate: Animate, options: tuple[object, ...], message: str
) -> None:
    assert_refused(animate(*options), message)
    assert files() == []


def test_bad_inputs_are_refused(animate: Animate, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("neither picture nor sound")
    empty = tmp_path / "empty"
    empty.touch()
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(600), 16000)
    curve = tmp_path / "curve.csv"
    curve.write_text("time,valence,arousal\n0,0,0\n1,2,0\n")
    absent = tmp_path / "absent"
    assert_refused(animate(portrait=absent), "absent: no such portrait file")
    assert_refused(animate(portrait=text), "text: not a picture")
    assert_refused(animate(audio=absent), "absent: no such audio file")
    assert_refused(animate(audio=empty), "empty: the audio file is empty")
    assert_refused(animate(audio=text), "text: not a sound file")
    assert_refused(animate(audio=short), r"short\.wav: shorter than one video frame")
    assert_refused(animate("-e", curve), r"curve\.csv:3:2: valence is out of range \[-1, 1\]: 2")
    assert_refused(animate(model=absent), "no such model: .*absent")
    assert_refused(animate(model=tmp_path), "not a model folder: ")
    assert files() == []


def test_damaged_model_is_refused(animate: Animate, tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = Path("vae") / "diffusion_pytorch_model.safetensors"

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_checkpoint, tmp_path / name))

    (copy("missing") / weights).unlink()
    assert_refused(animate(model=tmp_path / "missing"), f"missing file: .*{weights}")
    with (copy("truncated") / weights).open("rb+") as file:
        file.truncate(5000)
    assert_refused(animate(model=tmp_path / "truncated"), f"damaged: .*{weights}")
    path = copy("misshapen") / weights
    tensors = load_file(path)
    name = next(key for key, tensor in sorted(tensors.items()) if tensor.ndim == 1)
    tensors[name] = tensors[name].reshape(2, -1)
    size = path.stat().st_size
    save_file(tensors, path, {"format": "pt"})
    manifest = tmp_path / "misshapen" / "keyface.json"
    manifest.write_text(manifest.read_text().replace(f": {size},", f": {path.stat().st_size},"))
    assert_refused(animate(model=tmp_path / "misshapen"), f"{weights}: tensor {name} has shape")
    assert files() == []


def test_too_little_memory_is_refused(animate: Animate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda place: 1000)
    assert_refused(animate(), "not enough memory on cpu")
    assert files() == []


def test_ffmpeg_is_looked_for_first(animate: Animate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "absent")
    assert_refused(animate(model=Path("absent")), "ffmpeg was not found")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_the_old_file_alone(
    animate: Animate, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    write = writer.VideoWriter.write

    def interrupt(this: writer.VideoWriter, frames: NDArray[np.uint8]) -> None:
        write(this, frames)
        signal.raise_signal(number)

    monkeypatch.setattr(writer.VideoWriter, "write", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("a.mp4").write_text("old")
    try:
        assert animate("-o", "a.mp4", "--force", "-q")[:2] == (code, "")
    finally:
        signal.signal(signal.SIGINT, before)
    assert files() == ["a.mp4", "a.mp4.keyface"]
    assert Path("a.mp4").read_text() == "old"
    monkeypatch.setattr(writer.VideoWriter, "write", write)
    assert animate("-o", "a.mp4", "--force", "-q")[0] == 0
    assert files() == ["a.mp4"]
    assert count_frames(Path("a.mp4")) == 25


@pytest.mark.slow
def test_program_that_is_ended_while_it_works_leaves_its_folder_alone(
    tiny_checkpoint: Path, portrait_png: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 60 * 16000)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-m", "keyface_cli", "animate", portrait_png, tmp_path / "long.wav"]
    command += ["--model", tiny_checkpoint, "--steps", "30", "-o", tmp_path / "work" / "a.mp4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while not list((tmp_path / "work").glob("*/keyframes-*.safetensors")):
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert out == b""
    assert b"Traceback" not in err
    assert b"the same command resumes from there" in err
    assert os.listdir(tmp_path / "work") == ["a.mp4.keyface"]
