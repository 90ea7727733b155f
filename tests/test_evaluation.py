"""The measurement of lip sync: correlation, lag, the reader of the mouth and the report."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photographs import make_photographs
from safetensors.torch import save_file
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.avatars.photographs.casting import read_cast
from keyface_cli.avatars.recordings import Recording
from keyface_cli.avatars.scene import Scene
from keyface_cli.avatars.voices import Phone, Voice
from keyface_cli.config import MOTION
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.avatars import face, measure, reader, voiceless
from keyface_cli.evaluation.avatars.heldout import HeldOut, portrait_of
from keyface_cli.evaluation.avatars.report import Report

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
    return np.full((FRAMES, 16, 16, 3), level, np.uint8)


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
    assert summary == pytest.approx({"median": 1, "mean": 1, "low10": 1, "n": 1}, abs=1e-5)
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
    assert summary["lip_sync"] == {"median": 0.0, "mean": 0.0, "low10": 0.0, "n": 1}


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
    seen = reader.examples(24, reader.DRAWN_POSES, torch.Generator().manual_seed(5))
    few = reader.train_reader([seen], updates=90, seed=5)
    frames, rest, targets = seen.batch(torch.arange(len(seen.targets)))
    with torch.inference_mode():
        read = few(frames, rest)
    assert measure.correlation(read[:, 0], targets[:, 0]) > 0.7


@pytest.mark.slow
def test_a_new_reader_is_checked_on_held_out_heads_of_both_kinds(tmp_path: Path) -> None:
    folder = make_photographs(tmp_path)
    casts = (read_cast(folder), read_cast(folder, held_out=True))
    made = reader.make_reader(4, 1, 5, casts, checked=3)
    assert set(made.accuracy) == {"drawn", "photographs"}
    assert set(made.accuracy["drawn"]) == set(reader.CONTROLS)


def test_examples_show_photographs_beside_their_portrait(tmp_path: Path) -> None:
    cast = read_cast(make_photographs(tmp_path), held_out=True)
    seen = reader.examples(2, 3, torch.Generator().manual_seed(1), cast, plain=True)
    frames, rest, targets = seen.batch(torch.tensor([0, 4]))
    assert seen.owner.tolist() == [0, 0, 0, 1, 1, 1]
    assert targets.shape == (2, len(reader.CONTROLS))
    assert frames[0].shape == rest[0].shape == (2, 3, *reader.MOUTH_SIZE)
    near = (frames[1] - rest[1]).abs().mean()
    assert 0.005 < near < 0.3  # the same face, moved


@pytest.mark.slow
def test_lids_of_examples_are_where_a_blink_takes_them() -> None:
    seen = reader.examples(40, 3, torch.Generator().manual_seed(1))
    lids = seen.targets[:, reader.CONTROLS.index("lid")]
    assert 0.15 < (lids > 0.5).float().mean() < 0.45
    assert lids.max() <= 1


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


def test_a_saved_reader_is_the_same_in_half_precision(tmp_path: Path) -> None:
    kept = reader.RigReader()
    kept.accuracy = {"drawn": {"jaw": 0.9}}
    path = tmp_path / "reader.safetensors"
    reader.save(kept, path)
    assert path.stat().st_size < 3e6
    loaded = reader.load(path)
    assert loaded.accuracy == kept.accuracy
    assert not loaded.training
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_another_file_is_no_reader(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no face reader"):
        reader.load(tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match="no face reader"):
        reader.load(tmp_path / "other.safetensors")


def lids(*blinks: int, full: float = 1.0, open_at: float = 0.2) -> Tensor:
    """Lids of `FRAMES` frames that blink at some, from where they are open."""
    track = torch.full((FRAMES,), open_at)
    for first in blinks:
        share = full * torch.tensor([0.45, 1.0, 0.85, 0.45, 0.12])
        track[first : first + 5] = open_at + share * (1 - open_at)
    return track


def test_blinks_are_counted_and_their_depth_is_measured() -> None:
    minutes = FRAMES / 25 / 60
    assert face.blinks_a_minute(lids()) == 0
    assert face.blinks_a_minute(lids(20, 28, 80)) * minutes == pytest.approx(3)
    assert face.blinks_a_minute(lids(20, 80, full=0.3)) == 0  # hardly closed
    assert face.blinks_a_minute(torch.linspace(-0.2, 0.6, FRAMES)) == 0  # no blink: a mood
    truth = scene(opening(), blink=lids(20, 80, open_at=0.0))
    assert face.lid_closure(truth, lids(20, 80)) == pytest.approx(1)
    assert face.lid_closure(truth, lids(21, 79, full=0.8)) == pytest.approx(0.8)  # early and late
    assert face.lid_closure(truth, lids(50)) == pytest.approx(0)  # at another time
    assert math.isnan(face.lid_closure(scene(opening()), lids(20)))


def test_head_motion_and_sharpness_are_of_the_face() -> None:
    noise = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, (256, 256), mode="bicubic")[0, 0].clamp(0, 1) * 255
    still = smooth.byte().numpy()[..., None].repeat(3, 2)
    moved = np.stack([np.roll(still, shift, 1) for shift in (0, 4, 0, -4)])
    assert face.head_motion(np.stack([still] * 4), still) == pytest.approx(0, abs=0.05)
    expected = 100 * 8**0.5 / 256  # the deviation of 0, 4, 0 and -4 pixels
    assert face.head_motion(moved, still) == pytest.approx(expected, rel=0.15)
    assert face.mouth_sharpness(moved, moved) == pytest.approx(1)
    soft = (moved.astype(np.float32) * 0.5 + 60).astype(np.uint8)
    assert face.mouth_sharpness(soft, moved) == pytest.approx(0.25, rel=0.05)
    outside = moved.copy()
    outside[:, :120] = 0  # not the mouth
    assert face.mouth_sharpness(outside, moved) == pytest.approx(1)


def test_photographs_take_turns_and_are_drawn_as_they_are(tmp_path: Path) -> None:
    cast = read_cast(make_photographs(tmp_path), held_out=True)
    heads = HeldOut(2, 1, 64, cast)
    portraits = [portrait_of(heads.head(i)) for i in range(2)]
    assert np.array_equal(*portraits)  # one person is held out
    drawn = HeldOut(2, 1, 64)
    assert not np.array_equal(portrait_of(drawn.head(0)), portrait_of(drawn.head(1)))
    assert np.array_equal(portrait_of(drawn.head(1)), portrait_of(HeldOut(2, 1, 64).head(1)))
    poses = torch.tensor([rig.REST]).repeat(2, 1)
    poses[1, rig.INDEX["jaw"]] = 1
    closed, wide = heads.head(0)(poses).astype(int)
    assert np.array_equal(closed, portraits[0])
    assert np.abs(wide - closed)[38:54].mean() > 2


class Pipeline:
    """Shows the portrait, and keeps what it was told."""

    def __init__(self, motion: tuple[str, ...]) -> None:
        self.config = type("Config", (), {"motion": motion, "resolution": 64})
        self.told: list[dict[str, Any]] = []

    def stream(self, portrait: Any, wave: Any, emotion: Any, *_: Any, **given: Any) -> Any:
        self.told.append(given)
        shown = ((portrait.transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)
        yield np.broadcast_to(shown, (len(emotion), *shown.shape))


@pytest.mark.parametrize("motion", [(), MOTION])
def test_a_model_with_motion_conditions_moves_as_the_truth_does(
    motion: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = scene(opening(), yaw=opening(2), blink=lids(20, open_at=0.0))
    monkeypatch.setattr(measure.Material, "scene", lambda self, index: truth)
    pipeline: Any = Pipeline(motion)
    read = ScriptedReader(lid=lids(20))
    (result,) = measure.evaluate(pipeline, read, measure.Material(1, FRAMES / 25))
    told = pipeline.told[0].get("motion")
    assert (told is not None) == bool(motion)
    if motion:
        assert told.shape == (FRAMES, 8)
        np.testing.assert_allclose(told[:, motion.index("yaw")], opening(2), rtol=1e-6)
    assert result.head_motion == pytest.approx(0, abs=0.01)  # a still picture
    assert result.of_truth["head_motion"] > 0.5
    assert result.lid_closure == pytest.approx(1)
    assert result.blink_rate == pytest.approx(60 * 25 / FRAMES)


def test_a_recording_is_cut_and_played_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, text: str) -> Recording:
        said = [Phone("aa", 0.0, 1.0), Phone("m", 1.0, 2.0)]
        return Recording(path.stem, 0.1 * torch.ones(32_000), said, text)

    monkeypatch.setattr(measure, "read_recording", read)
    files = [(tmp_path / "a.wav", "one"), (tmp_path / "b.wav", "two")]
    material = measure.Material(3, 1.2, recordings=files)
    scenes = [material.scene(i) for i in range(3)]
    assert [part.text for part in scenes] == ["one", "two", "one"]
    assert [part.voice.name for part in scenes] == ["a", "b", "a"]
    assert (len(scenes[0].rig), scenes[0].phones[-1].end_s) == (30, pytest.approx(1.2))
    assert scenes[0].rig[5:20, 0].min() > 0.3  # the mouth is open in the vowel


def test_sounds_without_a_voice_are_compared_with_speech() -> None:
    pipeline: Any = Pipeline(MOTION)
    frames = round(voiceless.SECONDS * 25)

    class Reader(ScriptedReader):
        calls = 0

        def read(self, frames: Tensor, portrait: Tensor, batch: int = 64) -> Tensor:
            self.calls += 1  # first the generated frames, then those of the truth
            return super().read(frames, portrait)[: len(frames)] * (self.calls % 2 or 0.4)

    read = Reader(jaw=torch.full((FRAMES,), 0.1))
    measured = list(voiceless.evaluate(pipeline, read, each=2))
    assert [one.kind for one in measured] == [*voiceless.LEVELS_DB] * 2
    assert {len(given["motion"]) for given in pipeline.told} == {frames}
    report = Report(None, {})
    assert report.openings() == {}
    report.sounds += measured
    speech = ScriptedReader(jaw=torch.full((FRAMES,), 0.4))
    report.keep(score(0, scene(opening()), pictures(), pictures(), speech), *[pictures()] * 2)
    found = report.to_dict()["sounds"]
    assert found["noise"] == {
        "opening": pytest.approx(0.1),
        "of_truth": pytest.approx(0.04),
        "over_speech": pytest.approx(0.25),
        "truth_over_speech": pytest.approx(0.1),
        "n": 2,
    }
    loud, quiet = (voiceless.scene_of(kind, 1).waveform for kind in ("noise", "room"))
    assert 20 * math.log10(float(quiet.std() / loud.std())) == pytest.approx(-15, abs=1)


def test_the_shipped_reader_reads_heads_that_it_has_not_seen() -> None:
    shipped = reader.load(reader.BUNDLED)
    seen = reader.examples(12, reader.DRAWN_POSES, torch.Generator().manual_seed(123))
    read = reader.validate(shipped, seen)
    assert read["jaw"] > 0.9
    assert read["smile"] > 0.7
    assert set(shipped.accuracy) == {"drawn", "photographs"}
