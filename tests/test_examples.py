"""The examples do what they say: the script's commands run, with the tiny model for speed."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from keyface_cli.commands import animate, batch, crop, emotion_preview
from keyface_cli.commands.examples import NAMES
from keyface_cli.media.audio import load_waveform
from keyface_cli.media.faces import find_faces
from keyface_cli.media.framing import FRAMES, choose_crop
from keyface_cli.media.portrait import read_picture

EXAMPLES = Path(__file__).parent.parent / "examples"
Main = Callable[..., tuple[int, str, str]]


def test_every_file_is_copied_and_explained() -> None:
    text = (EXAMPLES / "README.md").read_text("utf-8")
    for name in NAMES:
        assert (EXAMPLES / name).is_file()
        assert f"`{name}`" in text or name in text


def test_portrait_on_the_wall_is_found_and_turned_upright() -> None:
    picture = read_picture(EXAMPLES / "wall.jpg")
    assert len(find_faces(picture)) == 1
    chosen = choose_crop(EXAMPLES / "wall.jpg", picture, frame=FRAMES["mini"])
    assert chosen.angle_deg == pytest.approx(9, abs=2)
    assert 250 < chosen.x - chosen.side / 2 < chosen.x + chosen.side / 2 < 800


def test_voice_note_is_read() -> None:
    waveform = load_waveform(EXAMPLES / "note.m4a")
    assert 2 * 16_000 < len(waveform) < 10 * 16_000


@pytest.mark.slow
def test_script_makes_one_of_everything(
    main: Main, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    for module in (animate, batch, crop, emotion_preview):
        monkeypatch.setattr(module, "resolve_model", lambda name: tiny_checkpoint)
    script = (tmp_path / "all.sh").read_text()
    subprocess.run(["sh", "-n", "all.sh"], check=True)
    commands = re.findall(r"^(?:if )?(keyface .*?)(?:; then)?$", script, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        words = shlex.split(command.replace("$out", "out"))[1:]
        code, out, err = main(*words)
        assert code == 0, (command, err)
    assert "skipped" not in out
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done"] * 3
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == [
        *("calm.mp4", "curve.png", "moods.webm", "on-the-wall.mp4", "report.csv", "report.jsonl"),
        *("seen.png", "smooth.gif", "wall.mp4"),
    ]
    assert Image.open(tmp_path / "out" / "smooth.gif").size == (320, 320)
    assert main(*words)[1].count("skipped") == 3
