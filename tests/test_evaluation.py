"""The measurement of lip sync: correlation, lag, the reader of the mouth and the report."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.scene import Scene
from keyface_cli.avatars.voices import Phone, Voice
from keyface_cli.evaluation.avatars import measure, reader

FRAMES = 120


class ScriptedReader(reader.RigReader):
    """Answers with tracks that were prepared, whatever it is shown."""

    def __init__(self, **tracks: Tensor) -> None:
        super().__init__()
        columns = [tracks.get(name, torch.zeros(FRAMES)) for name in reader.CONTROLS]
        self.tracks = torch.stack(columns, 1)

    def read(self, frames: Tensor, portrait: Tensor, batch: int = 64) -> Tensor:
        return self.tracks


def opening(generator_seed: int = 0) -> Tensor:
    """A mouth that opens and closes at random, and rests now and then."""
    noise = torch.randn(FRAMES, generator=torch.Generator().manual_seed(generator_seed))
    smooth = torch.nn.functional.avg_pool1d(noise[None], 5, 1, 2)[0]
    return smooth.clamp(0, 1)


def scene(jaw: Tensor, **controls: Tensor) -> Scene:
    tracks = torch.tensor([rig.REST]).repeat(FRAMES, 1)
    for name, track in {"jaw": jaw, **controls}.items():
        tracks[:, rig.INDEX[name]] = track
    return Scene(
        waveform=torch.zeros(FRAMES * 640),
        phones=[],
        emotion=torch.zeros(FRAMES, 2),
        rig=tracks,
        text="a sentence",
        voice=Voice("flite", "awb", held_out=True),
        acts=[],
    )


def score(
    index: int, truth: Scene, frames: np.ndarray, shown: np.ndarray, read: reader.RigReader
) -> measure.ClipResult:
    return measure.compare(index, truth, frames, shown, frames[0], read)


def pictures(level: int = 100) -> np.ndarray:
    return np.full((FRAMES, 8, 8, 3), level, np.uint8)


def test_correlation_of_tracks() -> None:
    a = opening()
    assert measure.correlation(a, 3 * a + 1) == pytest.approx(1, abs=1e-5)
    assert measure.correlation(a, -a) == pytest.approx(-1, abs=1e-5)
    assert abs(measure.correlation(a, opening(9))) < 0.35
    assert measure.correlation(a, torch.full((FRAMES,), 0.7)) == 0
    expected = np.corrcoef(a.numpy(), opening(4).numpy())[0, 1]
    assert measure.correlation(a, opening(4)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("late", [-3, -1, 0, 2, 5])
def test_lag_is_positive_where_the_mouth_comes_late(late: int) -> None:
    jaw = opening()
    result = score(7, scene(jaw), pictures(), pictures(), ScriptedReader(jaw=jaw.roll(late)))
    assert result.lag == late
    if late == 0:
        assert result.lip_sync == pytest.approx(1, abs=1e-5)
    else:
        assert result.lip_sync < 0.95


def test_figures_of_a_clip() -> None:
    jaw, width = opening(), opening(1)
    read = ScriptedReader(jaw=jaw + 0.25, width=-width)
    result = score(3, scene(jaw, width=width), pictures(100), pictures(110), read)
    assert (result.index, result.voice, result.text) == (3, "flite:awb", "a sentence")
    assert result.lip_width == pytest.approx(-1, abs=1e-5)
    assert result.lip_rounding == 0
    assert result.silence_opening == pytest.approx(0.25, abs=0.02)
    assert result.psnr == pytest.approx(20 * math.log10(255 / 10), abs=1e-6)


def test_the_truth_is_read_too(tmp_path: Path) -> None:
    jaw = opening()
    generated, truth = pictures(100), pictures(110)

    class Reader(ScriptedReader):
        def read(self, frames: Tensor, portrait: Tensor, batch: int = 64) -> Tensor:
            sign = 1 if int(frames[0, 0, 0, 0]) == 110 else -1
            return sign * super().read(frames, portrait, batch)

    result = score(0, scene(jaw), generated, truth, Reader(jaw=jaw))
    assert result.lip_sync == pytest.approx(-1, abs=1e-5)
    assert result.of_truth["lip_sync"] == pytest.approx(1, abs=1e-5)
    assert set(result.of_truth) == set(measure.FOLLOWED)
    summary = measure.of_truth([result])["lip_sync"]
    assert summary == pytest.approx({"median": 1.0, "low10": 1.0, "n": 1}, abs=1e-5)
    measure.write_csv(tmp_path / "clips.csv", [result])
    table = (tmp_path / "clips.csv").read_text(encoding="utf-8")
    (row,) = csv.DictReader(table.splitlines())
    assert float(row["truth_lip_sync"]) == pytest.approx(1, abs=1e-5)
    assert "of_truth" not in row


def test_silence_is_not_scored_where_there_is_none() -> None:
    jaw = torch.full((FRAMES,), 0.5)
    result = score(0, scene(jaw), pictures(), pictures(), ScriptedReader(jaw=jaw))
    assert math.isnan(result.silence_opening)
    summary = measure.summarise([result])
    assert "silence_opening" not in summary
    assert summary["lip_sync"] == {"median": 0.0, "low10": 0.0, "n": 1}


def test_summary_and_table(tmp_path: Path) -> None:
    jaw = opening()
    results = [
        score(i, scene(jaw), pictures(), pictures(90 + i), ScriptedReader(jaw=jaw))
        for i in range(3)
    ]
    summary = measure.summarise(results)
    assert summary["psnr"]["n"] == 3
    assert summary["psnr"]["median"] == pytest.approx(results[1].psnr)
    assert results[0].psnr < summary["psnr"]["low10"] < results[1].psnr
    measure.write_csv(tmp_path / "clips.csv", results)
    table = (tmp_path / "clips.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert [int(row["index"]) for row in rows] == [0, 1, 2]
    assert float(rows[2]["psnr"]) == pytest.approx(results[2].psnr)


def test_strip_is_evenly_spaced_from_first_to_last() -> None:
    frames = np.arange(101, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    assert measure.strip(frames, 5)[0, :, 0].tolist() == [0, 25, 50, 75, 100]


def test_closures_count_frames_with_touching_lips() -> None:
    said = [Phone("p", 0.4, 0.48), Phone("aa", 0.48, 0.8), Phone("m", 0.8, 0.9), Phone("b", 9, 9.1)]
    jaw = torch.full((FRAMES,), 0.5)
    jaw[11] = 0.02
    spoken = scene(jaw)._replace(phones=said)
    # the m stays open, the b lies behind the end
    assert measure.closures(spoken, jaw) == 0.5
    assert math.isnan(measure.closures(scene(jaw), jaw))


def test_seams_are_changes_at_keyframes() -> None:
    smooth = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    assert measure.seam_ratio(smooth) == pytest.approx(1)
    broken = smooth.copy()
    broken[26:] += 9  # a jump of 10 instead of 1 at one of nine keyframes, each with two borders
    borders = sum(1 for k in range(2, FRAMES) if k % 13 in (0, 1))
    assert measure.seam_ratio(broken) == pytest.approx((borders + 9) / borders)
    assert math.isnan(measure.seam_ratio(np.zeros((60, 2, 2, 3), np.uint8)))


def test_curves_are_followed_where_they_move() -> None:
    curve = torch.linspace(-1, 1, FRAMES)
    moving = scene(opening())._replace(emotion=torch.stack([curve, torch.zeros(FRAMES)], 1))
    read = ScriptedReader(smile=0.3 * curve + 0.1, brow=curve)
    result = score(0, moving, pictures(), pictures(), read)
    assert result.valence == pytest.approx(1, abs=1e-5)
    assert math.isnan(result.arousal)


def test_drift_is_the_growth_of_error_and_of_colour() -> None:
    truth = pictures(100)
    frames = truth.copy()
    frames[: FRAMES // 4] += 2
    frames[-(FRAMES // 4) :, ..., 0] += 6
    result = score(0, scene(opening()), frames, truth, ScriptedReader())
    assert result.drift == pytest.approx((36 / 3) ** 0.5 / 2)
    assert result.colour_drift == pytest.approx(4)


@pytest.mark.slow
def test_reader_learns_the_jaw_from_rendered_frames() -> None:
    few = reader.train_reader(updates=90, seed=5, heads=24)
    found = reader.validate(few, heads=8, seed=6)
    assert set(found) == set(reader.CONTROLS)
    frames, portraits, targets = reader.rendered_examples(24, torch.Generator().manual_seed(5))
    with torch.inference_mode():
        read = few(
            tuple(part.float() for part in frames),
            tuple(part.float().repeat_interleave(reader.POSES_EACH, 0) for part in portraits),
        )
    assert measure.correlation(read[:, 0], targets[:, 0]) > 0.8


def test_reading_frames_is_reading_their_crops_beside_the_portrait() -> None:
    torch.manual_seed(0)
    network = reader.RigReader().eval()
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    portrait = frames[2]
    mouth, eyes = reader.crop(portrait[None].expand(5, -1, -1, -1))
    with torch.inference_mode():
        expected = network(reader.crop(frames), (mouth, eyes))
    torch.testing.assert_close(network.read(frames, portrait, batch=2), expected)


def test_crops_hold_mouth_and_eyes_at_any_size() -> None:
    for side in (64, 256):
        frames = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        frames[:, int(0.7 * side), side // 2] = 255
        mouth, eyes = reader.crop(frames)
        assert mouth.shape == (2, 3, *reader.MOUTH_SIZE)
        assert eyes.shape == (2, 3, *reader.EYE_SIZE)
        y, x = divmod(int(mouth[0, 0].argmax()), reader.MOUTH_SIZE[1])
        assert abs(y / reader.MOUTH_SIZE[0] - 0.22 / 0.50) < 0.06
        assert abs(x / reader.MOUTH_SIZE[1] - 0.5) < 0.06
        assert float(eyes.max()) < -0.99


def test_training_a_reader_varies_a_frame_and_its_portrait_alike() -> None:
    heads = torch.rand(6, 3, 3, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    smooth = F.interpolate(heads, (24, 32), mode="bilinear")
    for seed in range(8):  # mirrored or not, blurred or not
        frames, portraits = reader.varied(smooth, smooth, torch.Generator().manual_seed(seed))
        again, _ = reader.varied(smooth, smooth, torch.Generator().manual_seed(seed))
        assert frames.shape == portraits.shape == smooth.shape
        assert torch.equal(frames, again)
        assert (frames - portraits).square().mean() < 0.02  # twice the noise, and a blur
        assert (frames - smooth).square().mean() > 0.1  # other colours, another place


def test_a_saved_reader_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = reader.RigReader()
    save_model(kept, str(tmp_path / "reader.safetensors"))
    monkeypatch.delattr(reader, "train_reader")
    loaded = reader.load_or_train(tmp_path / "reader.safetensors")
    for name, value in kept.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
