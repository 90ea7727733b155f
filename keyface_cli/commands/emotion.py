"""`keyface emotion`: make, check, look at and convert curves of valence and arousal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from keyface_cli.commands import console, emotion_edit, emotion_preview, emotion_tools, options
from keyface_cli.commands.emotion_options import (
    AudioOption,
    CurveArgument,
    TimeOption,
    is_json,
    read_curve,
    read_styled_curve,
    say_rounding,
    sound_of,
    style_for,
)
from keyface_cli.files import check_free
from keyface_cli.jobs.job import Job
from keyface_cli.options import options_of

StrengthOption = Annotated[float, options.said("strength", options_of(Job)["emotion_strength"])]
app = typer.Typer(
    name="emotion",
    no_args_is_help=True,
    help="Make, check, look at and convert emotion curves.",
    epilog="""\
[bold]Examples[/bold]

keyface emotion new examples/speech.wav -o curve.csv --every 2

keyface emotion plot examples/curve.csv --audio examples/speech.wav -o curve.png
""",
)


@app.command()
def names(
    output: Annotated[Path | None, options.writes("FILE.png|svg", "Draw where they lie.")] = None,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """List the 24 named emotions with their valence and arousal."""
    from keyface_cli.emotion import NAMED

    if output is not None:
        from keyface_cli.emotion.plot import check_suffix, draw_names, save_figure

        check_suffix(output)
        check_free(output, force=force)
        save_figure(draw_names(), output)
        typer.echo(output)
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
        Path | None, options.writes("FILE", "The file to write.", show_default="AUDIO.csv here")
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
    force: options.ForceOption = False,
) -> None:
    """Write a template for a recording: rows to fill in, with the loudness beside them."""
    from keyface_cli.emotion import AUTO
    from keyface_cli.emotion.names import find_name
    from keyface_cli.emotion.template import make_template
    from keyface_cli.emotion.voice import estimate
    from keyface_cli.emotion.write import save_text, write_json, write_table
    from keyface_cli.media.audio import load_waveform

    target = output or Path(f"{audio.stem}.csv")
    check_free(target, force=force, inputs=[audio])
    name = None if like.strip().lower() == AUTO else find_name(like, "--like: ")
    if name is None and every is not None:
        raise typer.BadParameter("--like auto chooses its own times: leave --every out")
    waveform = load_waveform(audio)
    if name is None:
        console.say("an estimate from the voice: arousal only, valence is left at 0")
    track = estimate(waveform) if name is None else None
    style = style_for(target, time or "clock")
    track, style = make_template(waveform, name, every, track, style, audio.name)
    text = write_json(track, style.time) if is_json(target) else write_table(track, style)
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
    from keyface_cli.media.audio import count_frames

    waveform = sound_of(audio)
    track = read_curve(curve, waveform)
    found = remarks(track, None if waveform is None else count_frames(len(waveform)))
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
    strength: StrengthOption = 1.0,
    output: Annotated[
        Path | None,
        options.writes(
            "FILE.png|svg", "The picture to write; needed without --json.", show_default=False
        ),
    ] = None,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Draw a curve over the sound, with its values at the keyframes."""
    from keyface_cli.emotion import plot as drawing
    from keyface_cli.emotion.write import to_record
    from keyface_cli.media.audio import count_frames

    if output is None and not as_json:
        raise typer.BadParameter("name the picture to write: -o FILE.png", param_hint="--output")
    if output is not None:
        drawing.check_suffix(output)
        check_free(output, force=force, inputs=[Path(curve), *([audio] if audio else [])])
    waveform = sound_of(audio)
    track = read_curve(curve, waveform).scaled(strength)
    frames = int(track.end_s * 25) + 26 if waveform is None else count_frames(len(waveform))
    if output is not None:
        drawing.save_figure(drawing.draw_curve(track, frames, waveform), output)
    if as_json:
        typer.echo(json.dumps({"output": output and str(output), **to_record(track, frames)}))
    else:
        typer.echo(output)


@app.command()
def convert(
    curve: Annotated[
        str,
        typer.Argument(metavar="CURVE", help="A curve in any form."),
    ],
    output: Annotated[
        Path | None,
        options.writes("FILE.csv|tsv|json", "The file to write.", show_default="printed"),
    ] = None,
    form: Annotated[
        Literal["csv", "json", "line"] | None,
        typer.Option(
            "--format", help="What to write.", show_default="by the file's name, else csv"
        ),
    ] = None,
    time: TimeOption = None,
    audio: AudioOption = None,
    force: options.ForceOption = False,
) -> None:
    """Write a curve in another form: other times, JSON or one line."""
    from keyface_cli.emotion.write import save_text, write_json, write_line, write_table

    if output is not None:
        check_free(output, force=force, inputs=[Path(curve), *([audio] if audio else [])])
    track, style = read_styled_curve(curve, audio)
    chosen = style_for(output, time or (style.time if style else "time"), style)
    say_rounding(track, chosen.time)
    if form == "line":
        text = f"{write_line(track)}\n"
    elif form == "json" or (form is None and output is not None and is_json(output)):
        text = write_json(track, chosen.time)
    else:
        text = write_table(track, chosen)
    if output is None:
        typer.echo(text, nl=False)
    else:
        save_text(output, text, force=force)
        typer.echo(output)


app.command()(emotion_edit.edit)
app.command()(emotion_preview.preview)
app.command()(emotion_tools.extract)
app.command()(emotion_tools.measure)
