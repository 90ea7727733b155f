"""`keyface emotion preview`: the keyframes of a curve as one picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.commands import console, options
from keyface_cli.commands.emotion_options import CurveArgument
from keyface_cli.errors import VideoError
from keyface_cli.files import check_free
from keyface_cli.jobs.job import Job
from keyface_cli.jobs.plan import Plan, make_plan, read
from keyface_cli.jobs.runner import ComputeOptions, Runner
from keyface_cli.options import options_of

# of animate: what decides how keyframes look, and who signs them
_OF_VIDEOS = {
    *("paste_back", "size", "fps", "crf", "audio_offset", "chunk", "autoguidance"),
    *("emotion", "restart", "keep_job", "keyframes_only"),
}
CHOICES = tuple(name for name in options_of(Job) if name not in _OF_VIDEOS)


@options.taking(Job, *CHOICES)
def preview(
    curve: CurveArgument,
    audio: Annotated[
        Path, typer.Option("--audio", "-a", metavar="AUDIO", help="The recording it belongs to.")
    ],
    portrait: Annotated[
        Path, typer.Option("--portrait", "-p", metavar="PORTRAIT", help="Whose face shows it.")
    ],
    output: Annotated[Path, options.writes("FILE.png", "The picture to write.")],
    compare: Annotated[
        str | None,
        typer.Option(metavar="CURVE", help="Another curve, whose keyframes are shown above."),
    ] = None,
    thumb: Annotated[
        int, typer.Option("--side", min=32, max=1024, help="Pixels of each keyframe's side.")
    ] = 128,
    columns: Annotated[
        int, typer.Option(min=1, max=200, help="Keyframes beside each other; more go on below.")
    ] = 10,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    model: options.ModelOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    vae_dtype: options.VaeDtypeOption = None,
    memory: options.MemoryOption = "auto",
    *,
    choices: dict[str, Any],
) -> None:
    """Write the keyframes of a curve as a strip: what animate would show, sooner."""
    from keyface_cli.emotion.write import to_record

    if quiet:
        console.set_quiet()
    if output.suffix.lower() != ".png":
        raise VideoError(f"{output}: the picture must end in .png")
    curves = [curve] if compare is None else [compare, curve]
    files = [Path(one) for one in curves if Path(one).suffix]
    check_free(output, force=force, inputs=[audio, portrait, *files])
    # a video that is never made: its keyframes are
    hidden = output.with_name(f".{output.stem}.mp4")
    plans = [
        make_plan(Job(portrait=portrait, audio=audio, output=hidden, emotion=one, **choices))
        for one in curves
    ]
    checkpoint = Checkpoint.open(resolve_model(model))
    compute = ComputeOptions(device, dtype, vae_dtype, memory)
    runner = Runner(checkpoint, compute, console.Terminal(), is_default=model is None)
    track = _draw(plans, runner, output, (thumb, columns))
    if as_json:
        typer.echo(
            json.dumps({"output": str(output), "model": checkpoint.name, **to_record(*track)})
        )
    else:
        typer.echo(output)


def _draw(plans: list[Plan], runner: Runner, output: Path, look: tuple[int, int]) -> Any:
    """Sample and write; return the last plan's curve and its number of frames."""
    from keyface_cli.editor.picture import Row, draw_strips, save_strip
    from keyface_cli.editor.strip import Strip
    from keyface_cli.jobs.signing import mark_of

    many = [read(plan, runner.checkpoint) for plan in plans]
    inputs, plan = many[-1], plans[-1]
    pipeline = runner.load(encoders=inputs.features is None)
    from keyface_cli.jobs.make_video import describe_job, seal_of

    rows: list[Row] = []
    N = len(inputs.emotion)
    with console.StageProgress() as progress:
        strip = Strip(inputs, pipeline, plan.job.generation)
        count, total = strip.timeline.num_keyframes, strip.timeline.num_keyframes * len(plans)
        for one, given in zip(plans, many, strict=True):
            title = "" if len(plans) == 1 else Path(one.job.emotion).name
            pictures = []
            for keyframe in range(count):
                pictures.append(strip.picture(keyframe, given.emotion))
                progress("keyframes", len(rows) * count + keyframe + 1, total)
            rows.append(Row(title, given.curve.at_keyframes(N), pictures))
    sheet = draw_strips(rows, *look)
    metadata = describe_job(plan, inputs, pipeline)
    named = replace(plan, job=replace(plan.job, output=output))
    save_strip(sheet, output, metadata, mark_of(plan.job), seal_of(named, inputs, metadata))
    return inputs.curve, N
