"""`keyface emotion`: what each command prints, writes and refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose
from PIL import Image

from keyface_cli.emotion import EmotionTrack, Key, load_emotion
from keyface_cli.emotion.captured import capture_of, read_captured
from keyface_cli.emotion.checks import remarks
from keyface_cli.emotion.load import read_styled
from keyface_cli.emotion.write import to_metadata
from keyface_cli.errors import EmotionError

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
    _, out, _ = main("emotion", "names", "--plot")
    assert "\x1b" not in out
    for name in ("neutral", "fear", "bored", "ashamed", "disappointed"):
        assert name in out
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


def test_template_at_a_spacing_for_a_german_spreadsheet(main: Main, talk: Path) -> None:
    options = ("--every", 1.5, "--like", "Calm", "--separator", "semicolon", "--decimal", "comma")
    assert main("emotion", "new", talk, "-o", "c.csv", "--time", "time", *options)[0] == 0
    rows = [line.split(";")[:2] for line in Path("c.csv").read_text().splitlines()[2:]]
    assert rows == [["0", "calm"], ["1,5", "calm"], ["3", "calm"], ["4,5", "calm"]]
    assert main("emotion", "new", talk, "-o", "d.csv", "--decimal", "comma")[0] == 2
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
        "between 0:00.52 and 0:01.04 valence goes to 0.97, but the model hears 0.74 and 0.00" in err
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
    assert remark.startswith("the last key is at 0:03, the sound goes on to 0:20")
    assert said("sad@0 happy@3", None) == []
    (remark,) = said("sad@0 happy@20")
    assert remark.startswith("1 of 2 keys lie after the end")
    flicker = " ".join(f"0,{n % 2}@{0.1 * n:.1f}" for n in range(100))
    many = said(flicker)
    assert "and" in many[-1]
    assert len(many) <= 13


def test_plot_in_the_terminal_and_in_files(main: Main, talk: Path) -> None:
    code, out, _ = main("emotion", "plot", "neutral@0 happy@3", "--audio", talk)
    assert code == 0
    assert "V" in out
    assert "valence as the model hears it" in out
    assert "\x1b" not in out
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
    assert "cannot be written: File name too long" in err


def test_plot_tells_what_the_model_hears(main: Main, talk: Path) -> None:
    _, out, _ = main("emotion", "plot", "0,0@0 1,-0.5@1", "-a", talk, "--json", "--strength", 0.5)
    report = json.loads(out)
    assert report["output"] is None
    assert report["keys"][1] == {"time": 1.0, "valence": 0.5, "arousal": -0.25}
    heard = [(h["frame"], h["valence"], h["arousal"]) for h in report["heard"]]
    assert heard[:3] == [(0, 0, 0), (13, 0.26, -0.13), (26, 0.5, -0.25)]
    assert heard[-1][0] == 149


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
    assert main("emotion", "convert", "a.csv", "--separator", "tab", "--decimal", "comma")[1] == (
        "# mine\ntime\tvalence\tarousal\tnote\n0,5\t0\t0\thello\n"
    )
    code, out, err = main("emotion", "convert", "a.csv", "--time", "frame")
    assert (code, out.splitlines()[2]) == (0, "12,0,0,hello")
    assert err == "warning: 1 of 1 keys moved to a whole frame\n"
    assert "fall on one frame" in main("emotion", "convert", "0,0@0 1,1@0.01", "--time", "frame")[2]
    assert main("emotion", "convert", "a.csv", "-o", "a.csv", "-f")[2].startswith(
        "error: a.csv: is an input, and would be replaced"
    )
    assert main("emotion", "convert", "auto", "--audio", talk, "--format", "line")[0] == 0


BLENDSHAPES = (
    *("EyeBlinkLeft", "EyeWideLeft", "EyeWideRight", "JawOpen", "MouthSmileLeft"),
    *("MouthSmileRight", "MouthFrownLeft", "MouthFrownRight", "BrowDownLeft", "BrowDownRight"),
    *("BrowInnerUp", "BrowOuterUpLeft", "BrowOuterUpRight", "CheekSquintLeft"),
    *("CheekSquintRight", "NoseSneerLeft", "NoseSneerRight"),
)


def live_link(states: list[dict[str, float]], rate: int = 60, start: str = "14:03:22") -> str:
    """A capture as Live Link Face writes it: time of day, and one row a frame."""
    rows = [f"Timecode,BlendShapeCount,{','.join(BLENDSHAPES)}"]
    hours, minutes, seconds = map(int, start.split(":"))
    for n, state in enumerate(states):
        total = (hours * 60 + minutes) * 60 + seconds + n // rate
        code = f"{total // 3600 % 24:02}:{total // 60 % 60:02}:{total % 60:02}:{n % rate:02}.123"
        values = (f"{state.get(name, 0.02):.4f}" for name in BLENDSHAPES)
        rows.append(f"{code},61,{','.join(values)}")
    return "\n".join(rows) + "\n"


SMILE = {"MouthSmileLeft": 0.8, "MouthSmileRight": 0.8, "CheekSquintLeft": 0.5}
FROWN = {"MouthFrownLeft": 0.7, "MouthFrownRight": 0.7, "BrowDownLeft": 0.3, "BrowDownRight": 0.3}
WIDE = {"EyeWideLeft": 0.8, "EyeWideRight": 0.8, "BrowInnerUp": 0.7}


def test_live_link_capture_becomes_a_curve(main: Main, talk: Path) -> None:
    states = [{}] * 60 + [SMILE] * 60 + [FROWN] * 60 + [WIDE] * 60 + [{"JawOpen": 0.9}] * 60
    Path("take.csv").write_text(live_link(states))
    code, out, err = main("emotion", "convert", "take.csv", "-o", "curve.csv")
    assert (code, out) == (0, "curve.csv\n")
    assert "Live Link Face: valence and arousal are guessed" in err
    track = load_emotion("curve.csv")
    assert len(track.keys) < 30
    rest, smile, frown, wide, speech = track.sample(125)[12::25]
    assert_allclose(rest, 0, atol=0.06)
    assert smile[0] > 0.6
    assert frown[0] < -0.5
    assert wide[1] > 0.5
    assert abs(wide[0]) < 0.2
    assert_allclose(speech, 0, atol=0.06)
    assert 4.9 < track.end_s < 5.1
    _, _, err = main("emotion", "check", "take.csv")
    assert "take.csv: is a capture of Live Link Face, not a curve" in err
    assert "hint: make a curve of it: keyface emotion convert take.csv" in err


def test_live_link_over_midnight() -> None:
    captured = read_captured(live_link([{}] * 90, 30, "23:59:58"), "take.csv")
    assert_allclose(np.diff(captured.times), 1 / 30, atol=1e-6)


def openface(frames: int, **units: float) -> str:
    names = [f"AU{n:02}_r" for n in (1, 2, 4, 5, 6, 9, 12, 15, 25)]
    lines = [", ".join(["frame", "face_id", "timestamp", "confidence", "success", *names])]
    for n in range(frames):
        seen = n != 3
        values = [f"{units.get(name, 0.1) if n > frames // 2 else 0.1:.2f}" for name in names]
        head = [str(n + 1), "0", f"{n / 30:.3f}", "0.98" if seen else "0.10", str(int(seen))]
        lines.append(", ".join([*head, *values]))
    return "\n".join(lines) + "\n"


def test_openface_capture_becomes_a_curve() -> None:
    captured = read_captured(openface(60, AU12_r=3.5, AU06_r=2.5, AU25_r=5), "face.csv")
    assert captured.source == "OpenFace"
    assert len(captured.times) == 59
    assert captured.times[0] == 0
    assert_allclose(captured.values[:20], 0, atol=0.06)
    assert captured.values[-1, 0] > 0.6
    down = read_captured(openface(60, AU15_r=4, AU04_r=3), "face.csv").values[-1]
    assert down[0] < -0.6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            live_link([{}]).replace("BrowInnerUp", "Brow"),
            "take:1: Live Link Face without the columns",
        ),
        (
            live_link([{}]).replace("14:03:22:00", "14-03"),
            "take:2: timecode is not HH:MM:SS:FF: 14-03",
        ),
        (
            live_link([{}]).replace(",61,0.0200", ",61,nan", 1).replace("nan", "0.02") + "1,2\n",
            "take:3: the row has 2 of",
        ),
        (
            live_link([{"MouthSmileLeft": float("nan")}]),
            "take:2: mouthsmileleft is not a number: nan",
        ),
        (live_link([]), "take: holds no frame with a face"),
        (openface(1).replace("0.98, 1", "0.98, 0"), "take: holds no frame with a face"),
    ],
)
def test_bad_capture_is_refused(text: str, message: str) -> None:
    assert capture_of(text)
    with pytest.raises(EmotionError) as caught:
        read_captured(text, "take")
    assert str(caught.value).startswith(message)


def test_a_curve_is_no_capture() -> None:
    assert capture_of("time,valence,arousal\n0,0,0\n") is None
    assert capture_of("timecode,valence,arousal\n") is None
    assert capture_of("") is None


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
