"""Curves in files: what spreadsheets write is read, and what is wrong is refused in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyface_cli.emotion import EASES, NAMED, EmotionTrack, Key, load_emotion
from keyface_cli.emotion.load import read_curve, read_styled
from keyface_cli.emotion.objects import parse_json
from keyface_cli.emotion.table import SEPARATORS, Style, parse_table
from keyface_cli.emotion.write import (
    format_time,
    save_text,
    write_json,
    write_line,
    write_table,
)
from keyface_cli.errors import EmotionError

TIME_FORMATS = ("time", "clock", "frame", "timecode")

DATA = Path(__file__).parent / "data" / "curves"
CURVE = EmotionTrack((Key(0.0, 0.0, 0.0), Key(2.0, 0.5, -0.25)))
HEADER = "time,valence,arousal\n"


def write(tmp_path: Path, text: str, encoding: str = "utf-8", name: str = "curve.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


unit = st.floats(-1, 1)


@st.composite
def keys_at(draw: st.DrawFn, time_s: float) -> Key:
    ease = draw(st.sampled_from(EASES))
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(NAMED)))
        return Key.named(time_s, name, draw(st.just(1.0) | st.floats(0, 1)), ease)
    return Key(time_s, draw(unit), draw(unit), ease)


@st.composite
def tracks(draw: st.DrawFn, frames: bool = False) -> EmotionTrack:
    """Any curve; with `frames` one whose keys are on frames."""
    numbers = st.integers(0, 10**6).map(lambda n: n / 25) if frames else st.floats(0, 360_000)
    times = sorted(draw(st.lists(numbers, min_size=1, max_size=6, unique=True)))
    return EmotionTrack(tuple(draw(keys_at(time)) for time in times))


@given(
    tracks(),
    st.sampled_from(["time", "clock"]),
    st.sampled_from(SEPARATORS),
    st.sampled_from([".", ","]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_table_is_read_as_it_was_written(
    track: EmotionTrack, time: str, separator: str, decimal: str, end: str, mark: str
) -> None:
    text = write_table(track, Style(time, separator, decimal))
    found, style = parse_table(mark + text.replace("\n", end), "curve.csv")
    assert found == track
    assert style.separator == separator
    assert style.time == time
    assert write_table(found, style) == text or separator == ","


@given(tracks(frames=True), st.sampled_from(TIME_FORMATS), st.sampled_from(SEPARATORS))
def test_curve_on_frames_is_read_as_it_was_written(
    track: EmotionTrack, time: str, separator: str
) -> None:
    text = write_table(track, Style(time, separator))
    assert parse_table(text, "curve.csv")[0] == track
    assert parse_json(write_json(track, time), "curve.json") == (track, time)


@given(tracks(), st.sampled_from(["time", "clock"]))
def test_json_is_read_as_it_was_written(track: EmotionTrack, time: str) -> None:
    text = write_json(track, time)
    assert parse_json(text, "curve.json") == (track, time)
    assert parse_json(json.dumps({"keys": json.loads(text)}), "curve.json") == (track, time)


@given(tracks())
def test_line_is_read_as_it_was_written(track: EmotionTrack) -> None:
    assert load_emotion(write_line(track)) == track


@pytest.mark.parametrize("path", sorted(p for p in DATA.iterdir() if p.suffix != ".md"), ids=str)
def test_what_spreadsheets_write_is_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    track, style = read_styled(path)
    assert track.keys == (
        Key.named(0.0, "neutral"),
        Key(2.5, 0.8, 0.6, "smooth"),
        Key.named(4.5, "sad", 0.6, "hold"),
        Key(8.0, -0.25, 0.1),
    )
    assert style is not None
    assert [style.notes[key.time_s] for key in track.keys] == [
        ("",),
        ("the smile, at last",),
        ("",),
        ("end",),
    ]
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        "time,valence,arousal\n0,0,0\n2,0.5,-0.25\n",
        "time\tvalence\tarousal\r0\t0\t0\r2,0\t,5\t-.25",
        "Arousal, VALENCE ,Time\n0, 0, 0\n-0.25, 5e-1, +2.\n",
        '"time","valence","arousal"\n"0","0","0"\n"2","0,5","-0,25"\n',
        "time,valence,arousal,,\n0,0,0,,\n2,0.5,-0.25,,\n,,,,\n,,,,\n\n",
        "# it's a \"comment\n\ntime,valence,arousal\n0,0,0\n  # another; one\n2,0.5,-0.25",
        'time,valence,arousal\n"# a, comment",,\n0,0,0,# the start\n2,0.5,-0.25\n#,,\n',
        "Seconds;Valence;Arousal\n0:00;0;0\n0:02,0;0,5;-0,25\n",
        "time,valence,arousal\n0:00:00,0,0\n00:00:02.000,0.5,-0.25\n",
        "frame,valence,arousal\n0,0,0\n50,0.5,-0.25\n",
        "Frames;valence;arousal\n0,0;0;0\n50,0;0,5;-0,25\n",
        "timecode,valence,arousal,ease\n00:00:00:00,0,0,\n00:00:02:00,0.5,-0.25,LINEAR\n",
        '[{"time": 0, "valence": 0, "arousal": 0}, {"Time": 2, "arousal": -0.25, "valence": 0.5}]',
        '\n{"keys": [{"frame": 0, "valence": 0, "arousal": 0, "note": "x"},'
        ' {"timecode": "00:00:02:00", "valence": 0.5, "arousal": "-0,25", "intensity": null}]}',
    ],
)
def test_one_curve_in_many_forms(tmp_path: Path, text: str) -> None:
    assert read_curve(write(tmp_path, text)) == CURVE
    assert read_curve(write(tmp_path, "\ufeff" + text, "utf-16-le")) == CURVE
    assert load_emotion(str(write(tmp_path, text))) == CURVE


def test_forms_of_a_line() -> None:
    named = load_emotion("neutral@0 happy@3.5 sad:0.6@8")
    assert named.keys == (
        Key.named(0.0, "neutral"),
        Key.named(3.5, "happy"),
        Key.named(8.0, "sad", 0.6),
    )
    assert load_emotion(" Neutral@0:00  HAPPY@0:03.5\nsad:0.6@8.0") == named
    assert load_emotion("0,0@0 .5,-.25@0:02") == CURVE
    assert load_emotion("0.5,-0.25").keys == (Key(0.0, 0.5, -0.25),)
    assert load_emotion("calm@0:smooth bored@1:02:HOLD").keys == (
        Key.named(0.0, "calm", 1.0, "smooth"),
        Key.named(62.0, "bored", 1.0, "hold"),
    )


def test_a_file_may_be_named_like_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, HEADER + "0,0,0\n2,0.5,-0.25\n", name="sad@2")
    assert load_emotion("sad@2") == CURVE


def test_unknown_columns_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "time,mood,valence,arousal,intensty,note,emotion\n0,fine,0,0,,hi,\n2,,0.5,-0.25,,,\n"
    assert read_curve(write(tmp_path, text)) == CURVE
    lines = [record.getMessage().removeprefix(f"{tmp_path}/") for record in caplog.records]
    assert lines == [
        "curve.csv:1:2: column ignored: mood",
        "curve.csv:1:5: column ignored: intensty (did you mean intensity?)",
    ]
    caplog.clear()
    text = '[{"time": 0, "valence": 0, "arousal": 0, "eaze": "hold", "notes": 1}]'
    read_curve(write(tmp_path, text))
    (record,) = caplog.records
    assert record.getMessage().endswith("key 1: field ignored: eaze (did you mean ease?)")
    assert record.levelno == logging.WARNING


def test_comments_and_notes_come_back(tmp_path: Path) -> None:
    text = (
        "# for the second take\n"
        "frame;valence;arousal;ease;note;mood\n"
        "0;0;0;;a; \n"
        '50;0,5;-0,25;hold;"b; ""c""";fine\n'
    )
    track, style = read_styled(write(tmp_path, text))
    assert style is not None
    assert write_table(track, style) == text.replace("; \n", ";\n")
    later = EmotionTrack((track.keys[0], Key(1.0, 1.0, 0.0), track.keys[1]))
    assert write_table(later, style).splitlines()[3] == "25;1;0;;;"


