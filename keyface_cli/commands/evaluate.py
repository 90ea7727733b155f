"""`keyface evaluate`: how good a model is, in figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from keyface_cli.commands import console, options

app = typer.Typer(
    name="evaluate",
    no_args_is_help=True,
    help="Measure a model.",
    epilog="""\
[bold]Examples[/bold]

keyface evaluate avatars --clips 20 --seconds 5

keyface evaluate avatars --model runs/mine -o report --json
""",
)


@app.callback()
def evaluate() -> None:
    """Measure a model."""


@app.command()
def avatars(
    model: options.ModelOption = None,
    clips: Annotated[int, typer.Option(min=1, help="How many held-out scenes.")] = 20,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of each.")] = 5.0,
    scenes_seed: Annotated[
        int, typer.Option(min=1, help="Which scenes and heads; training uses none of them.")
    ] = 1,
    seed: options.SeedOption = 0,
    steps: options.StepsOption = None,
    audio_guidance: options.AudioGuidanceOption = None,
    identity_guidance: options.IdentityGuidanceOption = None,
    autoguidance: options.AutoguidanceOption = None,
    reader_file: Annotated[
        Path, typer.Option("--reader", help="The mouth reader; trained and saved here if absent.")
    ] = Path("reader.safetensors"),
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for clips.csv and strips of generated and true frames."
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Animate held-out avatars and compare their lips with the truth.

    Needs flite, espeak-ng and festival, which speak the held-out sentences.
    """
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from keyface_cli.evaluation import avatars as measure
    from keyface_cli.evaluation.reader import load_or_train, validate
    from keyface_cli.pipeline import KeyFacePipeline
    from keyface_cli.stream import GenerationOptions

    pipeline = KeyFacePipeline.load(model, device, dtype)
    console.say(f"model: {pipeline.checkpoint.folder}")
    reader = load_or_train(reader_file)
    accuracy = validate(reader)
    text = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
    console.say(f"reader on rendered frames, R^2: {text}")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)

    def keep(index: int, frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        if output is not None:
            both = np.concatenate([measure.strip(frames), measure.strip(truth)])
            Image.fromarray(both).save(output / f"{index:03d}.png")

    results = []
    choices = GenerationOptions(seed, steps, audio_guidance, identity_guidance, autoguidance)
    for result in measure.evaluate(pipeline, reader, clips, seconds, scenes_seed, choices, keep):
        results.append(result)
        console.say(
            f"clip {result.index + 1} of {clips} ({result.voice}): lip sync {result.lip_sync:.3f},"
            f" lag {result.lag}, PSNR {result.psnr:.1f} dB"
        )
    if output is not None:
        measure.write_csv(output / "clips.csv", results)
    summary = measure.summarise(results)
    if as_json:
        report = {"reader_r2": accuracy, "summary": summary, "clips": [asdict(r) for r in results]}
        typer.echo(json.dumps(report))
        return
    for name, figures in summary.items():
        typer.echo(
            f"{name}: median {figures['median']:.3f}, lowest tenth {figures['low10']:.3f},"
            f" of {figures['n']} clips"
        )
