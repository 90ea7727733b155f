"""Reading and pairing videos: rates, sizes, lengths, and every kind of bad file in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import SIDE, moving, write_video

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.errors import VideoError
from keyface_cli.evaluation.pairing import Pair, make_clip, pair_folders, read_pairs
from keyface_cli.media.frames import Conform, list_videos, probe, read_frames


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", moving())


def read(path: Path, conform: Conform | None = None, block: int = 16) -> np.ndarray:
    return np.concatenate(list(read_frames(path, conform, block)))


def test_frames_come_back_in_blocks(video: Path) -> None:
    blocks = list(read_frames(video, block=7))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(blocks), moving())  # lossless, RGB in this order
    info = probe(video)
    assert (info.frames, info.variable, info.size) == (30, False, (SIDE, SIDE))
    assert info.fps == pytest.approx(25)


def test_rate_size_and_length_are_brought_to_what_is_asked(video: Path) -> None:
    half = read(video, Conform(fps=12.5))
    assert len(half) == 15
    assert np.abs(half[4].astype(int) - moving()[8]).mean() < 12  # by time, not by index
    assert read(video, Conform(size=(20, 30), frames=3)).shape == (3, 30, 20, 3)


def test_variable_rate_is_seen_and_brought_to_an_even_one(tmp_path: Path) -> None:
    drop = "select='not(between(n,5,9)+between(n,20,22))'"
    path = write_video(tmp_path / "v.mp4", moving(), filters=drop)
    assert probe(path).variable
    clip, notes = make_clip(Pair("m", "v", path), fps=25)
    assert clip.conform.fps == 25
    assert notes == ["generated clip has a variable rate: brought to 25"]
    whole = read(path, clip.conform)
    assert len(whole) == 30
    assert np.array_equal(whole[12], moving()[12])  # after the gap at its own time


@pytest.mark.parametrize("rate", ["25", "30", "30000/1001", "50"])
def test_rates(tmp_path: Path, rate: str) -> None:
    info = probe(write_video(tmp_path / "r.mp4", moving(12, side=16), fps=rate))
    top, _, bottom = rate.partition("/")
    assert info.fps == pytest.approx(int(top) / int(bottom or 1), rel=1e-3)
    assert not info.variable


def test_bad_files_are_one_line_each(tmp_path: Path, video: Path, tone_wav: Path) -> None:
    whole = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    cases = {
        tmp_path / "cut.mp4": "truncated or damaged",
        tmp_path / "empty.mp4": "empty",
        tmp_path / "text.mp4": "not a video that can be read",
        tmp_path / "absent.mp4": "no such video",
        tmp_path: "is a folder",
        tone_wav: "holds no picture",
    }
    for path, words in cases.items():
        with pytest.raises(VideoError, match=words) as error:
            probe(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_damage_behind_the_first_frames_is_an_error(tmp_path: Path, video: Path) -> None:
    data = bytearray(video.read_bytes())
    data[len(data) * 2 // 3 :] = bytes(len(data) - len(data) * 2 // 3)
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(VideoError, match="damaged after frame"):
        read(tmp_path / "bad.mp4")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    a = touch(tmp_path / "a", "1.mp4", "2.mov", "notes.txt", ".3.mp4")
    b = touch(tmp_path / "b", "1.webm", "2.mp4")
    curves = touch(tmp_path / "curves", "2.csv")
    pairs = pair_folders({"ours": a}, b, curves)
    assert [(p.method, p.name) for p in pairs] == [("ours", "1"), ("ours", "2")]
    assert pairs[0] == Pair("ours", "1", a / "1.mp4", b / "1.webm", None)
    assert pairs[1].emotion == curves / "2.csv"
    assert pair_folders({"ours": a}, None)[0].reference is None


def test_unequal_names_are_named(tmp_path: Path) -> None:
    a = touch(tmp_path / "a", "1.mp4", "2.mp4", "3.mp4")
    b = touch(tmp_path / "b", "2.mp4", "3.mp4")
    with pytest.raises(VideoError, match="b: lacks 1 of 3 clips: 1"):
        pair_folders({"ours": a}, b)
    with pytest.raises(VideoError, match="b: lacks 1 of 3 clips: 1"):
        pair_folders({"ours": a, "theirs": b}, None)
    assert [p.name for p in pair_folders({"ours": a}, b, common=True)] == ["2", "3"]
    with pytest.raises(VideoError, match="no name is in all of"):
        pair_folders({"ours": a}, touch(tmp_path / "c", "x.mp4"), common=True)
    with pytest.raises(VideoError, match="holds no videos"):
        list_videos(touch(tmp_path / "d", "notes.txt"))
    with pytest.raises(VideoError, match="two files of one name"):
        list_videos(touch(tmp_path / "e", "x.mp4", "x.mov"))


def test_pairs_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("Generated,reference,label\nx/1.mp4,y/2.mp4,laugh\n\nx/3.mp4,,\n")
    first, second = read_pairs(file)
    assert first == Pair(
        "generated", "1", tmp_path / "x/1.mp4", tmp_path / "y/2.mp4", None, "laugh"
    )
    assert (second.reference, second.label) == (None, None)
    for text, words in {
        "generated,colour\n": "unknown column colour",
        "reference\n": "no column generated",
        "generated,reference\n,b.mp4\n": "pairs.csv:2: no generated video",
        "generated\n": "holds no pairs",
    }.items():
        file.write_text(text)
        with pytest.raises(VideoError, match=words):
            read_pairs(file)


def test_differences_are_settled_and_said(tmp_path: Path) -> None:
    a = write_video(tmp_path / "a.mp4", moving(36, side=64), fps="30")
    b = write_video(tmp_path / "b.mp4", moving(25))
    clip, notes = make_clip(Pair("m", "a", a, b))
    assert (clip.fps, clip.frames, clip.size) == (25.0, 25, (SIDE, SIDE))
    assert notes == [
        "generated clip has 30 frames a second: brought to 25",
        "generated clip is 64x64: resized to 48x48 (Lanczos)",
        "generated clip has 30 frames, its reference 25: cut to 25",
    ]
    assert make_clip(Pair("m", "b", b, b))[1] == []
