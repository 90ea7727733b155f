"""What rows of a batch share is computed once: a portrait's latent, a recording's features."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_batch import report, table, wav

from keyface_cli.errors import FeaturesError
from keyface_cli.jobs import shared_sound
from keyface_cli.jobs.batch import read_jobs
from keyface_cli.jobs.shared_sound import SharedFeatures, SharedSounds
from keyface_cli.media.audio import store_waveform
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.speech import AudioFeatures
from keyface_cli.pipeline import KeyFacePipeline

Main = Callable[..., tuple[int, str, str]]
COLUMNS = "portrait,audio,output,seed,start,duration"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the encoders of every pipeline that is loaded were evaluated."""
    counted: Counter[str] = Counter()
    load, encode = KeyFacePipeline.load, LatentCodec.encode

    def watched(*given: Any, **more: Any) -> KeyFacePipeline:
        pipeline = load(*given, **more)
        for name, encoder in pipeline.engine.encoders.items():
            encoder.register_forward_pre_hook(lambda *_, name=name: counted.update([name]))
        return pipeline

    def encoded(codec: LatentCodec, pixels: torch.Tensor) -> torch.Tensor:
        counted["portrait"] += 1
        return encode(codec, pixels)

    monkeypatch.setattr(KeyFacePipeline, "load", watched)
    monkeypatch.setattr(LatentCodec, "encode", encoded)
    return counted


@pytest.mark.slow
def test_rows_share_a_portrait_and_a_recording(
    main: Main,
    tiny_checkpoint: Path,
    portrait_png: Path,
    tmp_path: Path,
    passes: Counter[str],
) -> None:
    recording, other = (wav(tmp_path / "in" / f"{name}.wav", 0.8, name) for name in (1, 2))
    rows = [
        f"{portrait_png},{recording},a.mp4,1,,",
        f"{portrait_png},{other},b.mp4,2,,",
        f"{portrait_png},{recording},c.mp4,3,,",
        f"{portrait_png},{recording},d.mp4,1,0.2,0.5",  # another part of it
    ]
    common = ["-m", tiny_checkpoint, "--device", "cpu", "--dtype", "float32", "-q"]
    common += ["--set", "steps=1", "--set", "crop=center"]
    code, _, err = main("batch", table(tmp_path / "all.csv", COLUMNS, *rows), *common)
    assert code == 0, err
    together = [row["sha256"] for row in report(tmp_path / "all.report.csv")]
    assert passes == {"portrait": 1, "wavlm": 3, "wav2vec2": 3, "beats": 3}

    passes.clear()
    alone = []
    for row in rows:
        Path(tmp_path / row.split(",")[2]).unlink()
        code, _, err = main("batch", table(tmp_path / "one.csv", COLUMNS, row), *common)
        assert code == 0, err
        alone += [found["sha256"] for found in report(tmp_path / "one.report.csv")]
    assert passes == {"portrait": 4, "wavlm": 4, "wav2vec2": 4, "beats": 4}
    assert together == alone


@pytest.mark.slow
def test_a_portrait_that_moves_is_encoded_once_too(
    lively_checkpoint: Path, passes: Counter[str]
) -> None:
    pipeline = KeyFacePipeline.load(lively_checkpoint, "cpu", "float32")
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    curve = np.zeros((25, 2), np.float32)

    def made(level: float) -> np.ndarray[Any, Any]:
        portrait = np.full((3, 64, 64), level, np.float32)
        return np.concatenate(list(pipeline.stream(portrait, sound, curve)))

    first = made(0.5)
    assert passes["portrait"] == 1
    assert np.array_equal(made(0.5), first)
    assert passes["portrait"] == 1
    assert not np.array_equal(made(0.4), first)
    assert passes["portrait"] == 2
    for level in (0.1, 0.2, 0.3, 0.4):  # the last few are kept, not all
        made(level)
    assert passes["portrait"] == 5
    assert len(pipeline.engine._latents) == 4


def test_only_rows_of_the_same_part_share_a_recording(tmp_path: Path) -> None:
    rows = ("p.png,a.wav,1.mp4,1,,", "p.png,b.wav,2.mp4,1,,", "q.png,./a.wav,3.mp4,1,,")
    rows += ("q.png,a.wav,4.mp4,1,0.5,", "q.png,a.wav,5.mp4,1,0.5,0.1", "q.png,b.wav,2.mp4,1,,")
    found = read_jobs(table(tmp_path / "jobs.csv", COLUMNS, *rows), {}, None)
    # the last is no job: its output is that of another row
    assert [row.shares_sound for row in found] == [True, False, True, False, False, False]


def test_features_of_long_sound_are_computed_once_and_kept_on_disk(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: Counter[tuple[str, int]] = Counter()
    encode = AudioFeatures._encode

    def count(features: AudioFeatures, index: int) -> torch.Tensor:
        windows[type(features).__name__, index] += 1
        return encode(features, index)

    monkeypatch.setattr(AudioFeatures, "_encode", count)
    sound = store_waveform(wav(tmp_path / "in" / "long.wav", 40), tmp_path)
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")
    sounds = SharedSounds()

    def features() -> dict[str, SharedFeatures]:
        found = sounds.of("long", sound, pipeline, tmp_path)
        assert found is not None
        return found

    wanted = torch.tensor([0, 999, 299, 300, 0, 650])
    expected = {
        name: one.frames(wanted.tolist())
        for name, one in pipeline.engine.audio_features(sound).items()
    }
    windows.clear()
    source = weakref.ref(features()["wavlm"]._compute.__self__)  # type: ignore[union-attr]
    assert features()["wavlm"].shape == (1000, 2)
    assert windows == {}  # nothing is computed before it is asked for
    with torch.inference_mode():
        for name, numbers in expected.items():
            assert torch.equal(features()[name][wanted], numbers)
            assert torch.equal(features()[name][wanted], numbers)
    kinds = ("_WavLM", "_Wav2Vec2", "_Beats")
    assert windows == {(kind, index): 1 for kind in kinds for index in range(4)}
    assert features()["wavlm"].shape == (1000, 2, 32)
    # what the encoder keeps in memory goes when all is on the disk
    gc.collect()
    assert source() is None
    assert list(tmp_path.glob("*")) == [tmp_path / "in"]  # the file has no name


def test_only_the_last_recordings_are_kept(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = KeyFacePipeline.load(tiny_checkpoint, "cpu", "float32")
    sound = store_waveform(wav(tmp_path / "in" / "a.wav", 2), tmp_path)
    sounds = SharedSounds()

    def of(key: object) -> Any:
        return sounds.of(str(key), sound, pipeline, tmp_path)

    monkeypatch.setattr(shared_sound, "KEPT", 2)
    first, second = of(1), of(2)
    assert of(1) is first
    of(3)
    assert of(1) is first
    assert of(2) is not second
    monkeypatch.setattr(shared_sound, "KEPT_FRAMES", 99)  # one of 50 frames, not two
    third = of(3)
    assert of(3) is third
    assert of(1) is not first
    monkeypatch.setattr(shared_sound, "KEPT_FRAMES", 49)
    assert of(4) is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="absent"):
        SharedFeatures(lambda frames: torch.zeros(len(frames), 2, 1), 5, tmp_path / "absent")
