"""`keyface emotion`: make, check, look at and convert curves of valence and arousal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keyface_cli.commands import console, options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from keyface_cli.emotion import EmotionTrack
    from keyface_cli.emotion.table import Style

app = typer.Typer(
    name="emotion",
    no_args_is_help=True,
    help="Make, check, look at and convert emotion curves.",
    epilog="""\
[bold]Examples[/bold]

keyface emotion new examples/speech.wav -o curve.csv --every 2

keyface emotion plot examples/curve.csv --audio examples/speech.wav
""",
)

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
SeparatorOption = Annotated[
    Literal["comma", "semicolon", "tab"] | None,
    typer.Option(help="What stands between columns.", show_default="comma; tab for FILE.tsv"),
]
DecimalOption = Annotated[
    Literal["point", "comma"],
    typer.Option(help="The decimal mark: comma for spreadsheets in German, French, ..."),
]
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@app.callback()
def emotion() -> None:
    """Make, check, look at and convert emotion curves."""


@app.command()
def names(
    plot: Annotated[bool, typer.Option("--plot", help="Draw where they lie.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.png|svg", help="Draw it into a file."),
    ] = None,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """List the 24 named emotions with their valence and arousal."""
    from keyface_cli.emotion import NAMED

    if output is not None:
        from keyface_cli.emotion.plot import check_suffix, draw_names, save_figure
        from keyface_cli.emotion.write import check_free

        check_suffix(output)
        check_free(output, force=force)
        save_figure(draw_names(), output)
        typer.echo(output)
    elif plot:
        from keyface_cli.emotion.plot import terminal_names

        typer.echo(terminal_names(width=_width(), colour=_colour()))
    elif as_json:
        typer.echo(json.dumps({name: list(values) for name, values in NAMED.items()}))
    else:
        typer.echo(f"{'name':<14}{'valence':>8}{'arousal':>8}")
        for name, (valence, arousal) in NAMED.items():
            typer.echo(f"{name:<14}{valence:>8g}{arousal:>8g}")


@app.command()
def new(
    audio: Annotated[Path, typer.Argument(metavar="AUDIO", help="The recording to draw for.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write.",
            show_default="AUDIO.csv here",
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.04,
            max=3600.0,
            metavar="SECONDS",
            help="A row every so often.",
            show_default="where speech begins after a pause",
        ),
    ] = None,
    like: Annotated[
        str,
        typer.Option(
            metavar="NAME|auto", help="Emotion of the rows; auto estimates arousal from the voice."
        ),
    ] = "neutral",
    time: TimeOption = "clock",
    separator: SeparatorOption = None,
    decimal: DecimalOption = "point",
    force: options.ForceOption = False,
) -> None:
    """Write a template for a recording: rows to fill in, with the loudness beside them."""
    from keyface_cli.audio import load_waveform
    from keyface_cli.emotion import AUTO
    from keyface_cli.emotion.names import find_name
    from keyface_cli.emotion.template import make_template
    from keyface_cli.emotion.voice import estimate
    from keyface_cli.emotion.write import check_free, save_text, write_json, write_table

    target = output or Path(f"{audio.stem}.csv")
    check_free(target, force=force, inputs=[audio])
    name = None if like.strip().lower() == AUTO else find_name(like, "--like: ")
    if name is None and every is not None:
        raise typer.BadParameter("--like auto chooses its own times: leave --every out")
    waveform = load_waveform(audio)
    if name is None:
        console.say("an estimate from the voice: arousal only, valence is left at 0")
    track = estimate(waveform) if name is None else None
    style = _style(target, time or "clock", separator, decimal)
    track, style = make_template(waveform, name, every, track, style, audio.name)
    text = write_json(track, style.time) if _is_json(target) else write_table(track, style)
    save_text(target, text, force=force)
    console.say(f"{len(track.keys)} rows; then: keyface emotion check {target} --audio {audio}")
    typer.echo(target)


@app.command()
def check(
    curve: CurveArgument,
    audio: AudioOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where there is a warning too.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Say what is wrong with a curve, or hardly meant."""
    from keyface_cli.emotion.checks import clock, remarks

    waveform = _sound(audio)
    track = _read(curve, waveform)
    found = remarks(track, None if waveform is None else _frames(waveform))
    for remark in found:
        console.report("warning", remark)
    facts = {"curve": curve, "keys": len(track.keys), "end_s": track.end_s, "warnings": found}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        keys = "1 key" if len(track.keys) == 1 else f"{len(track.keys)} keys"
        said = "no warning" if not found else f"{len(found)} warning{'s'[: len(found) > 1]}"
        typer.echo(f"{curve}: {keys}, the last at {clock(track.end_s)}, {said}")
    if strict and found:
        raise typer.Exit(1)


