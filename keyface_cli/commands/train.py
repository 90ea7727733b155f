"""`keyface train`: every network of a model, stage by stage, into a run folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.commands import console
from keyface_cli.config import PRESETS, ModelConfig
from keyface_cli.errors import ConfigError, KeyFaceError

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    help="Train a model of your own, or the bundled one again.",
    epilog="""\
[bold]Examples[/bold]

keyface train data -o runs/data --scenes 2000

keyface train vae --data runs/data -o runs/mine

keyface train audio wavlm --data runs/data -o runs/mine
""",
)

DataOption = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Training data, made by keyface train data.")
]
RunOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="RUN", help="The run: a model folder that the stages fill."
    ),
]
PresetOption = Annotated[str, typer.Option(help="The architecture: mini or tiny.")]
UpdatesOption = Annotated[int, typer.Option(min=1, help="Updates in all.")]
MinutesOption = Annotated[
    float | None,
    typer.Option(min=0.01, help="Stop and save after this time.", show_default="no limit"),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Examples in an update.")]
RateOption = Annotated[
    float, typer.Option("--learning-rate", min=1e-8, max=1.0, help="At its peak.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of weights, order and noise.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")
]


@app.command()
def data(
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the data goes.")
    ],
    scenes: Annotated[int, typer.Option(min=1, help="Scenes of 7 s, one avatar each.")] = 2000,
    pictures: Annotated[int, typer.Option(min=64, help="Single pictures for the VAE.")] = 5000,
    shard: Annotated[int, typer.Option(min=1, help="Scenes in a shard.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 1,
    preset: PresetOption = "mini",
) -> None:
    """Make speaking avatars to train on; needs flite, espeak-ng and festival.

    A shard that is there already is kept, so the same command goes on where it was stopped.
    """
    config = _config(preset)
    from keyface_cli.training.pictures import render_pool
    from keyface_cli.training.scenes import render_frames, write_scenes

    pool = folder / "pictures.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if not pool.exists():
        console.say(f"rendering {pictures} pictures")
        render_pool(pool, pictures, config.resolution, seed)
    for index in range(math.ceil(scenes / shard)):
        target = folder / f"{index:03d}"
        count = min(shard, scenes - index * shard)
        # scene seeds of different shards must not meet
        first = (seed * 1000 + index) * 10_000
        if not (target / "waveforms.npy").exists():
            console.say(f"speaking {count} scenes of shard {index}")
            write_scenes(target, count, first)
        if not (target / "runs.npy").exists():
            console.say(f"rendering shard {index}")
            render_frames(target, first, config.resolution)
    typer.echo(folder)


@app.command()
def vae(
    data: DataOption,
    run: RunOption,
    preset: PresetOption = "mini",
    updates: UpdatesOption = 8000,
    minutes: MinutesOption = None,
    batch_size: BatchOption = 4,
    learning_rate: RateOption = 4e-4,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    train_encoder: Annotated[
        bool, typer.Option(help="Let the encoder leave the linear code that it starts as.")
    ] = False,
    threads: ThreadsOption = None,
) -> None:
    """Train the VAE: the code of pictures that the UNets work in. The first stage."""
    config = _config(preset)
    _set_threads(threads)
    from keyface_cli.training.loop import TrainOptions
    from keyface_cli.training.vae import train_vae

    pools = sorted(data.glob("pictures*.npy"))
    if not pools:
        raise KeyFaceError(f"no pictures in {data}", "make them with keyface train data")
    options = TrainOptions(
        updates, minutes or math.inf, batch_size, learning_rate, warmup=100, seed=seed
    )
    train_vae(config, pools, run, options, resume=resume, freeze_encoder=not train_encoder)
    typer.echo(run)


@app.command()
def audio(
    encoder: Annotated[str, typer.Argument(help="wavlm, wav2vec2 or beats.")],
    data: DataOption,
    run: RunOption,
    preset: PresetOption = "mini",
    updates: UpdatesOption = 1400,
    minutes: MinutesOption = None,
    batch_size: BatchOption = 8,
    learning_rate: RateOption = 1e-3,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Train one audio encoder on the phones and mouth shapes of synthetic speech."""
    config = _config(preset)
    heard = sorted({*config.keyframe_encoders, *config.interpolation_encoders})
    if encoder not in heard:
        raise typer.BadParameter(f"{preset} has {', '.join(heard)}", param_hint="ENCODER")
    _set_threads(threads)
    from keyface_cli.training.audio import train_audio
    from keyface_cli.training.loop import TrainOptions

    shards = sorted(path.parent for path in data.glob("*/waveforms.npy"))
    if not shards:
        raise KeyFaceError(f"no scenes in {data}", "make them with keyface train data")
    options = TrainOptions(
        updates,
        minutes or math.inf,
        batch_size,
        learning_rate,
        warmup=100,
        ema_decay=0.99,
        seed=seed,
    )
    train_audio(encoder, config, shards, run, options, resume=resume)
    typer.echo(run)


@app.command()
def encode(
    data: DataOption, run: RunOption, preset: PresetOption = "mini", threads: ThreadsOption = None
) -> None:
    """Encode the data's pictures and sound with the run's VAE and encoders, for the UNets."""
    config = _config(preset)
    _set_threads(threads)
    from keyface_cli.models.vae import LatentCodec
    from keyface_cli.training.clips import encode_shard, encoded_shards
    from keyface_cli.training.run import load_trained

    vae: Any = load_trained(run, "vae", config)
    codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
    names = dict.fromkeys((*config.keyframe_encoders, *config.interpolation_encoders))
    encoders = {name: load_trained(run, name, config) for name in names}
    rendered = {path.parent for path in data.glob("*/runs.npy")}
    for shard in sorted(rendered.difference(encoded_shards(data))):
        console.say(f"encoding {shard}")
        encode_shard(shard, codec, encoders)
    typer.echo(data)


@app.command()
def unet(
    stage: Annotated[str, typer.Argument(help="keyframes or interpolation.")],
    data: DataOption,
    run: RunOption,
    preset: PresetOption = "mini",
    updates: UpdatesOption = 4000,
    minutes: MinutesOption = None,
    batch_size: BatchOption = 4,
    learning_rate: RateOption = 1e-3,
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="COMPONENT",
            help="Start from another network of the run, such as keyframe_unet.",
        ),
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Train the UNet of one stage; the interpolation's weaker guide comes with it."""
    if stage not in ("keyframes", "interpolation"):
        raise typer.BadParameter("use keyframes or interpolation", param_hint="STAGE")
    config = _config(preset)
    _set_threads(threads)
    from keyface_cli.training.clips import encoded_shards
    from keyface_cli.training.diffusion import MINI_LOSS, train_unet
    from keyface_cli.training.loop import TrainOptions

    if not encoded_shards(data):
        raise KeyFaceError(f"nothing is encoded in {data}", "run keyface train encode first")
    options = TrainOptions(
        updates,
        minutes or math.inf,
        batch_size,
        learning_rate,
        warmup=100,
        ema_decay=0.99,
        seed=seed,
        save_every=100,
    )
    train_unet(
        stage, config, data, run, options, MINI_LOSS[stage], resume=resume, start_from=start_from
    )
    typer.echo(run)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The model to write.")
    ],
    source: Annotated[
        str, typer.Option(help="One sentence on where the weights come from.")
    ] = "trained with keyface train",
) -> None:
    """Copy a run's networks in half precision, without the state of its training."""
    import torch

    from keyface_cli.training.run import export as write

    write(run, folder, torch.float16, source)
    typer.echo(folder)


def _config(preset: str) -> ModelConfig:
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset: {preset}", f"use one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
