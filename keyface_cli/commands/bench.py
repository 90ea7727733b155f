"""`keyface bench`: what a second of video costs on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import installed_models, resolve_model
from keyface_cli.commands import console, options
from keyface_cli.commands.examples import find_examples
from keyface_cli.errors import ConfigError, KeyFaceError
from keyface_cli.jobs.runner import ComputeOptions
from keyface_cli.options import QUALITIES, GenerationOptions

EXAMPLES = """\
[bold]Examples[/bold]

keyface bench

keyface bench --model keyface --count --preset exact --preset fast --json > published.json

keyface bench --model keyface --memory high --memory low --chunk 1 --chunk 4

keyface bench --quality --preset fast --portrait me.jpg --audio speech.wav

keyface bench --editor
"""
_KEY = ("preset", "device", "dtype", "memory", "chunk")  # of a row that was measured


def bench(
    model: options.ModelOption = None,
    seconds: Annotated[float, typer.Option(min=0.04, help="Length of the video.")] = 4.0,
    only_count: Annotated[
        bool, typer.Option("--count", help="Count passes and FLOPs, and make no video.")
    ] = False,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality",
            help="Measure how near presets come to exact, on the same noise: PSNR, how the mouth "
            "follows the sound, and its sharpness.",
        ),
    ] = False,
    editor: Annotated[
        bool,
        typer.Option(
            "--editor",
            help="Measure emotion edit: time to the page's address, to a changed keyframe, and to "
            "all of a changed clip.",
        ),
    ] = False,
    portrait: Annotated[
        Path | None, typer.Option(help="For --quality and --editor.", show_default="an example")
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            help="For --quality, all of it; for --editor, 10 s.", show_default="an example"
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(QUALITIES),
            help="As in animate; may be given several times.",
            show_default="exact, with --quality fast",
        ),
    ] = None,
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
    if editor:
        places: dict[str, Any] = {"--model": model, "--device": device, "--steps": steps}
        places |= {"--dtype": next(iter(dtype or ()), None)}
        places |= {"--memory": next(iter(memory or ()), None)}
        _report_editor(places, preset or ["exact"], _given(portrait, audio), as_json)
        return
    other = None if against is None else _read(against)
    with console.waiting("importing torch"):
        from keyface_cli import benchmark

    checkpoint = _model(model, benchmark)
    presets = preset or ["fast" if quality else "exact"]
    chosen = GenerationOptions(steps=steps, autoguidance=autoguidance)
    if quality:
        compute = ComputeOptions(
            device, dtype=(dtype or ["auto"])[0], memory=(memory or ["auto"])[0]
        )
        _report_quality(checkpoint, compute, chosen, presets, _given(portrait, audio), as_json)
        return
    report: dict[str, Any] = {
        "model": checkpoint.config.preset,
        "folder": str(checkpoint.folder),
        "seconds": seconds,
        "counted": {
            one: _counted(checkpoint, replace(chosen, preset=one), seconds) for one in presets
        },
        "measured": [],
    }
    if not as_json:
        exact = _counted(checkpoint, replace(chosen, preset="exact"), seconds)
        for one, costs in report["counted"].items():
            _print_counts(f"{report['model']}, {one}", costs, exact)
    sizes: list[int | None] = [*chunk] if chunk else [None]
    sweep = product(presets, dtype or ["auto"], memory or ["auto"], sizes)
    for one, number_format, level, size in () if only_count else sweep:
        compute = ComputeOptions(device, dtype=number_format, memory=level)
        varied = replace(chosen, preset=one, chunk=size)
        with console.waiting(f"making {seconds:g} s of video"):
            row = benchmark.measure(checkpoint, compute, varied, seconds) | {"preset": one}
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
        from keyface_cli.presets import PRESETS

        console.say("the published weights are not installed: random ones of their size are taken")
        unfetched: Checkpoint = benchmark.Unfetched.of(PRESETS["keyface"])
        return unfetched
    return Checkpoint.open(resolve_model(name))


def _counted(
    checkpoint: Checkpoint, chosen: GenerationOptions, seconds: float
) -> dict[str, dict[str, float]]:
    """Passes and 10^12 FLOPs a second of video of each network."""
    from keyface_cli import benchmark

    sampling = chosen.sampling(checkpoint.config)
    return {
        name: {"passes": cost.passes / seconds, "tflops": cost.tflops / seconds}
        for name, cost in benchmark.count(checkpoint.config, sampling, seconds).items()
    }


def _report_quality(
    checkpoint: Checkpoint,
    compute: ComputeOptions,
    chosen: GenerationOptions,
    presets: list[str],
    files: tuple[Path, Path],
    as_json: bool,
) -> None:
    """Make a video with each preset, compare it with the exact one, and say how near it is."""
    from keyface_cli import benchmark
    from keyface_cli.evaluation.closeness import compare

    if isinstance(checkpoint, benchmark.Unfetched):
        raise KeyFaceError("random weights show nothing", "keyface weights pull fetches the true")
    portrait, audio = files
    made = benchmark.make(checkpoint, compute, chosen, *files, ["exact", *presets])
    with console.waiting("making the exact video"):
        _, exact = next(made)
    report: dict[str, dict[str, float]] = {}
    for name, frames in made:
        try:
            report[name] = found = compare(frames, exact, audio)
        except ValueError as error:
            raise KeyFaceError(f"{portrait}: {error}", "take another portrait") from error
        if not as_json:
            typer.echo(
                f"{name}: PSNR against exact {found['psnr']:.1f} dB, lip-to-sound "
                f"{found['lip_to_sound']:.3f} (exact {found['exact_lip_to_sound']:.3f}), mouth "
                f"sharpness {found['sharpness']:.2f} of exact"
            )
    if as_json:
        said = {"model": checkpoint.config.preset, "quality": report}
        typer.echo(json.dumps(said, indent=1))


def _given(portrait: Path | None, audio: Path | None) -> tuple[Path, Path]:
    """The portrait and the recording, an example for what was not given."""
    return portrait or find_examples() / "portrait.jpg", audio or find_examples() / "speech.wav"


def _report_editor(
    places: dict[str, Any],
    presets: list[str],
    files: tuple[Path, Path],
    as_json: bool,
) -> None:
    """Time the editor with each preset, as a process of its own."""
    from keyface_cli.editor import timing

    model = resolve_model(places["--model"]).name
    words = [f"{name}={value}" for name, value in places.items() if value is not None]
    report: dict[str, dict[str, Any]] = {}
    for preset in presets:
        with console.waiting(f"editing, {preset}"):
            found = timing.measure(*files, [*words, f"--preset={preset}"])
        report[preset] = found
        if not as_json:
            _print_editor(f"{model}, {preset}", found)
    if as_json:
        typer.echo(json.dumps({"model": model, "editor": report}, indent=1))


def _print_editor(title: str, found: dict[str, Any]) -> None:
    def told(name: str) -> str:
        least, *_, most = sorted(found[name])
        return f"{median(found[name]):.2f} s ({least:.2f} to {most:.2f} s)"

    typer.echo(
        f"{title}, {found['device']}, {found['dtype']}; {found['machine']}, load average "
        f"{found['load']} before\n"
        f"  address of the page: {found['page_s']:.2f} s, with a portrait "
        f"{found['page_with_portrait_s']:.2f} s\n"
        f"  all {found['keyframes']} keyframes, loading included: {found['strip_s']:.2f} s\n"
        f"  first changed keyframe: {told('first_keyframe_s')}\n"
        f"  all of the changed clip: {told('clip_s')}"
    )


def _total(costs: dict[str, dict[str, float]]) -> float:
    return sum(cost["tflops"] for cost in costs.values())


def _print_counts(
    title: str, costs: dict[str, dict[str, float]], exact: dict[str, dict[str, float]]
) -> None:
    typer.echo(f"{title}: counted for a second of video")
    for name, cost in costs.items():
        typer.echo(f"  {name}: {cost['passes']:.1f} passes, {cost['tflops']:.3g} TFLOP")
    share = _total(costs) / _total(exact)
    typer.echo(f"  in all: {_total(costs):.3g} TFLOP, {share:.2f} of exact")


def _print_row(row: dict[str, Any]) -> None:
    typer.echo(
        f"{row['preset']}, {row['device']}, {row['dtype']}, memory {row['memory']}, "
        f"chunk {row['chunk']}: {row['total']:.3g} s per second of video"
    )
    for stage, spent in row["stages"].items():
        typer.echo(f"  {stage}: {spent:.3g} s")
    gpu = f", of the GPU {row['gpu_peak_gb']:.2f} GB" if "gpu_peak_gb" in row else ""
    typer.echo(f"  loading: {row['load_s']:.2f} s; memory: {row['peak_gb']:.2f} GB{gpu}")


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for costs in report["counted"].values():
            _total(costs)
        [[row[name] for name in (*_KEY, "total")] for row in report["measured"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"not a report of keyface bench: {path}", "keyface bench --json prints one"
        ) from error
    return dict(report)


def _compare(report: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare this run with another, row by row; on stderr, beside the report."""
    for preset, costs in report["counted"].items():
        if preset in other["counted"]:
            share = _total(costs) / _total(other["counted"][preset])
            console.say(f"{preset}: FLOPs: {share:.2f} of the other's")
    rows = {tuple(row[name] for name in _KEY): row for row in other["measured"]}
    for row in report["measured"]:
        before = rows.get(tuple(row[name] for name in _KEY))
        if before is not None:
            named = ", ".join(str(row[name]) for name in _KEY)
            console.say(f"{named}: {row['total'] / before['total']:.2f} of the other's time")
    if report["measured"] and other["measured"] and not rows:
        raise KeyFaceError("nothing to compare")
