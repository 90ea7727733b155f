"""Real videos to shards: the face is followed, what is not fit is left out, runs go on."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors import safe_open

from keyface_cli.emotion.face_model import FaceModel
from keyface_cli.errors import EmotionError, KeyFaceError, VideoError
from keyface_cli.media.faces import Face
from keyface_cli.media.framing import PUBLISHED, FaceFrame
from keyface_cli.training import shards
from keyface_cli.training.clips import ClipSource
from keyface_cli.training.preparation import checks, media, parts, prepare, tracking, writer

Main = Callable[..., tuple[int, str, str]]
AVATAR = Path(__file__).parent.parent / "examples" / "avatar.png"
SIZE = (256, 192)
LIMITS = prepare.Limits(shortest_s=1.0, longest_s=2.4)


def speech(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Syllables of noise: loudness that rises and falls at random, 16 kHz."""
    rng = np.random.default_rng(seed)
    count = round(seconds * 16_000)
    knots = rng.uniform(0, 1, math.ceil(seconds * 8) + 2) ** 2
    level = np.interp(np.arange(count) / 2000, np.arange(len(knots)), knots)
    return (0.3 * level * rng.standard_normal(count)).astype(np.float32)


def openings(sound: NDArray[np.float32], frames: int) -> NDArray[np.float64]:
    """A mouth that opens and closes four times a second or so, wider where it is loud."""
    loud = np.clip(1 + checks.loudness(sound, frames) / 40, 0, 1)
    return loud * (np.random.default_rng(9).uniform(0, 1, frames) + np.arange(frames) % 2)


def film(frames: int, opening: NDArray[np.float64], faces: int = 1) -> Iterator[NDArray[np.uint8]]:
    """A drawn head that drifts to the right and opens its mouth; white eyes mark where it is."""
    for number in range(frames):
        picture = Image.new("RGB", SIZE, (90, 110, 130))
        draw = ImageDraw.Draw(picture)
        for face in range(faces):
            x = 100 + 0.2 * number + 80 * face
            draw.ellipse((x - 30, 60, x + 30, 140), fill=(220, 180, 150))
            draw.rectangle((x - 14, 88, x - 10, 92), fill=(255, 255, 255))
            draw.rectangle((x + 10, 88, x + 14, 92), fill=(255, 255, 255))
            half = 1 + 8 * float(np.clip(opening[number], 0, 1))
            draw.ellipse((x - 10, 116 - half, x + 10, 116 + half), fill=(40, 10, 10))
        yield np.asarray(picture)


def find_marks(picture: Image.Image) -> list[Face]:
    """Stand in for the detector: faces where the white eyes are."""
    white = (np.asarray(picture) > 245).all(-1)
    columns = np.flatnonzero(white.any(0))
    if not len(columns):
        return []
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 3) + 1)
    middles = [float(group.mean()) for group in groups]
    found = []
    for left, right in zip(middles[::2], middles[1::2], strict=False):
        x = (left + right) / 2
        box = (round(x) - 30, 60, 60, 80)
        points = ((left, 90.0), (right, 90.0), (x, 103.0), (x - 5, 116.0), (x + 5, 116.0))
        found.append(Face(box, points, 1.0))
    return found


