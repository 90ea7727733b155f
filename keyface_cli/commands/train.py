"""`keyface train`: every network of a model, stage by stage, into a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from keyface_cli.commands import console
from keyface_cli.commands.options import DeviceOption, writes
from keyface_cli.commands.train_nsv import nsv
from keyface_cli.commands.train_options import (
    NETWORK,
    Asked,
    DataOption,
    ForceOption,
    RunOption,
    ThreadsOption,
    collect,
    is_main,
    training,
)
from keyface_cli.config import ModelConfig
from keyface_cli.errors import ConfigError, KeyFaceError
from keyface_cli.presets import PRESETS

app = typer.Typer(
    name="train",
    no_args_is_help=True,
    help="Train a model of your own, fine-tune one, or train the bundled one again.",
    epilog="""\
[bold]Examples[/bold]

keyface train keyframes --from keyface --data data -o runs/mine --perceptual vgg16.pth

accelerate launch --num_processes 4 -m keyface_cli train interpolation --data data -o runs/mine
""",
)

SHOWN = 4  # numbers beside a bar
_UNET = (
    *("start_from", *NETWORK, "accumulate", "freeze_temporal", "perceptual_weights"),
    *("compile", "checkpointing"),
)


@app.command()
@training(*_UNET)
def keyframes(asked: Asked) -> None:
    """Train stage one: keyframes from a portrait and sound."""
    _train_unet("keyframes", "keyframes", asked)


@app.command()
@training(*_UNET)
def interpolation(asked: Asked) -> None:
    """Train stage two, the frames between keyframes, and its guide."""
    _train_unet("interpolation", "interpolation", asked)


@app.command()
@training(*_UNET)
def guide(asked: Asked) -> None:
    """Train the guide alone: the beginning of the interpolation's run."""
    _train_unet("guide", "interpolation", asked)


def _train_unet(stage: str, table: str, asked: Asked) -> None:
    from keyface_cli.training.diffusion import COMPONENTS, train_unet

    _begin(asked, COMPONENTS[stage])
    start = _starting_model(asked.start_from)
    config = _config(asked.run, start, asked.preset)
    stored = stage == "guide" or asked.resume
    train, options = collect(table, asked, config, stored=stored)
    with _training(asked, stage) as how:
        try:
            train_unet(
                stage, config, asked.data, asked.run, train, options, start_from=start, **how
            )
        except FileNotFoundError as error:
            raise KeyFaceError(
                str(error), "make it with keyface dataset, then keyface train encode"
            ) from error


@app.command()
@training(*NETWORK)
def vae(asked: Asked) -> None:
    """Train the VAE, in whose latents the UNets work; the first stage."""
    _begin(asked, "vae")
    config = _config(asked.run, None, asked.preset)
    train, _ = collect("vae", asked, config, stored=asked.resume)
    from keyface_cli.training.vae import train_vae

    pools = sorted(asked.data.glob("pictures*.npy"))
    if not pools:
        raise KeyFaceError(f"no pictures in {asked.data}", "make them with keyface dataset avatars")
    with _training(asked, "vae") as how:
        train_vae(config, pools, asked.run, train, **how)


@app.command()
@training(*NETWORK)
def decoder(asked: Asked) -> None:
    """Train the portrait decoder, which moves and paints the portrait; after vae."""
    _begin(asked, "portrait_decoder")
    config = _config(asked.run, None, asked.preset)
    if not config.portrait_decoder:
        raise ConfigError(f"a {config.preset} model has no portrait decoder", "use --preset mini")
    train, _ = collect("decoder", asked, config, stored=asked.resume)
    from keyface_cli.training.portrait_decoder import train_portrait_decoder

    with _training(asked, "decoder") as how:
        train_portrait_decoder(asked.data, config, asked.run, train, **how)


@app.command()
@training("start_from", *NETWORK)
def audio(
    encoder: Annotated[str, typer.Argument(help="wavlm, wav2vec2 or beats.")], asked: Asked
) -> None:
    """Train one audio encoder on the phones and mouth shapes of synthetic speech."""
    start = _starting_model(asked.start_from)
    if isinstance(start, str):
        raise typer.BadParameter("name a model", param_hint="--from")
    config = _config(asked.run, start, asked.preset)
    encoders = sorted({*config.keyframe_encoders, *config.interpolation_encoders})
    if encoder not in encoders:
        raise typer.BadParameter(f"{config.preset} has {', '.join(encoders)}", param_hint="ENCODER")
    _begin(asked, encoder)
    train, _ = collect("audio", asked, config, stored=asked.resume, name=encoder)
    from keyface_cli.training.audio import train_audio

    shards = _scenes(asked.data, "waveforms.npy")
    with _training(asked, encoder) as how:
        train_audio(encoder, config, shards, asked.run, train, start_from=start, **how)


