"""`keyface evaluate videos` and `scenes`: methods against true videos, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyface_cli.commands import console, options
from keyface_cli.errors import KeyFaceError
from keyface_cli.plotting import require_matplotlib

if TYPE_CHECKING:
    from keyface_cli.evaluation.pairing import Pair

EXAMPLES = """\
[bold]Examples[/bold]

keyface evaluate videos --generated results --reference truth -o report

keyface evaluate videos --generated a --generated b --method ours --method theirs --reference truth
"""
SCENES_EXAMPLE = """\
[bold]Example[/bold]

keyface evaluate scenes -o scenes --clips 20 --seconds 3

keyface batch scenes/jobs.csv --output-dir ours

keyface evaluate videos --generated ours --reference scenes/reference
"""
_clips, _metrics, _report = map(options.in_panel, ("Clips", "Metrics", "Report"))


def videos(
    generated: Annotated[
        list[Path] | None, _clips(metavar="FOLDER", help="A method's videos; once a method.")
    ] = None,
    reference: Annotated[
        Path | None, _clips(metavar="FOLDER", help="The true videos, of the same names.")
    ] = None,
    method: Annotated[
        list[str] | None,
        _clips(
            metavar="NAME",
            help="What each method is called, in the same order.",
            show_default="its folder's name",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        _clips(
            metavar="FILE.csv",
            help="Pairs in a file instead: columns generated, reference, method, name, emotion "
            "(a curve) and label (a non-speech sound).",
        ),
    ] = None,
    emotions: Annotated[
        Path | None,
        _clips(
            metavar="FOLDER",
            help="The emotion curves that were asked for, NAME.csv.",
            show_default="compare with the true videos",
        ),
    ] = None,
    common: Annotated[
        bool, _clips("--common", help="Use only the names that every folder has.")
    ] = False,
    fps: Annotated[
        float | None,
        _clips(
            min=1.0,
            max=240.0,
            help="Bring all clips to this rate.",
            show_default="each reference's",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        _metrics(
            metavar="NAME,...",
            help="Which: fid, fvd, lipscore, lpips-alex, lpips-vgg, fidelity (PSNR, SSIM), "
            "aesthetic, motion, flow, emotion, nsv, face-similarity, sync, flicker, seams, drift.",
            show_default="all",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        _metrics(
            metavar="NAME=FILE",
            help="A metric's network: inception, i3d, lipreader, alex, vgg, clip, aesthetic, amt, "
            "emotion, nsv or sface.",
            show_default="those that keyface weights pull metrics fetched",
        ),
    ] = None,
    any_weights: Annotated[
        bool, _metrics("--any-weights", help="Accept files whose hash is not the published one.")
    ] = False,
    landmarks: Annotated[
        str,
        _metrics(
            metavar="mtcnn|files|FILE",
            help="For LipScore: our five points (the four-point variant), NAME.landmarks.npy "
            "beside each video, or a FAN network as TorchScript (68 points).",
        ),
    ] = "mtcnn",
    fvd_frames: Annotated[int, _metrics(min=10, help="Frames of a window of FVD.")] = 16,
    fvd_stride: Annotated[int, _metrics(min=1, help="Frames from one to the next.")] = 1,
    published: Annotated[
        Path | None,
        _report(
            metavar="FILE.csv",
            help="Published figures to show beside: columns method, and metrics by name.",
        ),
    ] = None,
    reference_row: Annotated[
        bool, _report(help="Measure the true videos too, where no reference is needed.")
    ] = True,
    output: Annotated[
        Path | None,
        _report(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write report.md, tables, figures of every clip, plots and the worst clips here.",
        ),
    ] = None,
    force: Annotated[bool, _report("--force", "-f", help="Replace a report.")] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    device: options.DeviceOption = "auto",
) -> None:
    """Compare methods' videos with the true ones, and print the table.

    A metric whose weights are absent is named, with how to get them. A video that turns out to
    be damaged is left out and named, and the exit code is 1 when the report is written.
    """
    if quiet:
        console.set_quiet()
    if (pairs is None) == (generated is None):
        raise typer.BadParameter("name the videos with --generated or with --pairs")
    if output is not None:
        require_matplotlib()
    if output is not None and (output / "report.md").exists() and not force:
        raise KeyFaceError(f"{output}: holds a report already", "use --force to replace it")
    from keyface_cli.device import resolve_device
    from keyface_cli.evaluation import registry, report, tables
    from keyface_cli.evaluation.networks.weights import parse_named, weights_folder

    listed = _list_pairs(generated, reference, method, pairs, emotions, common)
    settings = registry.Settings(
        registry.choose_metrics(metrics or []),
        parse_named(weights or []),
        weights_folder(),
        str(resolve_device(device)),
        fvd_frames,
        fvd_stride,
        landmarks,
        not any_weights,
    )
    with console.StageProgress() as progress:
        found = report.evaluate_videos(
            listed,
            settings,
            fps=fps,
            reference_row=reference_row,
            tracks=output / "tracks" if output else None,
            published=published,
            progress=lambda done, total: progress("measure", done, total),
        )
    for note in found.notes:
        console.say(note)
    for one in found.absent:
        console.report("warning", f"absent: {one.metric}: {one.reason}")
        console.report("hint", one.hint)
    if output is not None:
        report.write_report(output, found)
        console.say(f"report: {output / 'report.md'}")
    typer.echo(
        json.dumps(report.describe(found)) if as_json else tables.markdown(found.table), nl=as_json
    )
    if found.failed:
        raise KeyFaceError(
            f"{found.failed} clips could not be read and are not in the table",
            "the notes name them; the rest of the report is whole",
        )


def scenes(
    folder: Annotated[Path, options.writes("FOLDER", "Where the files go.")],
    clips: Annotated[int, typer.Option(min=1, help="How many held-out scenes.")] = 20,
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of each.")] = 3.0,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Pixels of a side, even.")] = 256,
    scenes_seed: options.ScenesSeedOption = 1,
) -> None:
    """Write held-out avatars as files: portraits, sounds, emotion curves and true videos.

    Animate them with keyface batch and any settings, or with another tool, then compare with
    evaluate videos. Needs flite, espeak-ng and festival, which speak the sentences.
    """
    if size % 2:
        raise typer.BadParameter("the size must be even", param_hint="--size")
    from keyface_cli.evaluation.avatars.scenes import write_scenes

    for video in write_scenes(folder, clips, seconds, size, scenes_seed):
        console.say(str(video))
    typer.echo(folder)


def _list_pairs(
    generated: list[Path] | None,
    reference: Path | None,
    method: list[str] | None,
    pairs: Path | None,
    emotions: Path | None,
    common: bool,
) -> list[Pair]:
    from keyface_cli.evaluation.pairing import pair_folders, read_pairs

    if pairs is not None:
        return read_pairs(pairs)
    assert generated is not None
    names = method or [folder.resolve().name for folder in generated]
    if len(names) != len(generated):
        raise typer.BadParameter(f"{len(names)} names for {len(generated)} folders")
    if len(set(names)) != len(names) or "reference" in names:
        raise typer.BadParameter("each method needs a name of its own, other than reference")
    folders = dict(zip(names, generated, strict=True))
    return pair_folders(folders, reference, emotions, common=common)
