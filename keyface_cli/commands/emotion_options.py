"""What the commands of `keyface emotion` share: their options, and how curves are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from keyface_cli.commands import console

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from keyface_cli.emotion import EmotionTrack
    from keyface_cli.emotion.table import Style

TimeFormat = Literal["time", "clock", "frame", "timecode"]
CurveArgument = Annotated[
    str,
    typer.Argument(
        metavar="CURVE",
        help='A CSV or JSON file, a name, or a curve in one line ("neutral@0 happy@3.5").',
    ),
]
AudioOption = Annotated[
    Path | None,
    typer.Option("--audio", "-a", metavar="AUDIO", help="The recording that the curve belongs to."),
]
TimeOption = Annotated[
    TimeFormat | None,
    typer.Option(
        "--time",
        help="How times are written: seconds, minutes:seconds, frames at 25 fps, or timecode.",
        show_default="as in the curve, else seconds",
    ),
]


def read_curve(curve: str, waveform: NDArray[np.float32] | None) -> EmotionTrack:
    """Read a curve in any form; `auto` needs the sound."""
    from keyface_cli.emotion import AUTO, load_emotion
    from keyface_cli.emotion.voice import estimate

    if curve.strip().lower() != AUTO:
        return load_emotion(curve)
    if waveform is None:
        raise typer.BadParameter("auto needs the recording: --audio AUDIO")
    console.say("an estimate from the voice: arousal only, valence is left at 0")
    return estimate(waveform)


def read_styled_curve(curve: str, audio: Path | None) -> tuple[EmotionTrack, Style | None]:
    """Read a curve and how its file is written; the style is None for what is no table."""
    from keyface_cli.emotion.load import read_styled

    if not os.path.isfile(curve):
        return read_curve(curve, sound_of(audio)), None
    return read_styled(Path(curve))


def style_for(
    output: Path | None,
    time: str,
    base: Style | None = None,
) -> Style:
    """Return how to write a table: as the option and the file's name say, else as it was read."""
    from dataclasses import replace

    from keyface_cli.emotion.table import Style

    tabs = output is not None and output.suffix.lower() == ".tsv"
    return replace(base or Style(), time=time, separator="\t" if tabs else ",", decimal=".")


def say_rounding(track: EmotionTrack, time: str) -> None:
    """Warn where keys cannot stay at their times."""
    if time in ("frame", "timecode"):
        moved = sum(abs(key.time_s * 25 - round(key.time_s * 25)) > 1e-6 for key in track.keys)
        if moved:
            console.report("warning", f"{moved} of {len(track.keys)} keys moved to a whole frame")


def is_json(path: Path) -> bool:
    """Say whether a file's name asks for JSON."""
    return path.suffix.lower() == ".json"


def sound_of(audio: Path | None) -> NDArray[np.float32] | None:
    """Read a recording, where one is named: (S,) at 16 kHz."""
    if audio is None:
        return None
    from keyface_cli.media.audio import load_waveform

    return load_waveform(audio)
