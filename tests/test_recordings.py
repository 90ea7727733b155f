"""Real voices: which recordings are held out, how they are read, divided and acted out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from keyface_cli.avatars import recordings, rig
from keyface_cli.avatars.alignment import AlignmentError
from keyface_cli.avatars.recordings import (
    HELD_OUT,
    Recording,
    list_recordings,
    phrases,
    read_recording,
    training_phrases,
)
from keyface_cli.avatars.scene import random_scene, recorded_scene
from keyface_cli.avatars.synthesis import Speech, timed
from keyface_cli.avatars.voices import SILENCE, Phone
from keyface_cli.errors import KeyFaceError

Main = Callable[..., tuple[int, str, str]]


def sentence(*lengths_s: float, pause_s: float = 0.2) -> list[Phone]:
    """An open vowel of each length with pauses around and between."""
    phones, at = [Phone(SILENCE, 0.0, pause_s)], pause_s
    for length in lengths_s:
        phones += [
            Phone("aa", at, at + length),
            Phone(SILENCE, at + length, at + length + pause_s),
        ]
        at += length + pause_s
    return phones


def made(phones: list[Phone]) -> Recording:
    wave = torch.zeros(round(phones[-1].end_s * 16000))
    for name, start, end in phones:
        if name != SILENCE:
            wave[round(start * 16000) : round(end * 16000)] = 0.1
    return Recording("one", wave, phones, "Ah.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recordings more than are held out; their phones are told by their length."""
    lines = ["file|text"]
    for i in reversed(range(HELD_OUT + 2)):
        soundfile.write(tmp_path / f"{i:03d}.flac", np.full((36_000, 2), 0.1), 24_000)
        lines.append(f'{i:03d}.flac|He said "{i}", or so.')
    (tmp_path / "transcripts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def aligned(samples: np.ndarray, rate: int, text: str) -> Speech:
        if '"21"' in text:
            raise AlignmentError("cannot be aligned")
        speech = timed(samples, rate, [Phone("aa", 0.2, 1.3)])
        assert speech is not None
        return speech

    monkeypatch.setattr(recordings, "aligned", aligned)
    return tmp_path


def test_the_first_by_name_are_held_out(folder: Path) -> None:
    held_out = [path.name for path, _ in list_recordings(folder, held_out=True)]
    assert held_out == [f"{i:03d}.flac" for i in range(HELD_OUT)]
    training = list_recordings(folder)
    assert [(path.name, text) for path, text in training] == [
        ("020.flac", 'He said "20", or so.'),
        ("021.flac", 'He said "21", or so.'),
    ]


def test_recordings_are_read_and_those_that_do_not_fit_left_out(folder: Path) -> None:
    files = list_recordings(folder)
    recording = read_recording(*files[0])
    assert recording.name == "020"
    assert len(recording.waveform) == pytest.approx(24_000, abs=2)  # 16 kHz
    assert [phone.name for phone in recording.phones] == [SILENCE, "aa", SILENCE]
    assert [phrase.name for phrase in training_phrases(files)] == ["020"]
    with pytest.raises(KeyFaceError, match="no text fits"):
        training_phrases(files[1:])


def test_what_is_wrong_with_a_folder_is_said(folder: Path) -> None:
    with pytest.raises(KeyFaceError, match=r"transcripts.csv: cannot be read"):
        list_recordings(folder / "absent")
    (folder / "021.flac").unlink()
    with pytest.raises(KeyFaceError, match=r"021.flac: no such file"):
        list_recordings(folder)
    (folder / "021.flac").write_bytes(b"no sound")
    with pytest.raises(KeyFaceError, match=r"021.flac: cannot be read"):
        read_recording(folder / "021.flac", "")
    table = folder / "transcripts.csv"
    for text in ("", "file,text\na.flac,b\n", "file|text\na.flac|b|c\n"):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(KeyFaceError, match="is not a table"):
            list_recordings(folder)
    table.write_text("file|text\n000.flac|Ah.\n", encoding="utf-8")
    with pytest.raises(KeyFaceError, match="no recording is left"):
        list_recordings(folder)


def test_the_command_names_what_is_wrong(main: Main, tmp_path: Path) -> None:
    code, _, err = main("dataset", "avatars", "-o", tmp_path / "data", "--speech", tmp_path)
    assert code == 1
    assert "transcripts.csv: cannot be read" in err
    assert not (tmp_path / "data").exists()


def test_phrases_end_in_pauses_and_lose_no_word() -> None:
    recording = made(sentence(2.0, 2.0, 1.5, 0.5, 4.0))
    parts = phrases(recording)
    lengths = [sum(b - a for n, a, b in part.phones if n == "aa") for part in parts]
    assert lengths == pytest.approx([4.0, 2.0, 4.0])
    for part in parts:
        assert part.phones[0].start_s == 0
        assert part.phones[-1].end_s == pytest.approx(len(part.waveform) / 16000)
        for name, start, end in part.phones:
            samples = part.waveform[round(start * 16000) + 2 : round(end * 16000) - 2]
            assert samples.unique().tolist() == pytest.approx([0.1 if name == "aa" else 0.0])
    whole = phrases(made(sentence(7.0)))
    assert len(whole) == 1
    assert len(whole[0].waveform) == pytest.approx(16000 * 7.12, abs=2)


def test_scenes_play_recordings_and_the_mouth_goes_with_them() -> None:
    recording = made(sentence(0.6, 0.6, pause_s=0.6))
    scene = recorded_scene(recording, 3)
    assert torch.equal(scene.waveform, recording.waveform)
    assert (scene.text, scene.voice.engine) == ("Ah.", "recording")
    jaw = scene.rig[:, rig.INDEX["jaw"]]
    assert float(jaw[17:27].median()) > 0.4  # 0.6 to 1.2 s
    assert float(jaw[35:40].max()) < 0.1
    assert torch.equal(jaw, recorded_scene(recording, 3).rig[:, rig.INDEX["jaw"]])
    changed = recorded_scene(recording, 3, augmented=True)
    assert len(changed.waveform) != len(scene.waveform)  # another pitch, another length


def test_some_scenes_play_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    def said_nothing(text: str, voice: object) -> Speech:
        return Speech(torch.zeros(16000), [Phone(SILENCE, 0.0, 1.0)])

    monkeypatch.setattr("keyface_cli.avatars.scene.synthesise", said_nothing)
    recording = made(sentence(1.0))
    engines = [
        random_scene(seed, duration_s=2.0, recordings=[recording]).voice.engine
        for seed in range(48)
    ]
    assert 1 <= engines.count("recording") <= 16
