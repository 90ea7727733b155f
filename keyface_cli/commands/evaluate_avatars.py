"""`keyface evaluate avatars` and `reader`: faces against their truth, and what reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keyface_cli.commands import console, options
from keyface_cli.errors import KeyFaceError
from keyface_cli.files import check_free, read_text
from keyface_cli.options import GenerationOptions
from keyface_cli.plotting import require_matplotlib

if TYPE_CHECKING:
    from keyface_cli.evaluation.avatars.measure import Material
    from keyface_cli.evaluation.avatars.reader import RigReader
    from keyface_cli.evaluation.avatars.report import Report
    from keyface_cli.pipeline import KeyFacePipeline


@options.taking(GenerationOptions)
def avatars(
    model: options.ModelOption = None,
    clips: Annotated[int, typer.Option(min=1, help="How many held-out scenes.")] = 20,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of each.")] = 5.0,
    vocal_clips: Annotated[
        int, typer.Option(min=0, help="Clips of each vocalisation, named from the frames.")
    ] = 0,
    sound_clips: Annotated[
        int,
        typer.Option(
            min=0, help="Clips of each sound without a voice: noise, music, hum, a room's tone."
        ),
    ] = 0,
    heads: Annotated[
        Literal["drawn", "photographs", "both"] | None,
        typer.Option(help="Whose.", show_default="drawn; both with --photographs"),
    ] = None,
    photographs: options.PhotographsOption = None,
    scenes_seed: options.ScenesSeedOption = 1,
    sentences: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sentences to say instead, one a line."),
    ] = None,
    speech: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Play recordings of a voice instead, the first 20 by name of those in "
            'DIR/transcripts.csv (file|text). Needs pip install "keyface\\[voices]".',
        ),
    ] = None,
    voices: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Speak with these held-out voices, such as flite:awb,espeak:it.",
            show_default="the English ones",
        ),
    ] = None,
    reader_file: options.ReaderOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the report: tables, plots, generated and true frames.",
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
    *,
    choices: dict[str, Any],
) -> None:
    """Animate held-out avatars and compare their faces with the truth.

    Needs flite, espeak-ng and festival, which speak the held-out sentences, but not with --speech.
    A model with conditions for the motion of head, eyes and lids gets that of the truth.
    """
    kinds = _kinds(heads, photographs)
    if output is not None:
        require_matplotlib()
    if speech is not None and (sentences is not None or voices is not None):
        raise typer.BadParameter("says what is spoken itself", param_hint="--speech")
    from keyface_cli.avatars.photographs.casting import read_cast
    from keyface_cli.avatars.recordings import list_recordings
    from keyface_cli.evaluation.avatars.measure import Material
    from keyface_cli.evaluation.avatars.reader import load
    from keyface_cli.evaluation.avatars.report import Report
    from keyface_cli.pipeline import KeyFacePipeline

    cast = read_cast(photographs, held_out=True) if photographs and "photographs" in kinds else None
    recordings = list_recordings(speech, held_out=True) if speech else ()
    wanted = tuple(voices.split(",")) if voices else ()
    material = Material(clips, seconds, scenes_seed, wanted, _lines(sentences), recordings)
    try:
        material.scene(0)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--voices") from error
    reader = load(reader_file)
    pipeline = KeyFacePipeline.load(model, device, dtype)
    console.say(f"model: {pipeline.checkpoint.folder}")
    chosen = GenerationOptions(**choices)
    reports = {}
    for kind in kinds:
        part = output / kind if output and len(kinds) > 1 else output
        report = reports[kind] = Report(part, reader.accuracy.get(kind, {}))
        text = ", ".join(f"{name} {value:.3f}" for name, value in report.reader_accuracy.items())
        console.say(f"heads: {kind}; R^2 of the reader on others of them: {text}")
        with_heads = replace(material, cast=cast if kind == "photographs" else None)
        _measure(pipeline, reader, with_heads, chosen, report, vocal_clips, sound_clips)
        report.write()
    if as_json:
        plain = {kind: report.to_dict() for kind, report in reports.items()}
        typer.echo(json.dumps(plain if len(kinds) > 1 else plain[kinds[0]]))
        return
    for kind, report in reports.items():
        for line in _figures(report):
            typer.echo(f"{kind}: {line}" if len(kinds) > 1 else line)


def _kinds(heads: str | None, photographs: Path | None) -> tuple[str, ...]:
    """Return which kinds of heads to measure."""
    if heads in ("photographs", "both") and photographs is None:
        raise typer.BadParameter("name their folder with --photographs", param_hint="--heads")
    heads = heads or ("drawn" if photographs is None else "both")
    return ("drawn", "photographs") if heads == "both" else (heads,)


def _measure(
    pipeline: KeyFacePipeline,
    reader: RigReader,
    material: Material,
    choices: GenerationOptions,
    report: Report,
    vocal_clips: int,
    sound_clips: int,
) -> None:
    """Measure one kind of head, saying what is found."""
    from keyface_cli.evaluation.avatars import measure, vocal, voiceless

    for result in measure.evaluate(pipeline, reader, material, choices, report.keep):
        console.say(
            f"clip {result.index + 1} of {material.clips} ({result.voice}): lip sync"
            f" {result.lip_sync:.3f}, lag {result.lag}, PSNR {result.psnr:.1f} dB"
        )
    seed, cast = material.seed, material.cast
    if sound_clips:
        for sound in voiceless.evaluate(pipeline, reader, sound_clips, seed, choices, cast):
            report.sounds.append(sound)
            console.say(f"{sound.kind}: the mouth opens by {sound.opening:.3f}")
    if vocal_clips:
        classifier = vocal.load_or_train(vocal.default_path())
        for recognition in vocal.evaluate(
            pipeline, reader, classifier, vocal_clips, seed, choices, cast
        ):
            report.recognitions.append(recognition)
            console.say(
                f"{recognition.kind}: the truth looks like {recognition.truth}, generated like"
                f" {recognition.generated}, without BEATs like {recognition.without_beats}"
            )


def _figures(report: Report) -> list[str]:
    """Return the summary, a line a figure."""
    from keyface_cli.evaluation.avatars.measure import of_truth

    truth = of_truth(report.results)
    lines = []
    for name, figures in report.summary().items():
        beside = f"; of the truth {truth[name]['median']:.3f}" if name in truth else ""
        lines.append(
            f"{name}: median {figures['median']:.3f}, mean {figures['mean']:.3f}, lowest tenth"
            f" {figures['low10']:.3f}, of {figures['n']} clips{beside}"
        )
    for kind, found in report.openings().items():
        lines.append(
            f"mouth opening under {kind}: {found['opening']:.3f}, {found['over_speech']:.2f} times"
            f" that of speech, of {found['n']} clips; of the truth"
            f" {found['truth_over_speech']:.2f} times"
        )
    return lines


def _lines(path: Path | None) -> tuple[str, ...]:
    """Read the sentences of a file, one a line."""
    if path is None:
        return ()
    lines = (line.strip() for line in read_text(path).splitlines())
    sentences = tuple(line for line in lines if line)
    if not sentences:
        raise KeyFaceError(f"no sentence in {path}", "write one a line")
    return sentences


def reader(
    output: Annotated[
        Path | None,
        options.writes(
            "FILE",
            "The file to write.",
            show_default="a file in keyface's data folder, which evaluate avatars looks for",
        ),
    ] = None,
    photographs: options.PhotographsOption = None,
    heads: Annotated[
        int, typer.Option(min=2, help="Drawn heads to learn from; half as many photographs.")
    ] = 800,
    updates: Annotated[int, typer.Option(min=1, help="Of 32 pictures each.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 77,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train the network that reads faces for evaluate avatars, and say how well it reads others.

    What is said is R^2 of each control on heads that it has not seen.
    """
    from keyface_cli.avatars.photographs.casting import read_cast
    from keyface_cli.evaluation.avatars.reader import make_reader, own_path, save

    output = output or own_path()
    check_free(output, force=force)
    casts = None
    if photographs is not None:
        casts = (read_cast(photographs), read_cast(photographs, held_out=True))
    with console.waiting("drawing heads and training the reader"):
        made = make_reader(heads, updates, seed, casts)
    for kind, accuracy in made.accuracy.items():
        text = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
        console.say(f"R^2 on {kind} heads: {text}")
    save(made, output)
    typer.echo(json.dumps({"file": str(output), "r2": made.accuracy}) if as_json else output)
