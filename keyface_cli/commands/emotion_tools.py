"""`keyface emotion extract`, `measure`: curves taken from a film, and how they are followed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.commands import console, options
from keyface_cli.commands.emotion_options import TimeOption, is_json, style_for
from keyface_cli.files import check_free, replacing
from keyface_cli.options import GenerationOptions

SMOOTHING_S = 0.25  # over which a film's valence and arousal are averaged


def extract(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A performance: one face.")],
    output: Annotated[Path, options.writes("CURVE", "The CSV or JSON to write.")],
    model: Annotated[
        Path,
        typer.Option(
            metavar="FILE.onnx", help="EmotiEffLib's enet_b0_8_va_mtl.onnx, from its GitHub page."
        ),
    ],
    dense: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write what was read of every frame, too."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far the keys may be off.")
    ] = 0.08,
    time: TimeOption = "time",
    force: options.ForceOption = False,
) -> None:
    """Make a curve of a filmed performance: its valence and arousal, thinned to a few keys."""
    import numpy as np

    from keyface_cli.emotion.film import fill_and_smooth, read_performance
    from keyface_cli.emotion.thin import every, thin
    from keyface_cli.emotion.write import save_text, write_json, write_table

    targets = [output] if dense is None else [output, dense]
    for target in targets:
        check_free(target, force=force, inputs=[video, model])
    with console.waiting("reading faces"):
        found = read_performance(video, model)
    unseen = int(np.isnan(found).any(axis=1).sum())
    if unseen:
        console.report("warning", f"no face is seen in {unseen} of {len(found)} frames: filled in")
    times = np.arange(len(found)) / 25
    style = style_for(output, time or "time")
    if dense is not None:
        table = write_table(every(times, fill_and_smooth(found, 0.0)), style_for(dense, "frame"))
        save_text(dense, table, force=force)
    track = thin(times, fill_and_smooth(found, SMOOTHING_S), tolerance)
    text = write_json(track, style.time) if is_json(output) else write_table(track, style)
    save_text(output, text, force=force)
    console.say(f"{len(track.keys)} keys of {len(found)} frames")
    typer.echo(output)


@options.taking(GenerationOptions, "seed")
def measure(
    model: options.ModelOption = None,
    heads: Annotated[int, typer.Option(min=1, help="How many held-out avatars.")] = 8,
    seconds: Annotated[float, typer.Option(min=1.0, max=60.0, help="Length of each clip.")] = 4.0,
    scenes_seed: options.ScenesSeedOption = 1,
    reader_file: options.ReaderOption = None,
    output: Annotated[
        Path | None, options.writes("FILE.png", "Frames of the first head, a row a mood.")
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    *,
    choices: dict[str, Any],
) -> None:
    """Measure whether a model's faces follow a curve, and whether their lips still do the sound.

    Needs flite, espeak-ng and festival, which speak the held-out sentences.
    """

    if output is not None:
        check_free(output, force=force)
    from PIL import Image

    from keyface_cli.evaluation.avatars import moods
    from keyface_cli.evaluation.avatars.measure import Material
    from keyface_cli.evaluation.avatars.reader import load
    from keyface_cli.pipeline import KeyFacePipeline

    pipeline = KeyFacePipeline.load(model, device, dtype)
    console.say(f"model: {pipeline.checkpoint.folder}")
    reader = load(reader_file)
    shown: dict[str, Any] = {}

    def keep(index: int, mood: str, frames: Any) -> None:
        if index == 0:
            shown[mood] = frames

    results = []
    material = Material(heads, seconds, scenes_seed)
    for result in moods.evaluate(pipeline, reader, material, GenerationOptions(**choices), keep):
        results.append(result)
        console.say(
            f"head {result.index + 1} of {heads} ({result.voice}): smile follows valence "
            f"{result.valence:.3f}, brow arousal {result.arousal:.3f}"
        )
        if output is not None and result.index == 0:
            with replacing(output) as part:
                Image.fromarray(moods.sheet(shown)).save(part, "png")
    summary = moods.summarise(results)
    if as_json:
        typer.echo(json.dumps({"summary": summary, "heads": [asdict(r) for r in results]}))
        return
    for name, value in summary.items():
        typer.echo(f"{name}: {value:.3f}")
