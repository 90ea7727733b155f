"""What `--emotion` means: a name, a curve in one line, or a file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from keyface_cli.emotion.cells import short
from keyface_cli.emotion.line import is_line, parse_line
from keyface_cli.emotion.names import NAMED, nearest
from keyface_cli.emotion.objects import parse_json
from keyface_cli.emotion.speech_model import estimate_with_model
from keyface_cli.emotion.table import Style, parse_table
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.emotion.voice import Waveform, estimate
from keyface_cli.errors import EmotionError

AUTO = "auto"  # the curve is estimated from the voice: see `voice`
SUFFIXES = (".csv", ".tsv", ".txt", ".json")
MAX_BYTES = 64 * 2**20  # a curve with a key for every frame of two days


def load_emotion(text: str) -> EmotionTrack:
    """Return the curve that a text means: a name, a curve in one line, or a CSV or JSON file.

    Raises:
        EmotionError: it is not one of them, or the file is not a curve.
    """
    name = text.strip().lower()
    if name in NAMED:
        return EmotionTrack((Key.named(0.0, name),))
    exists = bool(name) and os.path.exists(text)
    path = Path(text)
    if is_line(text) and not exists and path.suffix.lower() not in SUFFIXES:
        return parse_line(text)
    if name and (path.suffix or path.name != text or exists):
        return read_curve(path)
    raise EmotionError(
        f"unknown emotion: {short(' '.join(text.split())) or '(empty)'}",
        f"{nearest(name, [*NAMED, AUTO])}the names: {', '.join(NAMED)}; or a file: FILE.csv",
    )


def check_emotion(text: str, voice_model: Path | None = None) -> EmotionTrack | None:
    """Return the curve that `--emotion` means, before the recording is read.

    Args:
        text: as for `load_emotion`, or AUTO.
        voice_model: what is to estimate the curve.

    Returns:
        The curve; None for AUTO, which `estimate_curve` makes from the voice.

    Raises:
        EmotionError: the curve cannot be read, or the voice model is not a file or given without
            AUTO.
    """
    if text.strip().lower() != AUTO:
        if voice_model is not None:
            raise EmotionError("--voice-model works only with --emotion auto")
        return load_emotion(text)
    if voice_model is not None and not voice_model.is_file():
        raise EmotionError(f"{voice_model}: no such voice model")
    return None


def fingerprint(curve: EmotionTrack | None) -> str:
    """Return what tells one curve from another; None is one to be estimated from the voice."""
    return AUTO if curve is None else hashlib.sha256(repr(curve).encode()).hexdigest()


def estimate_curve(waveform: Waveform, voice_model: Path | None = None) -> EmotionTrack:
    """Estimate a curve from the voice in a recording.

    Args:
        waveform: (S,) at 16 kHz.
        voice_model: a speech-emotion model, None for the voice's loudness, melody and rate alone.

    Raises:
        EmotionError: the model cannot be used.
    """
    if voice_model is not None:
        return estimate_with_model(waveform, voice_model)
    return estimate(waveform)


def read_curve(path: Path) -> EmotionTrack:
    """Read a curve from a CSV or JSON file.

    Raises:
        EmotionError: names the file and the place in it.
    """
    return read_styled(path)[0]


def read_styled(path: Path) -> tuple[EmotionTrack, Style | None]:
    """Read a curve and how its file is written; the style is None for JSON."""
    text = read_text(path)
    if path.suffix.lower() == ".json" or text.lstrip("\ufeff \t\r\n").startswith(("[", "{")):
        track, _ = parse_json(text, str(path))
        return track, None
    return parse_table(text, str(path))


def read_text(path: Path) -> str:
    """Return a file's text, whatever mark of byte order it has.

    Raises:
        EmotionError: the file is missing, too large, or holds no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise EmotionError(
            f"{path}: no such emotion file", f"or one of the names: {', '.join(NAMED)}"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EmotionError(f"{path}: cannot be read: {reason}") from error
    if len(data) > MAX_BYTES:
        raise EmotionError(f"{path}: too large for a curve: more than {MAX_BYTES // 2**20} MiB")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EmotionError(
            f"{path}:{line}: not UTF-8 text", "save it as CSV with UTF-8 encoding"
        ) from error
    if "\0" in text:
        raise EmotionError(f"{path}: not a text file", "save it as CSV with UTF-8 encoding")
    return text