@app.command()
@training("force")
def reader(asked: Asked) -> None:
    """Train a reader of faces from latents, for --set reading=0.05 of the UNets; after encode."""
    _set_threads(asked.threads)
    from keyface_cli.training.latent_reader import FILE, RECIPE, train_reader
    from keyface_cli.training.options import TrainOptions, choose

    options = choose(TrainOptions, RECIPE, asked.given)
    shards = _scenes(asked.data, "latents_runs.npy")
    with _training(asked, "reader", FILE) as how:
        train_reader(shards, asked.run, options, **how)


@app.command()
def encode(
    data: DataOption,
    run: RunOption,
    sampled: Annotated[
        bool,
        typer.Option(
            "--sampled",
            help="Sample the scenes with the run's UNets too: its keyframes for interpolation, "
            "all frames for the portrait decoder.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Encode avatars with the run's VAE and audio encoders, for the UNets."""
    config = _config(run, None, None)
    _set_threads(threads)
    from keyface_cli.device import resolve_device
    from keyface_cli.models.codec import LatentCodec
    from keyface_cli.training.clips import encode_shard, encoded_shards
    from keyface_cli.training.run import load_trained

    place = resolve_device(device)
    vae: Any = load_trained(run, "vae", config).to(place)
    codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
    names = dict.fromkeys((*config.keyframe_encoders, *config.interpolation_encoders))
    encoders = {name: load_trained(run, name, config).to(place) for name in names}
    rendered = {path.parent for path in data.glob("*/runs.npy")}
    for shard in sorted(rendered.difference(encoded_shards(data))):
        console.say(f"encoding {shard}")
        encode_shard(shard, codec, encoders)
    if sampled:
        from keyface_cli.training.sampled import sample_keyframes, sample_shard

        first: Any = load_trained(run, "keyframe_unet", config).to(place)
        second: Any = None
        if (run / "interpolation_unet").is_dir():
            second = load_trained(run, "interpolation_unet", config).to(place)
        for shard in encoded_shards(data):
            console.say(f"sampling {shard}")
            sample_keyframes(shard, config, first)
            if second is not None:
                sample_shard(shard, config, first, second, codec)
    _echo(data)


app.command()(nsv)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    folder: Annotated[Path, writes("FOLDER", "The model to write.")],
    source: Annotated[
        str, typer.Option(help="One sentence on where the weights come from.")
    ] = "trained with keyface train",
    force: ForceOption = False,
) -> None:
    """Copy a run's networks in half precision, without the state of its training."""
    import torch

    from keyface_cli.training.run import export as write

    write(run, folder, torch.float16, source, force=force)
    _echo(folder)


def _config(run: Path, start: str | Path | None, preset: str | None) -> ModelConfig:
    """Choose the architecture: the one asked for, the run's, that of the model to start from."""
    from keyface_cli.checkpoints.checkpoint import MANIFEST, Checkpoint

    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset: {preset}", f"use one of {', '.join(PRESETS)}")
        return PRESETS[preset]
    if (run / MANIFEST).is_file():
        return Checkpoint.open(run, check_files=False).config
    if isinstance(start, Path):
        if (start / "unet").is_dir() and not (start / MANIFEST).is_file():
            return PRESETS["keyface"]  # Stable Video Diffusion's folder, see training/beginning.py
        return Checkpoint.open(start).config
    return PRESETS["mini"]


def _starting_model(name: str | None) -> str | Path | None:
    """Tell a network of the run from a model, which is a folder or has a name."""
    from keyface_cli.checkpoints.checkpoint import COMPONENTS
    from keyface_cli.checkpoints.installed import resolve_model

    return name if name is None or name in COMPONENTS else resolve_model(name)


def _begin(asked: Asked, name: str) -> None:
    """Refuse to train a network again unasked, before anything of the run is changed.

    Raises:
        WeightsError: the run has trained it already.
    """
    from keyface_cli.training.run import refuse_trained

    if not asked.resume and not asked.force:
        refuse_trained(asked.run, name)
    _set_threads(asked.threads)


@contextmanager
def _training(asked: Asked, name: str, file: str = "") -> Iterator[dict[str, Any]]:
    """Give what every training is told: how it begins, and who is told of it; print the result."""
    with console.StageProgress() as progress:

        def report(update: int, total: int, values: Mapping[str, float]) -> None:
            shown = [f"{key} {value:.4g}" for key, value in values.items()]
            progress(f"training {name}", update, total, "  ".join(shown[:SHOWN]))

        yield {"resume": asked.resume, "force": asked.force, "report": report}
    _echo(asked.run / file)


def _scenes(data: Path, holding: str) -> list[Path]:
    shards = sorted(path.parent for path in data.glob(f"*/{holding}"))
    if not shards:
        raise KeyFaceError(f"no scenes in {data}", "make them with keyface dataset avatars")
    return shards


def _echo(path: Path) -> None:
    if is_main():
        typer.echo(path)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
