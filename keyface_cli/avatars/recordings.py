"""Real voices: recordings with their transcripts, whose phones are found in the sound.

A folder holds sound files and `transcripts.csv`, one `file|text` a line below that header, English,
with numbers in words.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from torch import Tensor

from keyface_cli.avatars.alignment import AlignmentError
from keyface_cli.avatars.synthesis import aligned
from keyface_cli.avatars.voices import SILENCE, Phone
from keyface_cli.config import SAMPLE_RATE
from keyface_cli.errors import KeyFaceError

HELD_OUT = 20  # the first recordings of a folder, by name, which training leaves out
_PAUSE_S = 0.09  # of silence, at which a recording may be divided
_SHORTEST_S, _LONGEST_S = 1.0, 5.0  # of a phrase, where its pauses allow
_MARGIN_S = 0.06  # of silence that a phrase keeps


class Recording(NamedTuple):
    """A waveform (S,), float32, mono, 16 kHz, the phones that cover it, and what is said."""

    name: str
    waveform: Tensor
    phones: list[Phone]
    text: str


def list_recordings(folder: Path, held_out: bool = False) -> list[tuple[Path, str]]:
    """Return the files of a folder with their texts, in the order of their names.

    Args:
        folder: see the module.
        held_out: the first `HELD_OUT` instead of the others.

    Raises:
        KeyFaceError: there are no transcripts, no such recordings, or a file is missing.
    """
    table = folder / "transcripts.csv"
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFaceError(
            f"{table}: cannot be read", "write one file|text a line, below that header"
        ) from error
    if not rows or any(len(row) != 2 for row in rows) or rows[0] != ["file", "text"]:
        raise KeyFaceError(f"{table}: is not a table file|text", "begin it with the line file|text")
    files = [(folder / name, text) for name, text in sorted(rows[1:])]
    missing = [path for path, _ in files if not path.is_file()]
    if missing:
        raise KeyFaceError(f"{missing[0]}: no such file", f"it is listed in {table}")
    chosen = files[:HELD_OUT] if held_out else files[HELD_OUT:]
    if not chosen:
        raise KeyFaceError(
            f"{folder}: no recording is left to train on",
            f"the first {HELD_OUT} by name are held out",
        )
    return chosen


def read_recording(path: Path, text: str) -> Recording:
    """Read a recording and find its phones; the loudness becomes that of synthesised speech.

    Raises:
        AlignmentError: the text does not fit.
        KeyFaceError: the file cannot be read, or what finds phones is not installed.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise KeyFaceError(f"{path}: cannot be read: {error}") from error
    speech = aligned(samples.mean(1, dtype=np.float32), rate, text)
    return Recording(path.stem, speech.waveform, speech.phones, text)


def phrases(recording: Recording) -> list[Recording]:
    """Divide a recording at its pauses into phrases of 1 to 5 seconds where there are such pauses.

    Each keeps the name and the text of the whole.
    """
    pauses = [
        (phone.start_s + phone.end_s) / 2
        for phone in recording.phones
        if phone.name == SILENCE and phone.end_s - phone.start_s >= _PAUSE_S
    ]
    spoken = [phone for phone in recording.phones if phone.name != SILENCE]
    begin_s, last_s = spoken[0].start_s, spoken[-1].end_s
    cuts = [begin_s]
    inner = [cut for cut in pauses if begin_s < cut < last_s]
    for cut, following in itertools.pairwise([*inner, last_s]):
        if following - cuts[-1] > _LONGEST_S and cut - cuts[-1] >= _SHORTEST_S:
            cuts.append(cut)
    return [_part(recording, start, end) for start, end in itertools.pairwise([*cuts, last_s])]


def _part(recording: Recording, start_s: float, end_s: float) -> Recording:
    """Cut what is spoken between two moments, with little silence around it."""
    inside = [
        phone
        for phone in recording.phones
        if phone.name != SILENCE and start_s <= phone.start_s < end_s
    ]
    first = max(0, int((inside[0].start_s - _MARGIN_S) * SAMPLE_RATE))
    last = min(len(recording.waveform), int((inside[-1].end_s + _MARGIN_S) * SAMPLE_RATE))
    from_s, to_s = first / SAMPLE_RATE, last / SAMPLE_RATE
    phones = [
        Phone(name, max(a, from_s) - from_s, min(b, to_s) - from_s)
        for name, a, b in recording.phones
        if a < to_s and b > from_s
    ]
    return recording._replace(waveform=recording.waveform[first:last], phones=phones)


def training_phrases(files: Sequence[tuple[Path, str]]) -> list[Recording]:
    """Read recordings and divide them; those whose text does not fit are left out.

    Raises:
        KeyFaceError: a file cannot be read, none fits, or what finds phones is not installed.
    """
    found = []
    for path, text in files:
        try:
            found += phrases(read_recording(path, text))
        except AlignmentError:
            continue
    if not found:
        raise KeyFaceError(f"{files[0][0].parent}: no text fits its recording")
    return found
