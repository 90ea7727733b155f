"""Make the video of a job with a loaded model, going on where an earlier run was ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from keyface_cli.config import FPS, KEYFRAME_STEP
from keyface_cli.emotion.write import save_text, to_metadata, to_record, write_table
from keyface_cli.errors import VideoError
from keyface_cli.files import replacing, unwritable
from keyface_cli.jobs.jobfolder import JobFolder
from keyface_cli.jobs.plan import JobInputs, Plan, digest
from keyface_cli.jobs.signing import mark_of, statement_of
from keyface_cli.options import KeyframeStore, Progress
from keyface_cli.output.compose import Composer, PasteBack, Resize, output_size
from keyface_cli.output.writer import VideoWriter
from keyface_cli.pipeline import KeyFacePipeline
from keyface_cli.version import __version__

_STAGES = ("load", "audio", "keyframes", "interpolation", "decode")
CURVE = "emotion.csv"  # in a job folder: the curve that the video follows


def make_video(
    plan: Plan,
    inputs: JobInputs,
    pipeline: KeyFacePipeline,
    folder: JobFolder | None,
    progress: Progress,
) -> dict[str, Any]:
    """Make the frames that are not finished yet, and the result.

    Args:
        plan: what to make.
        inputs: what its files hold.
        pipeline: the model.
        folder: where what is finished is kept; None where nothing can be, as for a pipe.
        progress: told how far each stage is.

    Returns:
        What was made, for people and programs: "output", "frames", "fps", "seconds", "width",
        "height" and "timings", seconds of each stage; "encode" is how long the frames had to wait
        for ffmpeg, which runs beside the network.

    Raises:
        KeyFaceError: of any kind; what is finished stays in the folder.
    """
    job = plan.job
    chunk = job.chunk or pipeline.chunk
    if folder is not None:
        # a video goes on in the pieces in which it was begun
        chunk = folder.notes.get("chunk", chunk)
        folder.note(chunk=chunk)
        save_text(folder.path / CURVE, write_table(inputs.curve), force=True)
    writer = _writer(
        plan,
        inputs,
        pipeline,
        describe_job(plan, inputs, pipeline),
        num_frames=len(inputs.emotion),
        sound=job.sound,
        ledger=None if folder is None else folder.ledger,
        piece_frames=KEYFRAME_STEP * chunk,
    )
    pipeline.timings.update(dict.fromkeys(_STAGES[1:], 0.0))
    with writer:
        if not writer.complete:
            choices: dict[str, Any] = {"options": replace(job.generation, chunk=chunk)}
            choices |= {"progress": progress, "store": folder, "first_frame": writer.first_frame}
            for piece in pipeline.stream(**inputs.arguments, **choices):
                writer.write(piece)
    if folder is not None and not job.keep_job:
        folder.remove()
    return {
        "output": str(job.output),
        "frames": writer.rate.count,
        "fps": job.fps,
        "seconds": len(inputs.emotion) / FPS,
        "width": writer.composer.size[0],
        "height": writer.composer.size[1],
        "emotion": to_record(inputs.curve, len(inputs.emotion)),
        "timings": {**{s: pipeline.timings[s] for s in _STAGES}, "encode": writer.waited_s},
    }


def make_keyframes(
    plan: Plan,
    inputs: JobInputs,
    pipeline: KeyFacePipeline,
    folder: JobFolder,
    progress: Progress,
) -> Path:
    """Make the keyframes alone and write them as PNGs into a folder of the job's.

    Returns:
        The folder: `frame-000013.png` is frame 13 of the video.

    Raises:
        KeyFaceError: of any kind.
    """
    place = folder.path / "keyframes"
    pictures = pipeline.keyframes(
        **inputs.arguments, options=plan.job.generation, progress=progress, store=folder
    )
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(place, error, VideoError) from error
    for frame, pixels in pictures:
        shown = min(frame, len(inputs.emotion) - 1)  # the last one may lie past the end
        with replacing(place / f"frame-{shown:06d}.png", VideoError) as part:
            Image.fromarray(pixels).save(part, format="png")
    return place


def _composer(plan: Plan, inputs: JobInputs, resolution: int) -> Composer:
    if plan.job.paste_back:
        even = plan.kind.even
        return PasteBack(inputs.picture, inputs.crop, inputs.shown, plan.box, even)
    width, height, _ = output_size((resolution, resolution), plan.box, plan.kind.even)
    return Resize((width, height))


def make_part(
    plan: Plan,
    inputs: JobInputs,
    pipeline: KeyFacePipeline,
    frames: range,
    store: KeyframeStore | None,
    progress: Progress,
) -> None:
    """Make some frames of a job's video, with their sound: the same frames as in the whole.

    Args:
        plan: whose output is a file of its own, of whatever kind but a pipe.
        inputs: what its files hold.
        pipeline: the model.
        frames: which of the model's, one at least.
        store: where keyframes are taken from and put to; None makes them anew.
        progress: told how far each stage is, in frames of the whole video.

    Raises:
        KeyFaceError: of any kind.
    """
    job, metadata = plan.job, describe_job(plan, inputs, pipeline)
    metadata["part_s"] = [frames.start / FPS, frames.stop / FPS]
    start_s = job.start + frames.start / FPS
    sound = replace(job.sound, start_s=start_s, duration_s=len(frames) / FPS)
    writer = _writer(plan, inputs, pipeline, metadata, num_frames=len(frames), sound=sound)
    made = pipeline.stream(
        **inputs.arguments,
        options=job.generation,
        progress=progress,
        first_frame=frames.start,
        last_frame=frames.stop,
        store=store,
    )
    with writer:
        for piece in made:
            writer.write(piece)


def _writer(
    plan: Plan,
    inputs: JobInputs,
    pipeline: KeyFacePipeline,
    metadata: dict[str, Any],
    **rest: Any,
) -> VideoWriter:
    """Return what writes a job's output as it asks; `rest` is as `VideoWriter` has it."""
    job, R = plan.job, pipeline.config.resolution
    return VideoWriter(
        job.output,
        size=(inputs.shown, inputs.shown),
        crf=job.crf,
        metadata=metadata,
        mark=mark_of(job),
        seal=seal_of(plan, inputs, metadata),
        force=job.force,
        fps=job.fps,
        composer=_composer(plan, inputs, R),
        **rest,
    )


def seal_of(
    plan: Plan, inputs: JobInputs, metadata: dict[str, Any]
) -> Callable[[Path], None] | None:
    """What signs the finished result, where it is to be signed."""
    signer = plan.signer
    if signer is None:
        return None
    statement = statement_of(plan.job, inputs.picture, plan.hashes, metadata)
    return lambda part: signer.sign(part, plan.job.output.suffix.lower(), statement)


def describe_job(plan: Plan, inputs: JobInputs, pipeline: KeyFacePipeline) -> dict[str, Any]:
    """Return the metadata of a result: how it was made."""
    job, name = plan.job, pipeline.checkpoint.name
    recipe = plan.recipe(pipeline.checkpoint)
    return {
        "tool": f"keyface {__version__}",
        "model": name,
        "seed": job.seed,
        **asdict(job.sampling(pipeline.config)),
        "emotion": Path(job.emotion).name,
        **to_metadata(inputs.curve),
        "portrait_sha256": plan.hashes["portrait"],
        "audio_sha256": plan.hashes["recording"],
        "model_sha256": recipe["model"],
        "job": digest(recipe),
        "command": job.command(name),
    }
