"""Named emotions and CSV curves: what they mean, and what is refused and where."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from keyface_cli.emotion import NAMED, EmotionTrack, Key, load_emotion, read_curve
from keyface_cli.errors import EmotionError

CURVE = EmotionTrack((Key(0.0, 0.0, 0.0), Key(2.0, 0.5, -0.25)))


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "curve.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_names_are_the_published_ones() -> None:
    assert len(NAMED) == 24
    assert NAMED["happy"] == (0.85, 0.75)
    assert NAMED["angry"] == (-0.443, 0.908)
    assert all(-1 <= value <= 1 for pair in NAMED.values() for value in pair)


@pytest.mark.parametrize("name", NAMED)
def test_name_holds_its_value(name: str) -> None:
    sampled = load_emotion(f" {name.upper()}").sample(3)
    assert sampled.dtype == np.float32
    np.testing.assert_allclose(sampled, [NAMED[name]] * 3, rtol=1e-6)


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(EmotionError, match="unknown emotion: hapy") as caught:
        load_emotion("hapy")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean happy?")
    with pytest.raises(EmotionError, match=r"unknown emotion: \(empty\)"):
        load_emotion("")


def test_missing_file_is_not_taken_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(EmotionError, match=r"no\.csv: no such emotion file"):
        load_emotion(str(tmp_path / "no.csv"))
    with pytest.raises(EmotionError, match=f"{tmp_path}: cannot be read: Is a directory"):
        load_emotion(str(tmp_path))


def test_linear_between_keys_and_held_outside(tmp_path: Path) -> None:
    track = read_curve(write(tmp_path, "time,valence,arousal\n0.4,-1,0\n0.8,1,1\n"))
    sampled = track.sample(50)
    np.testing.assert_allclose(sampled[:11], [[-1, 0]] * 11)
    np.testing.assert_allclose(sampled[15], [0, 0.5], atol=1e-6)
    np.testing.assert_allclose(sampled[20:], [[1, 1]] * 30)


def test_extra_key_on_a_line_changes_nothing() -> None:
    keys = (Key(0.0, -0.6, 0.2), Key(2.0, 0.8, -0.4))
    split = (keys[0], Key(0.5, -0.25, 0.05), keys[1])
    np.testing.assert_allclose(
        EmotionTrack(keys).sample(60), EmotionTrack(split).sample(60), atol=1e-6
    )


@pytest.mark.parametrize(
    "text",
    [
        "time,valence,arousal\n0,0,0\n2,0.5,-0.25\n",
        "\ufefftime,valence,arousal\r\n0,0,0\r\n2,0.5,-0.25\r\n",
        "time;valence;arousal\n0;0;0\n2;0,5;-0,25\n",
        "time\tvalence\tarousal\r0\t0\t0\r2,0\t,5\t-.25",
        "Arousal, VALENCE ,Time\n0, 0, 0\n-0.25, 5e-1, +2.\n",
        '"time","valence","arousal"\n"0","0","0"\n"2","0,5","-0,25"\n',
        "time,valence,arousal,,\n0,0,0,,\n2,0.5,-0.25,,\n,,,,\n,,,,\n\n",
        "# it's a \"comment\n\ntime,valence,arousal\n0,0,0\n  # another; one\n2,0.5,-0.25",
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, text: str) -> None:
    assert read_curve(write(tmp_path, text)) == CURVE
    assert read_curve(write(tmp_path, text.removeprefix("\ufeff"), "utf-16")) == CURVE
    assert load_emotion(str(write(tmp_path, text))) == CURVE


def test_unknown_column_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "time,mood,valence,arousal\n0,fine,0,0\n2,,0.5,-0.25\n"
    with caplog.at_level(logging.WARNING):
        assert read_curve(write(tmp_path, text)) == CURVE
    assert "curve.csv:1:2: column ignored: mood" in caplog.text


HEADER = "time,valence,arousal\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": holds no rows"),
        ("# only a comment\n", ": holds no rows"),
        (HEADER, ": holds a header but no rows"),
        ("time,valence\n0,0\n", ":1: the header lacks: arousal"),
        ("0,0.5,0.5\n", ":1: the header lacks: time, valence, arousal"),
        ("time,valence,valence,arousal\n", ":1:3: the column stands twice: valence"),
        (HEADER + "0,0,0\n1,nan,0\n", ":3:2: valence is not a number: nan"),
        (HEADER + "0,0,inf\n", ":2:3: arousal is not a number: inf"),
        (HEADER + "0,0,happy\n", ":2:3: arousal is not a number: happy"),
        (HEADER + "0,0,1_0\n", ":2:3: arousal is not a number: 1_0"),
        (HEADER + "0,1.01,0\n", r":2:2: valence is out of range \[-1, 1\]: 1.01"),
        (HEADER + "0,0,-75\n", r":2:3: arousal is out of range \[-1, 1\]: -75"),
        (HEADER + "-1,0,0\n", ":2:1: time is not a number of seconds from 0 up: -1"),
        (HEADER + "1e999,0,0\n", ":2:1: time is not a number of seconds from 0 up: 1e999"),
        (HEADER + "0,0\n", ":2:3: arousal is missing"),
        (HEADER + "0,,0\n", ":2:2: valence is missing"),
        (HEADER + "0,0,0\n\n2,0,0\n1,0,0\n", ":5:1: time 1 comes after 2"),
        (HEADER + "0,0,0\n1,0,0\n1.0,0,0\n", ":4:1: the time stands twice: 1"),
        (HEADER + "0,0,0,7\n", ":2:4: a value under no column: 7"),
        (HEADER + "0,5,0,2,0,1\n", ":2:4: a value under no column: 2"),
        (HEADER + '0,"0,0\n', ":2: not a CSV row: "),
    ],
)
def test_bad_curve_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(EmotionError, match=f"^{path}{message}") as caught:
        read_curve(path)
    assert "\n" not in str(caught.value)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    path.write_bytes(b"time,valence,arousal\n\x89PNG\xff")
    with pytest.raises(EmotionError, match=r"curve\.csv:2: not UTF-8 text"):
        read_curve(path)