@app.command()
def plot(
    curve: CurveArgument,
    audio: AudioOption = None,
    strength: options.EmotionStrengthOption = 1.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.png|svg",
            help="The picture to write.",
            show_default="drawn in the terminal",
        ),
    ] = None,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Draw a curve over the sound, with what the model hears at its keyframes."""
    from keyface_cli.emotion import plot as drawing
    from keyface_cli.emotion.write import check_free, to_record

    if output is not None:
        drawing.check_suffix(output)
        check_free(output, force=force, inputs=[Path(curve), *([audio] if audio else [])])
    waveform = _sound(audio)
    track = _read(curve, waveform).scaled(strength)
    frames = int(track.end_s * 25) + 26 if waveform is None else _frames(waveform)
    if output is not None:
        drawing.save_figure(drawing.draw_curve(track, frames, waveform), output)
    if as_json:
        typer.echo(json.dumps({"output": output and str(output), **to_record(track, frames)}))
    elif output is not None:
        typer.echo(output)
    else:
        typer.echo(
            drawing.terminal_curve(track, frames, waveform, width=_width(), colour=_colour())
        )


@app.command()
def convert(
    curve: Annotated[
        str,
        typer.Argument(
            metavar="CURVE",
            help="A curve in any form, or a capture of Live Link Face or OpenFace (CSV).",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.csv|tsv|json",
            help="The file to write.",
            show_default="printed",
        ),
    ] = None,
    form: Annotated[
        Literal["csv", "json", "line"] | None,
        typer.Option(
            "--format", help="What to write.", show_default="by the file's name, else csv"
        ),
    ] = None,
    time: TimeOption = None,
    separator: SeparatorOption = None,
    decimal: DecimalOption = "point",
    audio: AudioOption = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How far the keys made of a capture may be off."),
    ] = 0.05,
    force: options.ForceOption = False,
) -> None:
    """Write a curve in another form: other times, JSON, one line, or keys of a face capture."""
    from keyface_cli.emotion.write import check_free, save_text, write_json, write_line, write_table

    if output is not None:
        check_free(output, force=force, inputs=[Path(curve), *([audio] if audio else [])])
    track, style = _read_styled(curve, audio, tolerance)
    chosen = _style(output, time or (style.time if style else "time"), separator, decimal, style)
    _say_rounding(track, chosen.time)
    if form == "line":
        text = f"{write_line(track)}\n"
    elif form == "json" or (form is None and output is not None and _is_json(output)):
        text = write_json(track, chosen.time)
    else:
        text = write_table(track, chosen)
    if output is None:
        typer.echo(text, nl=False)
    else:
        save_text(output, text, force=force)
        typer.echo(output)


@app.command()
def edit(
    curve: Annotated[
        Path, typer.Argument(metavar="CURVE", help="The CSV or JSON file; made where missing.")
    ],
    audio: Annotated[
        Path, typer.Option("--audio", "-a", metavar="AUDIO", help="The recording it belongs to.")
    ],
    browser: Annotated[
        bool, typer.Option(help="Open the page; its address is printed in any case.")
    ] = True,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page.", show_default="a free one")
    ] = 0,
) -> None:
    """Draw a curve over the sound, in a page that only this machine can open."""
    import tempfile
    import webbrowser

    import soundfile

    from keyface_cli.audio import load_waveform
    from keyface_cli.config import SAMPLE_RATE
    from keyface_cli.emotion.editor import Editor
    from keyface_cli.emotion.write import check_free

    check_free(curve, force=True, inputs=[audio])
    waveform = load_waveform(audio)
    with tempfile.TemporaryDirectory(prefix="keyface-") as folder:
        sound = Path(folder) / "sound.wav"  # what any browser plays, whatever the recording is
        soundfile.write(sound, waveform, SAMPLE_RATE, subtype="PCM_16")
        editor = Editor(curve, waveform, sound)
        with editor.page(port=port) as page:
            console.say(f"editing {curve}: {page.url} (Ctrl-C ends it)")
            if browser:
                webbrowser.open(page.url)
            page.serve()
    if editor.saves:
        typer.echo(curve)


def _read(curve: str, waveform: NDArray[np.float32] | None) -> EmotionTrack:
    """Read a curve in any form; `auto` needs the sound."""
    from keyface_cli.emotion import AUTO, load_emotion
    from keyface_cli.emotion.voice import estimate

    if curve.strip().lower() != AUTO:
        return load_emotion(curve)
    if waveform is None:
        raise typer.BadParameter("auto needs the recording: --audio AUDIO")
    console.say("an estimate from the voice: arousal only, valence is left at 0")
    return estimate(waveform)


def _read_styled(
    curve: str, audio: Path | None, tolerance: float
) -> tuple[EmotionTrack, Style | None]:
    """Read a curve and how its file is written, or a capture."""
    from keyface_cli.emotion.captured import capture_of, read_captured
    from keyface_cli.emotion.load import read_styled, read_text
    from keyface_cli.emotion.thin import resample, smooth, thin

    if not os.path.isfile(curve):
        return _read(curve, _sound(audio)), None
    text = read_text(Path(curve))
    if capture_of(text) is None:
        return read_styled(Path(curve))
    captured = read_captured(text, curve)
    console.say(f"{captured.source}: valence and arousal are guessed from the face's muscles")
    times, values = resample(captured.times, captured.values)
    return thin(times, smooth(values, 3.0), tolerance), None


def _style(
    output: Path | None,
    time: str,
    separator: str | None,
    decimal: str,
    base: Style | None = None,
) -> Style:
    """Return how to write a table: the options, then the file's name, then what was read."""
    from dataclasses import replace

    from keyface_cli.emotion.table import Style

    style = base or Style()
    suffix = "" if output is None else output.suffix.lower()
    mark = _SEPARATORS[separator] if separator else "\t" if suffix == ".tsv" else ","
    point = "," if decimal == "comma" else "."
    if point == mark:
        raise typer.BadParameter("with a decimal comma, take --separator semicolon or tab")
    return replace(style, time=time, separator=mark, decimal=point)


def _say_rounding(track: EmotionTrack, time: str) -> None:
    if time in ("frame", "timecode"):
        moved = sum(abs(key.time_s * 25 - round(key.time_s * 25)) > 1e-6 for key in track.keys)
        if moved:
            console.report("warning", f"{moved} of {len(track.keys)} keys moved to a whole frame")


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _sound(audio: Path | None) -> NDArray[np.float32] | None:
    if audio is None:
        return None
    from keyface_cli.audio import load_waveform

    return load_waveform(audio)


def _frames(waveform: NDArray[Any]) -> int:
    from keyface_cli.audio import count_frames

    return count_frames(len(waveform))


def _width() -> int:
    return max(60, min(160, shutil.get_terminal_size((100, 24)).columns))


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
