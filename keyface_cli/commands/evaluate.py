"""`keyface evaluate`: how good a model is, in figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.commands import console, evaluate_videos, options
from keyface_cli.errors import KeyFaceError
from keyface_cli.options import GenerationOptions
from keyface_cli.plotting import require_matplotlib

app = typer.Typer(
    name="evaluate",
    no_args_is_help=True,
    help="Measure a model, or videos.",
    epilog="""\
[bold]Examples[/bold]

keyface evaluate avatars --clips 20 --seconds 5

keyface evaluate avatars --model runs/mine -o report --json
""",
)


app.command(epilog=evaluate_videos.EXAMPLES)(evaluate_videos.videos)
app.command(epilog=evaluate_videos.SCENES_EXAMPLE)(evaluate_videos.scenes)


@app.callback()
def evaluate() -> None:
    """Measure a model, or videos."""


@app.command()
@options.taking(GenerationOptions)
def avatars(
    model: options.ModelOption = None,
    clips: Annotated[int, typer.Option(min=1, help="How many held-out scenes.")] = 20,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of each.")] = 5.0,
    vocal_clips: Annotated[
        int, typer.Option(min=0, help="Clips of each vocalisation, named from the frames.")
    ] = 0,
    scenes_seed: Annotated[
        int, typer.Option(min=1, help="Which scenes and heads; training uses none of them.")
    ] = 1,
    sentences: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sentences to say instead, one a line."),
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

    Needs flite, espeak-ng and festival, which speak the held-out sentences.
    """
    from keyface_cli.evaluation.avatars import measure as measure
    from keyface_cli.evaluation.avatars import vocal
    from keyface_cli.evaluation.avatars.reader import default_path, load_or_train, validate
    from keyface_cli.evaluation.avatars.report import Report
    from keyface_cli.pipeline import KeyFacePipeline

    if output is not None:
        require_matplotlib()
    wanted = tuple(voices.split(",")) if voices else ()
    material = measure.Material(clips, seconds, scenes_seed, wanted, _lines(sentences))
    try:
        material.scene(0)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--voices") from error
    pipeline = KeyFacePipeline.load(model, device, dtype)
    console.say(f"model: {pipeline.checkpoint.folder}")
    reader_file = reader_file or default_path()
    reader = load_or_train(reader_file)
    accuracy = validate(reader)
    text = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
    console.say(f"reader on rendered frames, R^2: {text}")
    report = Report(output, accuracy)
    given = GenerationOptions(**choices)
    for result in measure.evaluate(pipeline, reader, material, given, report.keep):
        console.say(
            f"clip {result.index + 1} of {clips} ({result.voice}): lip sync {result.lip_sync:.3f},"
            f" lag {result.lag}, PSNR {result.psnr:.1f} dB"
        )
    if vocal_clips:
        classifier = vocal.load_or_train(
            reader_file.with_name(f"{reader_file.stem}-vocal.safetensors")
        )
        for naming in vocal.evaluate(pipeline, reader, classifier, vocal_clips, scenes_seed, given):
            report.namings.append(naming)
            console.say(
                f"{naming.kind}: the truth looks like {naming.truth}, generated like"
                f" {naming.generated}, without BEATs like {naming.deaf}"
            )
    report.write()
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    truth = measure.of_truth(report.results)
    for name, figures in report.summary().items():
        beside = f"; of the truth {truth[name]['median']:.3f}" if name in truth else ""
        typer.echo(
            f"{name}: median {figures['median']:.3f}, lowest tenth {figures['low10']:.3f},"
            f" of {figures['n']} clips{beside}"
        )


def _lines(path: Path | None) -> tuple[str, ...]:
    """Read the sentences of a file, one a line."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFaceError(f"cannot read the sentences: {path}", "give a text file") from error
    sentences = tuple(line for line in lines if line)
    if not sentences:
        raise KeyFaceError(f"no sentence in {path}", "write one a line")
    return sentences
