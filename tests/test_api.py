"""The front doors of Python: what they take, and that their frames are those of the program."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import keyface_cli as keyface
from keyface_cli.emotion import load_emotion
from keyface_cli.errors import (
    AudioError,
    ConfigError,
    DeviceError,
    EmotionError,
    FeaturesError,
    PortraitError,
    VideoError,
)
from keyface_cli.jobs import cluster_video
from keyface_cli.media.audio import load_waveform

Main = Callable[..., tuple[int, str, str]]
FAST: dict[str, Any] = {
    "steps": 1,
    "audio_guidance": 1.0,
    "identity_guidance": 1.0,
    "autoguidance": 1.0,
}


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> keyface.KeyFacePipeline:
    return keyface.KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")


@pytest.fixture
def shown(
    main: Main, tiny_checkpoint: Path, portrait_png: Path, tone_wav: Path, tmp_path: Path
) -> Callable[..., NDArray[np.uint8]]:
    """A function that returns the frames of `keyface animate`."""

    def run(
        *words: object, portrait: Path = portrait_png, name: str = "shown"
    ) -> NDArray[np.uint8]:
        folder = tmp_path / name
        fast = [word for name, value in FAST.items() for word in (option(name), value)]
        code, _, err = main("animate", portrait, tone_wav, "-o", folder, "-m", tiny_checkpoint,
                            "--device", "cpu", "--dtype", "float32", *fast, *words)  # fmt: skip
        assert code == 0, err
        return pictures(folder)

    return run


def test_a_larger_result_shows_more_of_the_portrait(
    shown: Callable[..., NDArray[np.uint8]],
    lively_checkpoint: Path,
    tone_wav: Path,
    tmp_path: Path,
) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # too fine for the model's 64 pixels
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    given = (tmp_path / "stripes.png", tone_wav)
    words = ("--liveliness", 0, "--crop", "none", "-m", lively_checkpoint)
    large = shown(*words, "--size", 256, portrait=given[0], name="large")
    small = shown(*words, portrait=given[0], name="small")
    assert (large.shape[1:3], small.shape[1:3]) == ((256, 256), (64, 64))
    assert np.abs(np.diff(large.astype(int), axis=2)).mean() > 20
    assert np.abs(np.diff(small.astype(int), axis=2)).mean() < 20
    pipeline = keyface.KeyFacePipeline.load(lively_checkpoint, "cpu", "float32")
    made = pipeline(*given, crop="none", size=256, liveliness=0, **FAST)
    assert np.array_equal(np.concatenate(list(made)), large)


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def pictures(folder: Path) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_animate_makes_what_the_program_makes(
    shown: Callable[..., NDArray[np.uint8]],
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
) -> None:
    told: set[str] = set()
    made = keyface.animate(
        str(portrait_png),
        str(tone_wav),
        str(tmp_path / "made"),
        model=str(tiny_checkpoint),
        device="cpu",
        dtype="float32",
        progress=lambda stage, done, total: told.add(stage),
        emotion="happy",
        duration=0.5,
        **FAST,
    )
    assert (made["output"], made["frames"]) == (str(tmp_path / "made"), 13)
    assert set(made["timings"]) >= {"load", "keyframes", "encode", "total"}
    assert told == {"audio", "keyframes", "interpolation", "decode"}
    assert np.array_equal(
        pictures(tmp_path / "made"), shown("--emotion", "happy", "--duration", 0.5)
    )


def test_animate_lets_a_cluster_make_the_frames(
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses: list[str] = []

    def here(pieces: Iterator[Any], set_up: Any, lose: Any, *, address: str) -> Iterator[Any]:
        addresses.append(address)
        make = set_up()
        return (make(piece) for piece in pieces)

    monkeypatch.setattr(cluster_video, "distribute", here)
    where = {"model": str(tiny_checkpoint), "device": "cpu", "dtype": "float32"}
    for name, address in (("one", None), ("many", "10.0.0.1:6379")):
        keyface.animate(portrait_png, tone_wav, tmp_path / name, **where, cluster=address, **FAST)
    assert addresses == ["10.0.0.1:6379"]
    assert np.array_equal(pictures(tmp_path / "one"), pictures(tmp_path / "many"))


def test_animate_refuses_as_the_program_does(
    portrait_png: Path, tone_wav: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match="exists already"):
        keyface.animate(portrait_png, tone_wav, tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="crf must be between 0 and 51: 60"):
        keyface.animate(portrait_png, tone_wav, tmp_path / "b.mp4", crf=60)
    with pytest.raises(TypeError, match="sede"):
        keyface.animate(portrait_png, tone_wav, tmp_path / "b.mp4", sede=1)


def test_call_takes_files_pictures_and_arrays(
    shown: Callable[..., NDArray[np.uint8]],
    pipeline: keyface.KeyFacePipeline,
    portrait_png: Path,
    tone_wav: Path,
) -> None:
    expected = shown("--emotion", "happy@0 sad@0.5", "--start", 0.2, "--duration", 0.6)
    line, sound = "happy@0 sad@0.5", load_waveform(tone_wav)
    window = {"start": 0.2, "duration": 0.6}
    picture = Image.open(portrait_png)
    curve = load_emotion(line)
    for portrait, audio, emotion in (
        (portrait_png, tone_wav, line),
        (picture, str(tone_wav), curve),
        (np.asarray(picture), sound, curve.sample(15)),
    ):
        made = list(pipeline(portrait, audio, emotion=emotion, **window, **FAST))
        assert np.array_equal(np.concatenate(made), expected)


def test_call_refuses_what_is_no_portrait_or_option(
    pipeline: keyface.KeyFacePipeline, portrait_png: Path, tone_wav: Path
) -> None:
    with pytest.raises(PortraitError, match=r"an array \(3, 64, 64\) of float32"):
        pipeline(np.zeros((3, 64, 64), np.float32), tone_wav)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sede"):
        pipeline(portrait_png, tone_wav, sede=1)


def test_a_level_of_memory_that_is_none(tiny_checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="no such level of memory: tiny"):
        keyface.KeyFacePipeline.load(tiny_checkpoint, "cpu", memory="tiny")


REFUSED = [
    ({"seed": "3"}, "seed must be a whole number: '3'"),
    ({"seed": 1.5}, "seed must be a whole number: 1.5"),
    ({"seed": True}, "seed must be a whole number: True"),
    ({"seed": None}, "seed must be a whole number: None"),
    ({"duration": "1"}, "duration must be a number: '1'"),
    ({"emotion_strength": float("nan")}, "emotion_strength must be between 0 and 10: nan"),
    ({"crop": (0, 0, 9)}, r"crop must be text: \(0, 0, 9\)"),
    ({"face": 1.5}, "face must be text: 1.5"),
    ({"require_face": 1}, "require_face must be True or False: 1"),
    ({"start": -1}, "start must be between 0"),
    ({"voice_model": 3}, "voice_model must be a path: 3"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_both_doors_refuse_values_of_another_type(
    pipeline: keyface.KeyFacePipeline,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said):
        pipeline(portrait_png, tone_wav, **options)
    with pytest.raises(ConfigError, match=said):
        keyface.animate(portrait_png, tone_wav, tmp_path / "a.mp4", **options)
    with pytest.raises(ConfigError, match="emotion must be text"):
        keyface.animate(portrait_png, tone_wav, tmp_path / "a.mp4", emotion=np.zeros((25, 2)))


def test_both_doors_take_what_a_text_means(
    shown: Callable[..., NDArray[np.uint8]],
    lively_checkpoint: Path,
    tone_wav: Path,
    tmp_path: Path,
) -> None:
    clear = np.zeros((130, 120, 4), np.uint8)
    clear[20:60, 20:60] = 200
    portrait = tmp_path / "clear.png"
    Image.fromarray(clear).save(portrait)
    words = ("--crop", "10,10,100,100", "--background", "#ff8000", "--size", "100x80", "--seed", 3)
    line = "happy@0 sad@0.2"
    (tmp_path / "curve.csv").write_text("time,emotion\n0,happy\n0.2,sad\n")
    words = (*words, "--emotion", line, "--duration", 0.5, "-m", lively_checkpoint)
    expected = shown(*words, portrait=portrait)
    options: dict[str, Any] = {
        "crop": (10, 10, 100, 100),
        "background": (255, 128, 0),
        "size": (np.int64(100), 80),
        "seed": np.int64(3),
        "duration": np.float32(0.5),
        **FAST,
    }
    loaded = keyface.KeyFacePipeline.load(lively_checkpoint, "cpu", "float32")
    where = {"model": str(lively_checkpoint), "device": "cpu", "dtype": "float32"}
    for emotion in (line, tmp_path / "curve.csv", load_emotion(line)):
        made = loaded(portrait, tone_wav, emotion=emotion, **options)
        assert np.array_equal(np.concatenate(list(made)), expected)
        keyface.animate(
            portrait, tone_wav, tmp_path / "a", emotion=emotion, force=True, **options, **where
        )
        assert np.array_equal(pictures(tmp_path / "a"), expected)
        shutil.rmtree(tmp_path / "a")
    with pytest.raises(PortraitError, match="no face was found"):
        loaded(portrait, tone_wav, require_face=True)
    with pytest.raises(EmotionError, match="works only with --emotion auto"):
        loaded(portrait, tone_wav, voice_model=tmp_path / "voice.onnx")
    auto = {"emotion": "auto", "voice_model": str(tmp_path / "voice.onnx")}
    with pytest.raises(EmotionError, match="no such voice model"):
        loaded(portrait, tone_wav, **auto)


def test_call_takes_features_that_were_kept(
    main: Main,
    pipeline: keyface.KeyFacePipeline,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tone_wav: Path,
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept.safetensors"
    assert main("embed", tone_wav, "-o", kept, "-m", tiny_checkpoint, "--device", "cpu")[0] == 0
    without = keyface.KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32", encoders=False)
    made = list(without(portrait_png, tone_wav, features=kept, **FAST))
    expected = list(pipeline(portrait_png, tone_wav, **FAST))
    assert np.array_equal(np.concatenate(made), np.concatenate(expected))
    with pytest.raises(FeaturesError, match="belongs to a file, the audio is none"):
        without(portrait_png, load_waveform(tone_wav), features=kept)
    with pytest.raises(FeaturesError):
        without(portrait_png, tone_wav, features=kept, start=0.2)


def test_call_refuses_arrays_that_hold_no_sound_or_curve(
    pipeline: keyface.KeyFacePipeline, portrait_png: Path, tone_wav: Path
) -> None:
    sound = load_waveform(tone_wav)
    bad = sound.copy()
    bad[5] = np.nan
    curve = np.zeros((len(sound) // 640 + (len(sound) % 640 > 0), 2), np.float32)
    for given, said in (
        ({"audio": bad}, "waveform holds NaN or infinity"),
        ({"audio": (sound * 32767).astype(np.int16)}, "waveform is of int16"),
        ({"audio": sound, "emotion": curve * np.nan}, "emotion holds NaN or infinity"),
        ({"audio": sound, "emotion": curve[:-1]}, "emotion has shape"),
    ):
        with pytest.raises(ValueError, match=said):
            pipeline(portrait_png, **given)  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="nothing is left of the waveform from 100 s on"):
        pipeline(portrait_png, sound, start=100)
    with pytest.raises(AudioError, match="no recording: None"):
        pipeline(portrait_png, None)  # type: ignore[arg-type]
    with pytest.raises(PortraitError, match="no portrait: None"):
        pipeline(None, sound)  # type: ignore[arg-type]
