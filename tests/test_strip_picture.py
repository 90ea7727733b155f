"""`keyface emotion preview`: the keyframes of curves as one picture, marked and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyface_cli.credentials.marks import GENERATED, read_mark
from keyface_cli.editor.picture import GAP, LABEL, TITLE, Row, draw_strips
from keyface_cli.emotion import EmotionTrack, Key
from keyface_cli.output.metadata import read_metadata

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def words(tiny_checkpoint: Path, tone_wav: Path, portrait_png: Path) -> list[object]:
    return [
        *("--audio", tone_wav, "--portrait", portrait_png, "--model", tiny_checkpoint),
        *("--steps", 1, "--crop", "none", "--device", "cpu", "--seed", 2),
    ]


def test_preview_shows_the_keyframes_of_animate(
    main: Main, words: list[object], tmp_path: Path, tone_wav: Path, portrait_png: Path
) -> None:
    curve = tmp_path / "curve.csv"
    curve.write_text("time,emotion\n0,neutral\n0.5,happy\n")
    output = tmp_path / "strip.png"
    plain = ("emotion", "preview", curve, *words, "-o", output)
    code, out, _ = main(*plain, "--side", 64, "--json")
    assert code == 0
    told = json.loads(out)
    assert [one["frame"] for one in told["at_keyframes"]] == [0, 13, 24]
    code, out, _ = main(
        "animate", portrait_png, tone_wav, *words[4:], "-e", curve, "--keyframes-only",
        "-o", tmp_path / "a.mp4",
    )  # fmt: skip
    assert code == 0
    sheet = np.asarray(Image.open(output))
    for place, path in enumerate(sorted(Path(out.strip()).glob("*.png"))):
        x = GAP + place * (64 + GAP)
        np.testing.assert_array_equal(
            sheet[GAP : GAP + 64, x : x + 64], np.asarray(Image.open(path))
        )
    assert sheet.shape == (64 + LABEL + 2 * GAP, 3 * 64 + 4 * GAP, 3)
    assert read_mark(output) == GENERATED
    assert read_metadata(output)["seed"] == 2
    code, out, _ = main("info", output)
    assert code == 0
    assert f"digital_source_type: {GENERATED}" in out
    before = output.read_bytes()
    code, _, err = main(*plain)
    assert (code, "exists already" in err) == (1, True)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*strip*")) == ["strip.png"]


def test_compare_shows_the_other_curve_above(
    main: Main, words: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "two.png"
    code, out, _ = main(
        "emotion", "preview", "happy", *words, "--compare", "sad", "-o", output, "--side", 64
    )
    assert (code, out) == (0, f"{output}\n")
    one = tmp_path / "one.png"
    assert main("emotion", "preview", "sad", *words, "-o", one, "--side", 64)[0] == 0
    both, sad = np.asarray(Image.open(output)), np.asarray(Image.open(one))
    above = both[GAP + TITLE : GAP + TITLE + 64]
    np.testing.assert_array_equal(above, sad[GAP : GAP + 64])
    below = both[2 * GAP + 2 * TITLE + 64 + LABEL :][:64]
    assert below.shape == above.shape
    assert not np.array_equal(below, above)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("-o", "strip.jpg"), 1, "the picture must end in .png"),
        (("-o", "nowhere/strip.png"), 1, "no such folder"),
        (("--portrait", "missing.png"), 1, "missing.png"),
        (("--compare", "hapy"), 1, "hapy"),
        (("--side", "3"), 2, "--side"),
    ],
)
def test_what_cannot_be_shown_leaves_no_file(
    main: Main, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = ["emotion", "preview", "happy", *words, "-o", "strip.png", *change]
    found, out, err = main(*given)
    assert (found, out) == (code, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_many_keyframes_go_on_below() -> None:
    track = EmotionTrack((Key(0.0, 0.5, -0.5),))
    pictures = [np.full((8, 8, 3), 10 * k, np.uint8) for k in range(5)]
    sheet = draw_strips([Row("", track.at_keyframes(50), pictures)], 40, 3)
    assert sheet.size == (3 * 40 + 4 * GAP, 2 * (40 + LABEL + GAP) + GAP)
    assert sheet.getpixel((GAP + 5, 2 * GAP + 40 + LABEL + 5)) == (30, 30, 30)