def test_two_keys_on_one_frame_are_not_written() -> None:
    track = load_emotion("0,0@0 1,0@0.99 0,1@1.005")
    for form, shown in (("frame", "25"), ("timecode", "00:00:01:00")):
        with pytest.raises(
            EmotionError, match=f"fall on one {form}: 0.99 s and 1.005 s are {shown}"
        ):
            write_table(track, Style(form))
        with pytest.raises(EmotionError, match=f"fall on one {form}"):
            write_json(track, form)


def test_times_as_people_write_them() -> None:
    written = [format_time(3725.5, form) for form in TIME_FORMATS]
    assert written == ["3725.5", "62:05.5", "93138", "01:02:05:13"]
    assert [format_time(0, form) for form in TIME_FORMATS] == ["0", "0:00", "0", "00:00:00:00"]


def test_saving_replaces_nothing_unasked_and_follows_links(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    save_text(path, "a", force=False)
    with pytest.raises(EmotionError, match=r"curve\.csv: exists already"):
        save_text(path, "b", force=False)
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    save_text(link, "c", force=True)
    assert path.read_text() == "c"
    assert link.is_symlink()
    with pytest.raises(EmotionError, match="no: no such folder"):
        save_text(tmp_path / "no" / "curve.csv", "d", force=False)
    with pytest.raises(EmotionError, match="is a folder"):
        save_text(tmp_path, "d", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.csv", "link.csv"]


BAD_TABLES = [
    ("", ": holds no rows"),
    ("# only a comment\n;;;\n", ": holds no rows"),
    ("sep=;\n", ": holds no rows"),
    (HEADER, ": holds a header but no rows"),
    (HEADER + "\n,,\n# 0,0,0\n", ": holds a header but no rows"),
    ("time,valence\n0,0\n", ":1: the header lacks: arousal"),
    ("valence,arousal\n0,0\n", ":1: the header lacks: time"),
    ("time,valence,emotion\n0,0,\n", ":1: the header lacks: arousal"),
    ("time,intensity,valence,arousal\n", ":1: the header lacks: emotion, which intensity"),
    ("0,0.5,0.5\n", ":1: the header lacks: time, valence, arousal"),
    ("time|valence|arousal\n0|0|0\n", ":1: the header lacks: time, valence, arousal"),
    ("time,valence,valence,arousal\n", ":1:3: duplicate column: valence"),
    ("time,seconds,valence,arousal\n", ":1:2: duplicate column: time"),
    ("frame,valence,arousal,time\n", ":1:1: two columns of time: time and frame"),
    (HEADER + "0,0,0\n1,nan,0\n", ":3:2: valence is not a number: nan"),
    (HEADER + "0,0,inf\n", ":2:3: arousal is not a number: inf"),
    (HEADER + "0,0,happy\n", ":2:3: arousal is not a number: happy"),
    (HEADER + "0,0,1_0\n", ":2:3: arousal is not a number: 1_0"),
    (HEADER + "0,0,1.2.3\n", ":2:3: arousal is not a number: 1.2.3"),
    (HEADER + "0,50%,0\n", ":2:2: valence is not a number: 50%"),
    (HEADER + "0,#DIV/0!,0\n", ":2:2: valence is not a number: #DIV/0!"),
    (HEADER + "#N/A,0.5,0\n", ":2:1: time is neither seconds nor minutes:seconds: #N/A"),
    (HEADER + "#WERT!,0.5,0\n", ":2:1: time is neither seconds nor minutes:seconds: #WERT!"),
    (HEADER + "0,1.01,0\n", ":2:2: valence is out of range [-1, 1]: 1.01"),
    (HEADER + "0,0,-75\n", ":2:3: arousal is out of range [-1, 1]: -75"),
    (HEADER + "-1,0,0\n", ":2:1: time is before the start: -1"),
    (HEADER + "1e999,0,0\n", ":2:1: time is beyond a hundred hours: 1e999"),
    (HEADER + "1:60,0,0\n", ":2:1: minutes and seconds go to 59: 1:60"),
    (HEADER + "1:75:00,0,0\n", ":2:1: minutes and seconds go to 59: 1:75:00"),
    (HEADER + "1:5,0,0\n", ":2:1: time is neither seconds nor minutes:seconds: 1:5"),
    (HEADER + "3s,0,0\n", ":2:1: time is neither seconds nor minutes:seconds: 3s"),
    (
        HEADER + "12:00:02 AM,0,0\n",
        ":2:1: time is neither seconds nor minutes:seconds: 12:00:02 AM",
    ),
    (
        HEADER + "00:00:01:05,0,0\n",
        ":2:1: time is neither seconds nor minutes:seconds: 00:00:01:05",
    ),
    (HEADER + ",0,0\n", ":2:1: time is missing"),
    (HEADER + "0,0\n", ":2:3: arousal is missing"),
    (HEADER + "0,,0\n", ":2:2: valence is missing"),
    (HEADER + "0,0,0\n\n2,0,0\n1,0,0\n", ":5:1: 1 s comes after 2 s"),
    (HEADER + "0,0,0\n1,0,0\n1.0,0,0\n", ":4:1: duplicate time: 1 s"),
    (HEADER + "0,0,0,7\n", ":2:4: a value under no column: 7"),
    (HEADER + "0,5,0,2,0,1\n", ":2:4: a value under no column: 2"),
    (HEADER + '0,"0,0\n', ":2: not a row of a table: unexpected end of data"),
    (HEADER + '0,"0"5,0\n', ":2: not a row of a table: "),
    ("frame,valence,arousal\n1.5,0,0\n", ":2:1: frame is not a whole number from 0 up: 1.5"),
    ("frame,valence,arousal\n-1,0,0\n", ":2:1: frame is not a whole number from 0 up: -1"),
    (
        f"frame,valence,arousal\n{'9' * 400},0,0\n",
        f":2:1: time is beyond a hundred hours: {'9' * 37}...",
    ),
    ("timecode,valence,arousal\n0:02,0,0\n", ":2:1: timecode is not HH:MM:SS:FF: 0:02"),
    (
        "timecode,valence,arousal\n00:00:02;00,0,0\n",
        ":2:1: timecode is not HH:MM:SS:FF: 00:00:02;00",
    ),
    ("timecode,valence,arousal\n00:61:00:00,0,0\n", ":2:1: minutes and seconds go to 59: 00:61"),
    (
        "timecode,valence,arousal\n00:00:00:25,0,0\n",
        ":2:1: frames of a timecode at 25 fps go to 24: 00:00:00:25",
    ),
    ("time,emotion\n0,hapy\n", ":2:2: unknown emotion: hapy"),
    ("time,emotion\n0,happy\n1,\n", ":3:2: neither an emotion nor valence and arousal"),
    (
        "time,emotion,valence,arousal\n0,sad,0.5,\n",
        ":2:3: an emotion and a valence in one row: sad",
    ),
    ("time,emotion,valence,arousal\n0,,0.5,\n", ":2:4: arousal is missing"),
    ("time,emotion,intensity\n0,sad,1.5\n", ":2:3: intensity is out of range [0, 1]: 1.5"),
    ("time,emotion,intensity\n0,sad,half\n", ":2:3: intensity is not a number: half"),
    (
        "time,emotion,intensity,valence,arousal\n0,,0.5,0,0\n",
        ":2:3: an intensity without an emotion: 0.5",
    ),
    ("time,emotion,ease\n0,sad,smoth\n", ":2:3: unknown ease: smoth"),
]
KEY = '{"time": 0, "emotion": "sad"}'
BAD_JSON = [
    ('[{"time": 0,]', ":1:13: not JSON: "),
    ("[" * 100_000, ": not JSON that can be read: "),
    ("{}", ": holds no list of keys"),
    ('{"keys": 3}', ": holds no list of keys"),
    ("[]", ": holds no keys"),
    ("[1]", ": key 1: is not an object"),
    (f"[{KEY}, {KEY}]", ": key 2: duplicate time: 0 s"),
    ('[{"time": 0, "valence": NaN, "arousal": 0}]', ": not a number: NaN"),
    ('[{"time": 0, "time": 1, "emotion": "sad"}]', ": duplicate field in one object: time"),
    ('[{"time": 0, "Time": 1, "emotion": "sad"}]', ": key 1: duplicate field: time"),
    ('[{"emotion": "sad"}]', ": key 1: holds no time, not one time"),
    ('[{"time": 0, "frame": 0, "emotion": "sad"}]', ": key 1: holds time and frame, not one time"),
    ('[{"time": null, "emotion": "sad"}]', ": key 1: time is missing"),
    ('[{"time": true, "emotion": "sad"}]', ": key 1: time is neither a number nor text"),
    (f'[{KEY}, {{"time": 1}}]', ": key 2: neither an emotion nor valence and arousal"),
    (
        '[{"time": 0, "valence": 1e99, "arousal": 0}]',
        ": key 1: valence is out of range [-1, 1]: 1e+99",
    ),
    ('[{"time": 0, "valence": 0}]', ": key 1: arousal is missing"),
]
BAD_LINES = [
    ("happy@", "emotion: key 1 (happy@): time is missing"),
    ("@3", "emotion: key 1 (@3): is not STATE@TIME"),
    ("happy@3@4", "emotion: key 1 (happy@3@4): is not STATE@TIME"),
    ("happy@0 sad", "emotion: key 2 (sad): is not STATE@TIME"),
    ("hapy@0", "emotion: key 1 (hapy@0): unknown emotion: hapy"),
    ("sad:2@0", "emotion: key 1 (sad:2@0): intensity is out of range [0, 1]: 2"),
    ("2,0@0", "emotion: key 1 (2,0@0): valence is out of range [-1, 1]: 2"),
    ("sad@2 happy@1", "emotion: key 2 (happy@1): 1 s comes after 2 s"),
    ("sad@0 happy@0:00", "emotion: key 2 (happy@0:00): duplicate time: 0 s"),
    ("sad@0:smoth", "emotion: key 1 (sad@0:smoth): unknown ease: smoth"),
    ("sad@soon", "emotion: key 1 (sad@soon): time is neither seconds nor minutes:seconds: soon"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TABLES + BAD_JSON)
def test_bad_curve_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(EmotionError) as caught:
        read_curve(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in f"{caught.value}{caught.value.hint}"
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_bad_line_is_refused_with_its_key(text: str, message: str) -> None:
    with pytest.raises(EmotionError) as caught:
        load_emotion(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"time,valence,arousal\n\x89PNG\xff", r"curve\.csv:2: not UTF-8 text"),
        (b"\xff\xfet\x00i\x00", r"curve\.csv:1: the header lacks: time, valence, arousal"),
        (b"\xff\xfe\x00", r"curve\.csv:1: not UTF-8 text"),
        (b"time\0valence", r"curve\.csv: not a text file"),
        (b"PK\x03\x04\x14\x00", r"curve\.csv: not a text file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "curve.csv"
    path.write_bytes(content)
    with pytest.raises(EmotionError, match=message):
        read_curve(path)


def test_hints_say_what_to_do(tmp_path: Path) -> None:
    hints = {
        HEADER + "12:00:02 AM,0,0\n": "format the column as text",
        HEADER + "00:00:01:05,0,0\n": "name the column timecode",
        HEADER + "0,#N/A,0\n": "fill the cell in",
        HEADER + "0,5,0,2,0,1\n": "with decimal commas, separate the columns by semicolons",
        HEADER + "1,0,0\n0,0,0\n": "sort the rows by time",
        "tme,valence,arousal\n0,0,0\n": "did you mean time? the first row is",
        "time,emotion,ease\n0,sad,smoth\n": "did you mean smooth?",
        "time,emotion\n0,angy\n": "did you mean angry?",
        "timecode,emotion\n00:00:02;00,sad\n": "drop-frame timecode does not exist at 25 fps",
    }
    for text, hint in hints.items():
        with pytest.raises(EmotionError) as caught:
            read_curve(write(tmp_path, text))
        assert (caught.value.hint or "").startswith(hint)


def test_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(EmotionError, match="too large for a curve: more than 64 MiB"):
        read_curve(path)


@given(
    st.text(max_size=200)
    | st.text('time,valro#"\n;\t0123.-:', max_size=200).map(lambda t: HEADER + t)
)
def test_any_text_is_a_curve_or_one_line_of_error(text: str) -> None:
    for parse in (
        lambda: parse_table(text, "curve")[0],
        lambda: parse_json(text, "curve")[0],
        lambda: load_emotion(" ".join(text.replace("\0", "").split())),
    ):
        said = ""
        try:
            assert parse().keys
        except EmotionError as error:
            said = str(error)
        assert "\n" not in said
