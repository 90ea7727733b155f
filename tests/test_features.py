"""Features in a file: the same video as without, and refused where they do not belong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from keyface_cli.checkpoints.checkpoint import Checkpoint, build
from keyface_cli.checkpoints.writing import save_component, write_manifest
from keyface_cli.embedding import encode_audio
from keyface_cli.media.features import StoredFeatures, _open
from keyface_cli.models.speech import encode
from keyface_cli.pipeline import KeyFacePipeline
from keyface_cli.presets import PRESETS
from keyface_cli.stages.timeline import Timeline

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def embedded(tiny_checkpoint: Path, tone_wav: Path, tmp_path: Path, main: Main) -> Path:
    path = tmp_path / "tone.safetensors"
    code, out, err = main("embed", tone_wav, "-o", path, "--model", tiny_checkpoint)
    assert (code, out) == (0, f"{path}\n"), err
    return path


def test_the_file_holds_two_tokens_a_frame(embedded: Path) -> None:
    tensors = load_file(embedded)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "audio.wavlm": (25, 2, 32),
        "audio.wav2vec2": (25, 2, 32),
        "audio.beats": (25, 2, 32),
    }


def test_the_video_is_the_same(
    tiny_checkpoint: Path,
    tone_wav: Path,
    portrait_png: Path,
    embedded: Path,
    tmp_path: Path,
    main: Main,
) -> None:
    common = ["animate", portrait_png, tone_wav, "--model", tiny_checkpoint, "--device", "cpu"]
    assert main(*common, "-o", tmp_path / "a.mp4")[0] == 0
    code, _, err = main(*common, "-o", tmp_path / "b.mp4", "--features", embedded)
    assert code == 0, err
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_pipeline_with_given_features_loads_no_encoder(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    portrait, emotion = np.zeros((3, 64, 64), np.float32), np.zeros((25, 2), np.float32)
    encoded = encode_audio(checkpoint, waveform, "cpu")
    features = {name: torch.cat(list(blocks)) for name, blocks in encoded.items()}
    without = KeyFacePipeline.load(checkpoint, "cpu", "float32", encoders=False)
    assert without.engine.encoders == {}
    whole = KeyFacePipeline.load(checkpoint, "cpu", "float32")
    found = np.concatenate(list(without.stream(portrait, waveform, emotion, features=features)))
    assert np.array_equal(found, np.concatenate(list(whole.stream(portrait, waveform, emotion))))
    with pytest.raises(ValueError, match="features are needed"):
        without.stream(portrait, waveform, emotion)
    short = {name: tensor[:-1] for name, tensor in features.items()}
    with pytest.raises(ValueError, match="have shape"):
        whole.stream(portrait, waveform, emotion, features=short)


def wrong(kind: str, embedded: Path, tone_wav: Path, tmp_path: Path) -> list[object]:
    """Make one thing not belong; returns the recording and the options to animate with."""
    audio, more = tone_wav, []
    if kind == "another recording":
        audio = tmp_path / "other.wav"
        soundfile.write(audio, np.zeros(16_000), 16_000)
    elif kind == "another --duration":
        more = ["--duration", "0.5"]
    elif kind == "another --start":
        more = ["--start", "0.2"]
    elif kind == "another model":
        model = tmp_path / "model"
        torch.manual_seed(5)
        for name in ("keyframe_unet", "interpolation_unet", "vae", "wavlm", "wav2vec2", "beats"):
            save_component(model, name, build(name, PRESETS["tiny"]))
        write_manifest(model, PRESETS["tiny"])
        more = ["--model", model]
    elif kind == "truncated":
        embedded.write_bytes(embedded.read_bytes()[:-100])
    elif kind == "missing":
        embedded.unlink()
    elif kind == "no features":
        save_file({"a": torch.zeros(3)}, embedded)
    elif kind == "NaN":
        from safetensors import safe_open

        with safe_open(embedded, "pt") as file:
            metadata = file.metadata()
        tensors = {name: t.fill_(torch.nan) for name, t in load_file(embedded).items()}
        save_file(tensors, embedded, metadata=metadata)
    return [audio, *more]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another recording", "was made of another recording"),
        ("another --duration", "was made with another --duration"),
        ("another --start", "was made with another --start"),
        ("another model", "was made with another model's encoders"),
        ("truncated", "cannot read"),
        ("missing", "file not found"),
        ("no features", "is no file of keyface embed"),
        ("NaN", "contains NaN"),
    ],
)
def test_what_does_not_belong_is_refused(
    tiny_checkpoint: Path,
    tone_wav: Path,
    portrait_png: Path,
    embedded: Path,
    tmp_path: Path,
    main: Main,
    kind: str,
    message: str,
) -> None:
    audio, *more = wrong(kind, embedded, tone_wav, tmp_path)
    model = [] if "--model" in more else ["--model", tiny_checkpoint]
    output = tmp_path / "talk.mp4"
    code, out, err = main(
        "animate", portrait_png, audio, "-o", output, "--features", embedded, *model, *more
    )
    assert (code, out) == (1, "")
    assert message in err
    assert not output.exists()


def test_features_are_never_written_over_something_else(
    tiny_checkpoint: Path, tone_wav: Path, embedded: Path, tmp_path: Path, main: Main
) -> None:
    before = embedded.read_bytes()
    code, _, err = main("embed", tone_wav, "-o", embedded, "--model", tiny_checkpoint)
    assert (code, "--force" in err) == (1, True)
    recording = Path(shutil.copy(tone_wav, tmp_path / "mine.wav"))
    code, _, err = main("embed", recording, "-o", recording, "--force", "--model", tiny_checkpoint)
    assert (code, "is an input" in err) == (1, True)
    assert recording.read_bytes() == tone_wav.read_bytes()
    code, _, err = main("embed", tone_wav, "-o", tmp_path / "no" / "a", "--model", tiny_checkpoint)
    assert (code, "no such folder" in err) == (1, True)
    assert embedded.read_bytes() == before
    embedded.write_bytes(b"")
    code, out, _ = main("embed", tone_wav, "-o", embedded, "--model", tiny_checkpoint, "--force")
    assert code == 0
    assert embedded.read_bytes() != b""
    assert out == f"{embedded}\n"


def test_only_what_is_asked_for_is_read(embedded: Path) -> None:
    metadata, found = _open(embedded)
    assert metadata["format"] == "keyface features 1"
    for name, whole in load_file(embedded).items():
        stored = found[name.removeprefix("audio.")]
        assert stored.shape == (25, 2, 32)
        for frames in ([0], [24], [3, 3, 16, 9], list(range(25))):
            assert torch.equal(stored[torch.tensor(frames)], whole[torch.tensor(frames)])


def test_a_late_clip_reads_only_its_own_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = Timeline(10_000).clip(50).audio  # its first slot is the first frame of all
    numbers = np.arange(10_000 * 2 * 3, dtype="<f4").reshape(10_000, 2, 3)
    (tmp_path / "numbers").write_bytes(b"head" + numbers.tobytes())
    stored = StoredFeatures(tmp_path / "numbers", 4, numbers.shape)
    read: list[int] = []

    def count(self: StoredFeatures, first: int, last: int) -> np.ndarray:
        read.append(last - first)
        return real(self, first, last)

    real = StoredFeatures.read
    monkeypatch.setattr(StoredFeatures, "read", count)
    assert np.array_equal(stored[torch.tensor(frames)].numpy(), numbers[list(frames)])
    assert sum(read) == 1 + 12 * 13 + 1


def test_windows_of_a_long_recording_are_written_in_order(
    tiny_checkpoint: Path, tmp_path: Path, main: Main
) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    noise = np.random.default_rng(1).normal(0, 0.1, 26 * 16_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 16_000, "FLOAT")
    path = tmp_path / "a.safetensors"
    assert main("embed", tmp_path / "a.wav", "-o", path, "--model", tiny_checkpoint)[0] == 0
    names = ("wavlm", "wav2vec2", "beats")
    encoders = {name: checkpoint.load(name, dtype=torch.float32) for name in names}
    with torch.inference_mode():
        expected = encode(encoders, noise)
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, expected[name.removeprefix("audio.")])
