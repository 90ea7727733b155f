"""One video from Python: the front door, as `keyface animate` is from the command line."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.jobs.job import Job, default_output
from keyface_cli.jobs.plan import make_plan
from keyface_cli.jobs.runner import ComputeOptions, Listener, Runner
from keyface_cli.keywords import as_options
from keyface_cli.options import Progress


def animate(
    portrait: str | PathLike[str],
    audio: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    vae_dtype: str | None = None,
    memory: str = "auto",
    compile: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Make the face in a portrait speak a recording, and write the video.

    The model is loaded for this one video; for many, load it once with `KeyFacePipeline.load`.

    Args:
        portrait: a picture, or a video of which one frame is taken.
        audio: a recording, or a video with a sound track.
        output: FILE.mp4, .mov, .webm or .gif, or a folder for PNGs; None is PORTRAIT-AUDIO.mp4 in
            the working directory.
        model: a model's name or its folder; None is "keyface" where it is installed, else "mini".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: of the networks: "auto", "float32", "bfloat16" or "float16".
        vae_dtype: of the VAE, the same words; None is what the model says.
        memory: "auto", "high", "balanced" or "low", see `memory`.
        compile: have torch.compile translate the UNets first.
        cluster: the address of a Ray cluster whose machines make the frames, or "local"; None makes
            them here.
        progress: told how far each stage is.
        options: any other option of `keyface animate` by its name, with underscores: the fields of
            `jobs.job.Job`. `force=True` replaces an existing file. What is text on the command line
            may be what it means: see `keywords.as_options`.

    Returns:
        What `keyface animate --json` prints: the "output", its "frames", "fps", "seconds", "width"
        and "height", the "model", the "timings" of each stage in seconds, and more.

    Raises:
        KeyFaceError: a file or an option cannot be used; its `hint` says what to do.
        TypeError: there is no such option.
    """
    sources = Path(portrait), Path(audio)
    target = default_output(*sources) if output is None else Path(output)
    chosen = as_options(Job, options)
    plan = make_plan(Job(portrait=sources[0], audio=sources[1], output=target, **chosen))
    compute = ComputeOptions(device, dtype, vae_dtype, memory, compile)
    checkpoint = Checkpoint.open(resolve_model(model))
    return Runner(checkpoint, compute, Listener(progress), cluster=cluster).run(plan)
