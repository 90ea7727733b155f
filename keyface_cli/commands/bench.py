"""`keyface bench`: what a second of video costs on this machine."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import installed_models, resolve_model
from keyface_cli.commands import console, options
from keyface_cli.errors import ConfigError, KeyFaceError

EXAMPLES = """\
[bold]Examples[/bold]

keyface bench

keyface bench --model keyface --count --json > published.json

keyface bench --model keyface --memory high --memory low --chunk 1 --chunk 4
"""


def bench(
    model: options.ModelOption = None,
    seconds: Annotated[float, typer.Option(min=0.04, help="Length of the video.")] = 4.0,
    only_count: Annotated[
        bool, typer.Option("--count", help="Count passes and FLOPs, and make no video.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="As in animate.", show_default="the model's")
    ] = None,
    autoguidance: Annotated[
        float | None, typer.Option(min=0, help="As in animate.", show_default="the model's")
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: Annotated[
        list[str] | None, typer.Option(help="As in animate; may be given several times.")
    ] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="As in animate; may be given several times.")
    ] = None,
    chunk: Annotated[
        list[int] | None, typer.Option(help="As in animate; may be given several times.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER.json", help="Compare with what --json printed before."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Count what a second of video costs, and time it here, stage by stage.

    The published model need not be installed: random weights of its size take the same time.
    """
    other = None if against is None else _read(against)
    with console.waiting("importing torch"):
        from keyface_cli import benchmark
        from keyface_cli.options import GenerationOptions

    checkpoint = _model(model, benchmark)
    chosen = GenerationOptions(steps=steps, autoguidance=autoguidance)
    sampling = chosen.sampling(checkpoint.config.sampling)
    costs = benchmark.count(checkpoint.config, sampling, seconds)
    report: dict[str, Any] = {
        "model": checkpoint.config.preset,
        "folder": str(checkpoint.folder),
        "seconds": seconds,
        "counted": {
            name: {"passes": cost.passes / seconds, "tflops": cost.tflops / seconds}
            for name, cost in costs.items()
        },
        "measured": [],
    }
    if not as_json:
        _print_counts(report)
    sweep = product(dtype or ["auto"], memory or ["auto"], chunk or [chosen.chunk])
    for number_format, level, size in () if only_count else sweep:
        setting = benchmark.with_chunk(
            benchmark.Setting(device, number_format, level, chosen), size
        )
        with console.waiting(f"making {seconds:g} s of video"):
            row = benchmark.measure(checkpoint, setting, seconds) | {"chunk": size}
        report["measured"].append(row)
        if not as_json:
            _print_row(row)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    if other is not None:
        _compare(report, other)


def _model(name: str | None, benchmark: Any) -> Checkpoint:
    """The model that is asked for; the published one with random weights where it is absent."""
    if name == "keyface" and name not in installed_models():
        from keyface_cli.config import PRESETS

        console.say("the published weights are not installed: random ones of their size are taken")
        unfetched: Checkpoint = benchmark.Unfetched.of(PRESETS["keyface"])
        return unfetched
    return Checkpoint.open(resolve_model(name))


def _print_counts(report: dict[str, Any]) -> None:
    typer.echo(f"{report['model']}: counted for a second of video")
    counted = report["counted"]
    for name, cost in counted.items():
        typer.echo(f"  {name}: {cost['passes']:.1f} passes, {cost['tflops']:.3g} TFLOP")
    total = sum(cost["tflops"] for cost in counted.values())
    typer.echo(f"  in all: {total:.3g} TFLOP")


def _print_row(row: dict[str, Any]) -> None:
    typer.echo(
        f"{row['device']}, {row['dtype']}, memory {row['memory']}, chunk {row['chunk']}: "
        f"{row['total']:.3g} s per second of video"
    )
    for stage, spent in row["stages"].items():
        typer.echo(f"  {stage}: {spent:.3g} s")
    gpu = f", of the GPU {row['gpu_peak_gb']:.2f} GB" if "gpu_peak_gb" in row else ""
    typer.echo(f"  loading: {row['load_s']:.2f} s; memory: {row['peak_gb']:.2f} GB{gpu}")


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["counted"], report["measured"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"not a report of keyface bench: {path}", "keyface bench --json prints one"
        ) from error
    return dict(report)


def _compare(report: dict[str, Any], other: dict[str, Any]) -> None:
    """Say how this run stands to another, row by row; on stderr, beside the report."""

    def flops(one: dict[str, Any]) -> float:
        return sum(float(cost["tflops"]) for cost in one["counted"].values())

    console.say(f"FLOPs: {flops(report) / flops(other):.2f} of the other's")
    key = ("device", "dtype", "memory", "chunk")
    rows = {tuple(row[name] for name in key): row for row in other["measured"]}
    for row in report["measured"]:
        before = rows.get(tuple(row[name] for name in key))
        if before is not None:
            named = ", ".join(str(row[name]) for name in key)
            console.say(f"{named}: {row['total'] / before['total']:.2f} of the other's time")
    if report["measured"] and other["measured"] and not rows:
        raise KeyFaceError("nothing to compare")
