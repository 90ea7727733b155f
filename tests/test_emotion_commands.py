"""`keyface emotion`: what each command prints, writes and refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from keyface_cli.emotion import EmotionTrack, Key, load_emotion
from keyface_cli.emotion.checks import remarks
from keyface_cli.emotion.load import read_styled
from keyface_cli.emotion.write import to_metadata

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six seconds in the working folder: a loud phrase, a pause, a soft phrase."""
    monkeypatch.chdir(tmp_path)
    t = np.arange(6 * 16_000) / 16_000
    loud = np.where(t < 2.5, 0.4, np.where(t < 3.5, 0, 0.05))
    soundfile.write("talk.wav", loud * np.sin(2 * np.pi * 200 * t), 16_000)
    return Path("talk.wav")


def test_names_are_listed(main: Main) -> None:
    code, out, err = main("emotion", "names")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 25
    assert lines[1].split() == ["neutral", "0", "0"]
    assert "angry           -0.443   0.908" in lines
    assert json.loads(main("emotion", "names", "--json")[1])["calm"] == [0.65, -0.5]


def test_names_are_drawn(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "names.svg"
    assert main("emotion", "names", "-o", path) == (0, f"{path}\n", "")
    assert "<svg" in path.read_text()
    assert main("emotion", "names", "-o", path)[0] == 1
    assert "a plot ends in .png or .svg" in main("emotion", "names", "-o", "names.pdf")[2]


def test_template_has_a_row_where_speech_begins(main: Main, talk: Path) -> None:
    code, out, err = main("emotion", "new", talk)
    assert (code, out) == (0, "talk.csv\n")
    assert err == "2 rows; then: keyface emotion check talk.csv --audio talk.wav\n"
    lines = Path("talk.csv").read_text().splitlines()
    assert lines[:2] == [
        "# talk.wav: 0:06 long",
        "time,emotion,intensity,valence,arousal,ease,loudness",
    ]
    assert lines[2].startswith("0:00,neutral,,,,,|||")
    assert lines[3].startswith("0:03.48,neutral,,,,,|||")
    assert int(lines[2].split()[-2]) > int(lines[3].split()[-2]) + 10
    assert load_emotion("talk.csv").keys == (Key.named(0, "neutral"), Key.named(3.48, "neutral"))
    code, _, err = main("emotion", "new", talk)
    assert code == 1
    assert "talk.csv: exists already" in err
    assert main("emotion", "new", talk, "--force")[0] == 0


def test_template_at_a_spacing(main: Main, talk: Path) -> None:
    options = ("--every", 1.5, "--like", "Calm")
    assert main("emotion", "new", talk, "-o", "c.csv", "--time", "time", *options)[0] == 0
    rows = [line.split(",")[:2] for line in Path("c.csv").read_text().splitlines()[2:]]
    assert rows == [["0", "calm"], ["1.5", "calm"], ["3", "calm"], ["4.5", "calm"]]
    assert main("emotion", "new", talk, "-o", "c.json", "--every", 3)[0] == 0
    assert json.loads(Path("c.json").read_text())[1] == {"time": "0:03", "emotion": "neutral"}


def test_template_of_the_estimate(main: Main, talk: Path) -> None:
    code, _, err = main("emotion", "new", talk, "--like", "auto")
    assert code == 0
    assert "an estimate from the voice: arousal only" in err
    track = load_emotion("talk.csv")
    assert all(key.valence == 0 for key in track.keys)
    assert track.sample(150)[140, 1] < track.sample(150)[10, 1]
    assert main("emotion", "new", talk, "-o", "e.csv", "--like", "auto", "--every", 1)[0] == 2
    assert "--like: unknown emotion: cal" in main("emotion", "new", talk, "-f", "--like", "cal")[2]


def test_check_says_what_is_hardly_meant(main: Main, talk: Path) -> None:
    assert main("emotion", "check", "happy@0 sad@5", "--audio", talk) == (
        0,
        "happy@0 sad@5: 2 keys, the last at 0:05, no warning\n",
        "",
    )
    code, out, err = main("emotion", "check", "0,0@0 1,0@0.7 0,0@0.9 0,0@9", "-a", talk, "--strict")
    assert code == 1
    assert out.endswith("4 keys, the last at 0:09, 2 warnings\n")
    assert "warning: 1 of 4 keys lie after the end of the sound (0:06), the last at 0:09" in err
    assert (
        "between 0:00.52 and 0:01.04 valence goes to 0.97, but the model reads 0.74 and 0.00" in err
    )
    report = json.loads(main("emotion", "check", "calm", "--json")[1])
    assert report == {"curve": "calm", "keys": 1, "end_s": 0.0, "warnings": []}
    Path("bad.csv").write_text("time,valence,arousal\n0,2,0\n")
    code, out, err = main("emotion", "check", "bad.csv")
    assert (code, out) == (1, "")
    assert err == "error: bad.csv:2:2: valence is out of range [-1, 1]: 2\n"


def test_remarks_tell_features_jumps_and_ends() -> None:
    def said(line: str, frames: int | None = 500) -> list[str]:
        return remarks(load_emotion(line), frames)

    assert said("happy") == []
    assert said("neutral@0 happy@0.6 neutral@1.2 sad@19") == []
    (remark,) = said("0,0@0:hold 0,0.3@5.0:hold 0,0@5.2 0,0@19")
    assert "arousal goes to 0.30" in remark
    assert said("0,0@0:hold 0,0.15@5.0:hold 0,0@5.2 0,0@19") == []
    (remark,) = said("-0.8,0@0:hold 0.8,0@10 0.8,0@19")
    assert "valence jumps from -0.80 to 0.80" in remark
    (remark,) = said("sad@0 happy@3")
    assert remark.startswith("the last key is at 0:03, the sound lasts to 0:20")
    assert said("sad@0 happy@3", None) == []
    (remark,) = said("sad@0 happy@20")
    assert remark.startswith("1 of 2 keys lie after the end")
    flicker = " ".join(f"0,{n % 2}@{0.1 * n:.1f}" for n in range(100))
    many = said(flicker)
    assert "and" in many[-1]
    assert len(many) <= 13


def test_without_matplotlib_a_plot_says_what_to_install(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyface_cli.plotting.find_spec", lambda name: None)
    for command in (("names",), ("plot", "happy")):
        code, out, err = main("emotion", *command, "-o", "c.png")
        assert (code, out) == (1, "")
        assert "hint: pip install 'keyface[plot]'" in err
        assert "Traceback" not in err
    assert main("emotion", "plot", "happy", "--json")[0] == 0  # which draws nothing
    assert main("emotion", "plot", "happy")[0] == 2


def test_plot_into_files(main: Main, talk: Path) -> None:
    for name in ("c.png", "c.svg"):
        assert (
            main("emotion", "plot", "neutral@0 happy@3", "-a", talk, "-o", name)[1] == f"{name}\n"
        )
    with Image.open("c.png") as picture:
        assert picture.size == (1500, 600)
    assert "<svg" in Path("c.svg").read_text()
    before = Path("c.svg").read_bytes()
    assert main("emotion", "plot", "neutral@0 happy@3", "-a", talk, "-o", "c.svg")[0] == 1
    assert main("emotion", "plot", "neutral@0 happy@3", "-a", talk, "-o", "c.svg", "-f")[0] == 0
    assert len(Path("c.svg").read_bytes()) == len(before)
    assert main("emotion", "plot", "auto")[0] == 2


def test_a_long_line_is_no_file_name(main: Main, talk: Path) -> None:
    line = " ".join(f"{n % 2},0@{n / 10}" for n in range(60))
    assert len(line) > 255
    assert main("emotion", "plot", line, "-a", talk, "-o", "c.svg") == (0, "c.svg\n", "")
    assert main("emotion", "convert", line, "-o", "c.csv") == (0, "c.csv\n", "")
    assert load_emotion("c.csv") == load_emotion(line)
    code, out, err = main("emotion", "convert", line, "-o", f"{'c' * 300}.csv")
    assert (code, out) == (1, "")
    assert "cannot be written to: File name too long" in err


def test_plot_shows_the_values_at_keyframes(main: Main, talk: Path) -> None:
    _, out, _ = main("emotion", "plot", "0,0@0 1,-0.5@1", "-a", talk, "--json", "--strength", 0.5)
    report = json.loads(out)
    assert report["output"] is None
    assert report["keys"][1] == {"time": 1.0, "valence": 0.5, "arousal": -0.25}
    read = [(h["frame"], h["valence"], h["arousal"]) for h in report["at_keyframes"]]
    assert read[:3] == [(0, 0, 0), (13, 0.26, -0.13), (26, 0.5, -0.25)]
    assert read[-1][0] == 149


@pytest.mark.parametrize("time", ["time", "clock", "frame", "timecode"])
@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.json"])
def test_convert_between_all_forms(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "neutral@0 sad:0.6@2.52:hold 0.2,-0.5@62.4:smooth"
    assert main("emotion", "convert", line, "-o", name, "--time", time) == (0, f"{name}\n", "")
    assert load_emotion(name) == load_emotion(line)
    assert main("emotion", "convert", name, "--format", "line")[1] == f"{line}\n"
    if name == "c.tsv":
        assert "\t" in Path(name).read_text()


def test_convert_keeps_notes_and_tells_of_rounding(main: Main, talk: Path) -> None:
    Path("a.csv").write_text("# mine\ntime;valence;arousal;note\n0,5;0;0;hello\n")
    assert main("emotion", "convert", "a.csv")[1] == (
        "# mine\ntime,valence,arousal,note\n0.5,0,0,hello\n"
    )
    code, out, err = main("emotion", "convert", "a.csv", "--time", "frame")
    assert (code, out.splitlines()[2]) == (0, "12,0,0,hello")
    assert err == "warning: 1 of 1 keys moved to a whole frame\n"
    assert "fall on one frame" in main("emotion", "convert", "0,0@0 1,1@0.01", "--time", "frame")[2]
    assert main("emotion", "convert", "a.csv", "-o", "a.csv", "-f")[2].startswith(
        "error: a.csv: is an input, and would be replaced"
    )
    assert main("emotion", "convert", "auto", "--audio", talk, "--format", "line")[0] == 0


def test_long_curve_is_thinned_for_the_metadata() -> None:
    short = load_emotion("happy@0 sad@3:hold")
    assert to_metadata(short) == {"emotion_curve": "happy@0 sad@3:hold"}
    rng = np.random.default_rng(0)
    dense = EmotionTrack(
        tuple(Key(n / 25, *np.clip(rng.normal(0, 0.3, 2), -1, 1).tolist()) for n in range(5000))
    )
    found = to_metadata(dense)
    assert len(str(found["emotion_curve"])) <= 16_000
    read = load_emotion(str(found["emotion_curve"]))
    off = np.abs(read.sample(5000) - dense.sample(5000)).max()
    assert off <= found["emotion_curve_tolerance"] + 1e-3


def test_style_of_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("Emotion;Frame;Ease\nsad;25;\n")
    style = read_styled(path)[1]
    assert style is not None
    assert (style.time, style.separator, style.fields) == ("frame", ";", ("emotion", "ease"))
    assert os.listdir(tmp_path) == ["c.csv"]