def write_video(
    path: Path,
    frames: Iterator[NDArray[np.uint8]],
    sound: NDArray[np.float32] | None,
    fps: int = 25,
) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE[0]}x{SIZE[1]}"]
    command += ["-r", str(fps), "-i", "pipe:0"]
    raw = path.with_suffix(".f32")
    if sound is not None:
        raw.write_bytes(sound.tobytes())
        command += ["-f", "f32le", "-ar", "16000", "-ac", "1", "-i", str(raw), "-c:a", "pcm_s16le"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", str(path)]
    pictures = b"".join(frame.tobytes() for frame in frames)
    subprocess.run(command, input=pictures, check=True)
    raw.unlink(missing_ok=True)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, one for each thing that may happen."""
    folder = tmp_path_factory.mktemp("videos")
    sound = speech(4.0)
    opening = openings(sound, 100)
    write_video(folder / "good.mkv", film(100, opening), sound)
    write_video(folder / "late.mkv", film(100, np.roll(opening, 8)), sound)
    write_video(folder / "two.mkv", film(50, opening, faces=2), sound[:32_000])
    write_video(folder / "mute.mkv", film(50, opening), None)
    write_video(folder / "quiet.mkv", film(50, opening), np.zeros(32_000, np.float32))
    write_video(folder / "short.mkv", film(20, opening), sound[:12_800])
    empty = (np.full((SIZE[1], SIZE[0], 3), 90, np.uint8) for _ in range(50))
    write_video(folder / "nobody.mkv", empty, sound[:32_000])
    (folder / "broken.mp4").write_bytes(b"\0" * 999)
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def encoders(tiny_checkpoint: Path) -> prepare.Encoders:
    return prepare.load_encoders(str(tiny_checkpoint), None, "cpu")


@pytest.fixture(autouse=True)
def marked_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_faces", find_marks)


def outcomes(pieces: list[prepare.Piece]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for piece in pieces:
        found.setdefault(Path(piece.video).stem, []).append(piece.outcome)
    return found


def test_videos_become_shards_and_reasons(
    clips: Path, encoders: prepare.Encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = media.find_videos([clips])
    assert "notes.txt" not in [video.name for video in videos]
    made_with = prepare.facts_of(encoders, LIMITS)
    whole = tmp_path / "whole"
    found = outcomes(prepare.prepare(videos, whole, encoders, LIMITS, made_with))
    assert found.pop("broken")[0].startswith("not a video that can be read")
    assert found == {
        "good": ["kept", "kept"],
        "late": found["late"],
        "two": ["several faces"],
        "mute": ["no sound"],
        "quiet": ["silent"],
        "short": ["too short"],
        "nobody": ["no face"],
    }
    late = [re.fullmatch(r"sound and picture apart: \+(\d+) frames", s) for s in found["late"]]
    assert [match is not None and 6 <= int(match[1]) <= 10 for match in late] == [True, True]
    with (whole / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    good = [row for row in rows if row["video"].endswith("good.mkv")]
    assert [(row["start_s"], row["end_s"]) for row in good] == [("0.0", "2.0"), ("2.0", "4.0")]

    # what training draws: the frames of one video, its sound beside them
    source = ClipSource(whole, "runs", ("wavlm", "beats"), pictures=True)
    assert len(source) == 2 * (50 - 13)
    batch = source.batch(2, torch.Generator().manual_seed(0))
    assert batch.latents.shape == (2, 14, 4, 8, 8)
    assert batch.features.shape == (2, 14, 2, 64)
    assert batch.pictures is not None
    assert batch.pictures.shape == (2, 64, 64, 3)

    vae = made_with["vae"]
    shards.check_vae(whole, vae)
    with pytest.raises(KeyFaceError, match="another VAE"):
        shards.check_vae(whole, vae[::-1])

    # killed after the first shard, and gone on with: the same shards
    parts = tmp_path / "parts"
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    write, calls = writer.ShardWriter.flush, []

    def die(self: writer.ShardWriter) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(write(self))

    monkeypatch.setattr(writer.ShardWriter, "flush", die)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(videos, parts, encoders, LIMITS, made_with)
    assert not (parts / "report.csv").exists()
    monkeypatch.setattr(writer.ShardWriter, "flush", write)
    again = outcomes(prepare.prepare(videos, parts, encoders, LIMITS, made_with))
    again.pop("broken")
    assert again == found
    stored = [tensors(folder) for folder in (whole, parts)]
    assert stored[0].keys() == stored[1].keys()
    assert all(np.array_equal(value, stored[1][name]) for name, value in stored[0].items())

    # once more: nothing is read again
    monkeypatch.setattr(media, "frames", None)
    assert outcomes(prepare.prepare(videos, parts, encoders, LIMITS, made_with))["good"] == [
        "kept",
        "kept",
    ]
    other = made_with | {"size": 32}
    with pytest.raises(KeyFaceError, match="another model or other options"):
        prepare.prepare(videos, parts, encoders, LIMITS, other)


def test_videos_prepared_in_any_order_are_put_together_in_theirs(
    clips: Path, tiny_checkpoint: Path, encoders: prepare.Encoders, tmp_path: Path
) -> None:
    videos = media.find_videos([clips])
    made_with = prepare.facts_of(encoders, LIMITS)
    expected = prepare.prepare(videos, tmp_path / "one", encoders, LIMITS, made_with)
    make = parts.set_up(str(tiny_checkpoint), None, "cpu", LIMITS)
    said: list[int] = []

    def gather(work: Callable[[Iterator[parts.Part]], Iterator[parts.Part]]) -> list[prepare.Piece]:
        return parts.prepare_parts(
            videos, tmp_path / "many", made_with, work, lambda done, total, name: said.append(done)
        )

    def cut_off(given: Iterator[parts.Part]) -> Iterator[parts.Part]:
        for part in list(given)[1::-1]:
            yield make(part)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(cut_off)
    assert said == [0, 1, 2]
    assert gather(lambda given: map(make, reversed(list(given)))) == expected
    assert said[3:] == list(range(len(videos) + 1))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names
    for name in names:
        one, many = ((tmp_path / folder / name).read_bytes() for folder in ("one", "many"))
        assert one == many, name
    # what is done is not done again
    assert gather(lambda given: iter(list(given)[:0])) == expected

    def other(given: Iterator[parts.Part]) -> Iterator[parts.Part]:
        for part in given:
            prepare.prepare([part.video], part.folder, encoders, LIMITS, made_with | {"size": 32})
            yield part

    with pytest.raises(KeyFaceError, match="another model or other options"):
        parts.prepare_parts(videos[:1], tmp_path / "new", made_with, other, lambda *_: None)


def tensors(folder: Path) -> dict[str, NDArray[Any]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def test_pictures_and_sound_share_a_clock(tmp_path: Path) -> None:
    # 50 frames a second become 25; a flash and a click at 1.0 s
    frames = [np.zeros((SIZE[1], SIZE[0], 3), np.uint8) for _ in range(100)]
    for number in range(50, 54):
        frames[number] = np.full_like(frames[0], 255)
    sound = np.zeros(32_000, np.float32)
    sound[16_000:16_100] = 0.9
    video = write_video(tmp_path / "flash.mkv", iter(frames), sound, fps=50)
    shown = [float(frame.mean()) for frame in media.frames(video)]
    assert len(shown) == 50
    assert [number for number, level in enumerate(shown) if level > 128] == [25, 26]
    with media.sound(video) as samples:
        assert abs(int(np.abs(samples).argmax()) - 16_050) < 120
        assert abs(len(samples) - 32_000) < 700


def test_a_stretch_ends_at_a_cut_and_where_the_face_jumps() -> None:
    still = np.zeros(60)
    first = list(film(30, still))
    moved = [np.roll(frame, 90, axis=1) for frame in film(30, still)]
    dark = [frame // 3 + 170 for frame in film(30, still)]
    dark = [np.where(first[i] > 245, 255, frame).astype(np.uint8) for i, frame in enumerate(dark)]
    found = list(tracking.stretches(iter([*first, *moved])))
    assert [(part.first, part.last, part.reason) for part in found] == [
        (0, 29, None),
        (30, 59, None),
    ]
    found = list(tracking.stretches(iter([*first, *dark])))
    assert [(part.first, part.last) for part in found] == [(0, 29), (30, 59)]
    # and a face that comes late ends the stretch without one
    nobody = [np.full_like(first[0], 90)] * 20
    found = list(tracking.stretches(iter([*nobody, *first])))
    assert [part.reason for part in found] == ["no face", None]
    assert sum(map(len, found)) == 50


def test_the_crop_follows_calmly_and_frames_as_the_model_does() -> None:
    looks = np.array(
        [(n, 200 + 0.5 * n + (6 if n % 10 else -6), 150, 24) for n in range(0, 250, 5)], float
    )
    part = tracking.Stretch(0, 249, looks, (640, 360))
    squares = tracking.crops(part, FaceFrame(0.2, 0.6))
    assert len(squares) == 250
    assert {square.side for square in squares} == {120.0}
    x = np.array([square.x for square in squares])
    assert np.abs(np.diff(x)).max() < 1  # no nod is followed, the drift is
    assert x[-50] - x[50] == pytest.approx(0.5 * 150, abs=4)
    assert squares[0].y == pytest.approx(150 - 0.1 * 120)
    # never beyond the picture
    edge = tracking.Stretch(0, 9, np.array([(0, 10.0, 10.0, 24.0)]), (640, 360))
    assert (tracking.crops(edge, PUBLISHED)[0].x, tracking.crops(edge, PUBLISHED)[0].y) == (
        pytest.approx(24 / PUBLISHED.face / 2),
        pytest.approx(24 / PUBLISHED.face / 2),
    )


@pytest.mark.parametrize("shift", [-9, -6, 0, 2, 6, 9])
def test_a_delay_is_told_from_motion_and_loudness(shift: int) -> None:
    sound = speech(8.0, seed=3)
    levels = checks.loudness(sound, 200)
    motion = np.abs(np.diff(np.roll(openings(sound, 200), shift)))
    found = checks.lag(motion, levels)
    assert found is not None
    assert abs(found - (shift if abs(shift) > checks.TOLERATED_LAG else 0)) <= 1


def test_a_still_mouth_tells_no_delay() -> None:
    levels = checks.loudness(speech(8.0), 200)
    assert checks.lag(np.zeros(199), levels) is None
    noise = np.random.default_rng(1).uniform(0, 1, 199)
    assert checks.lag(noise, levels) is None


def test_mouth_motion_is_not_that_of_the_head() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (64, 64, 3))
    nodding = np.stack([np.roll(base, n % 2, axis=0) for n in range(6)]).astype(np.uint8)
    talking = np.repeat(base[None], 6, 0).astype(np.uint8)
    talking[::2, 40:50, 24:40] = 0
    assert checks.mouth_motion(nodding).mean() < 0.2 * checks.mouth_motion(talking).mean()


def test_the_detector_sees_the_face_of_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    avatar = Image.open(AVATAR).convert("RGB").resize((180, 180))
    scene = Image.new("RGB", (320, 240), (120, 140, 90))
    scene.paste(avatar, (60, 30))
    (part,) = tracking.stretches(iter([np.asarray(scene)] * 3))
    assert part.reason is None
    (square,) = {(s.x, s.y, s.side) for s in tracking.crops(part, PUBLISHED)}
    assert abs(square[0] - 150) < 15
    assert 100 < square[2] <= 240


@pytest.fixture(scope="module")
def affect_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the right shape: valence is the mean of red, arousal minus that of blue."""
    onnx: Any = pytest.importorskip("onnx", reason="no onnx here")
    pytest.importorskip("onnxruntime", reason="no onnxruntime here")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.zeros((3, 10), np.float32)
    weights[0, 8], weights[2, 9] = 0.5, -0.5
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "affect",
        [helper.make_tensor_value_info("x", kind, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("y", kind, [1, 10])],
        [helper.make_tensor("w", kind, [3, 10], weights.flatten().tolist())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("affect") / "enet.onnx"
    onnx.save(model, str(path))
    return path


def test_affect_is_read_from_normalised_pictures(affect_model: Path, tmp_path: Path) -> None:
    network = FaceModel(affect_model)
    grey = np.full((224, 224, 3), 124, np.uint8)
    red = grey.copy()
    red[..., 0] = 255
    found = np.stack([network.read(grey), network.read(red)])
    expected = 0.5 * (np.array((124, 255)) / 255 - 0.485) / 0.229
    np.testing.assert_allclose(found[:, 8], expected, atol=1e-3)
    np.testing.assert_allclose(found[:, 9], -0.5 * (124 / 255 - 0.406) / 0.225, atol=1e-3)
    with pytest.raises(EmotionError, match="no such file"):
        FaceModel(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(EmotionError, match="not EmotiEffLib's"):
        FaceModel(tmp_path / "bad.onnx")


def test_the_command_prepares_and_counts(
    main: Main, clips: Path, tiny_checkpoint: Path, affect_model: Path, tmp_path: Path
) -> None:
    code, out, err = main(
        *("dataset", "prepare", clips / "good.mkv", clips / "mute.mkv", "-o", tmp_path / "data"),
        *("--model", tiny_checkpoint, "--emotion-model", affect_model),
        *("--shortest", 1, "--longest", 7, "--device", "cpu", "--json"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["outcomes"]["kept"] == {"clips": 1, "hours": pytest.approx(4 / 3600)}
    assert result["outcomes"]["no sound"]["clips"] == 1
    assert "kept: 1 clips" in err
    (path,) = (tmp_path / "data").glob("*.safetensors")
    with safe_open(path, framework="np") as file:
        (name,) = {key.split("/")[0] for key in file.keys()}  # noqa: SIM118
        emotion = file.get_tensor(f"{name}/emotion")
    assert emotion.shape == (100, 2)
    assert np.abs(emotion).max() > 0.05
    # and a network learns from it
    code, _, err = main(
        *("train", "interpolation", "--data", tmp_path / "data", "-o", tmp_path / "run"),
        *("--from", tiny_checkpoint, "--updates", 1, "--batch-size", 1),
        *("--set", "held_out=0", "--set", "pixel=1"),
    )
    assert code == 0, err


def test_wrong_use_of_the_command_is_one_line(main: Main, tmp_path: Path) -> None:
    code, _, err = main("dataset", "prepare", tmp_path, "-o", tmp_path / "data")
    assert code == 1
    assert "error: valence and arousal are read by a network that has to be named" in err
    code, _, err = main("dataset", "prepare", tmp_path, "-o", tmp_path / "data", "--neutral")
    assert code == 1
    assert "error: no video in" in err
    with pytest.raises(VideoError, match="no such file or folder"):
        media.find_videos([tmp_path / "none"])
