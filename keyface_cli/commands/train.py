"""`keyface train`: every network of a model, stage by stage, into a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyface_cli.commands import console
from keyface_cli.commands.train_display import TrainingDisplay
from keyface_cli.commands.train_nsv import nsv
from keyface_cli.commands.train_options import (
    AccumulateOption,
    BatchOption,
    CheckpointingOption,
    CompileOption,
    DataOption,
    DeviceOption,
    FileOption,
    ForceOption,
    FromOption,
    LayersOption,
    MinutesOption,
    PerceptualOption,
    PrecisionOption,
    PresetOption,
    RateOption,
    RecipeOption,
    ResumeOption,
    RunOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    UpdatesOption,
    collect,
    is_main,
)
from keyface_cli.config import PRESETS, ModelConfig
from keyface_cli.errors import ConfigError, KeyFaceError

if TYPE_CHECKING:
    from keyface_cli.training.options import DiffusionOptions, TrainOptions

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


def _unet_command(stage: str, sentence: str) -> Callable[..., None]:
    """Make the command that trains the UNet of a stage."""

    def command(
        data: DataOption,
        run: RunOption,
        start_from: FromOption = None,
        resume: ResumeOption = False,
        force: ForceOption = False,
        preset: PresetOption = None,
        recipe: RecipeOption = None,
        file: FileOption = None,
        chosen: SetOption = None,
        updates: UpdatesOption = None,
        minutes: MinutesOption = None,
        batch_size: BatchOption = None,
        accumulate: AccumulateOption = None,
        learning_rate: RateOption = None,
        seed: SeedOption = None,
        freeze_temporal: LayersOption = None,
        perceptual: PerceptualOption = None,
        precision: PrecisionOption = None,
        device: DeviceOption = None,
        compile: CompileOption = None,
        checkpointing: CheckpointingOption = None,
        threads: ThreadsOption = None,
    ) -> None:
        given = {
            "updates": updates,
            "minutes": minutes,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "seed": seed,
            "freeze_temporal": freeze_temporal,
            "perceptual_weights": None if perceptual is None else str(perceptual),
            "precision": precision,
            "device": device,
            "compile": compile or None,
            "checkpointing": checkpointing,
        }
        from keyface_cli.training.diffusion import COMPONENTS

        _check_new(run, COMPONENTS[stage], resume, force)
        _set_threads(threads)
        start = _starting_model(start_from)
        config = _config(run, start, preset)
        table = "keyframes" if stage == "keyframes" else "interpolation"
        stored = stage == "guide" or resume
        train, options = collect(table, run, config, stored, recipe, file, given, chosen)
        _train_unet(stage, config, data, run, train, options, start, resume, force)

    command.__doc__ = sentence
    return command


app.command("keyframes")(
    _unet_command("keyframes", "Train stage one: keyframes from a portrait and sound.")
)
app.command("interpolation")(
    _unet_command("interpolation", "Train stage two, the frames between keyframes, and its guide.")
)
app.command("guide")(
    _unet_command("guide", "Train the guide alone: the beginning of the interpolation's run.")
)


def _train_unet(
    stage: str,
    config: ModelConfig,
    data: Path,
    run: Path,
    train: TrainOptions,
    options: DiffusionOptions,
    start: str | Path | None,
    resume: bool,
    force: bool,
) -> None:
    from keyface_cli.training.diffusion import train_unet

    with TrainingDisplay(stage) as display:
        try:
            train_unet(
                stage,
                config,
                data,
                run,
                train,
                options,
                resume=resume,
                force=force,
                start_from=start,
                report=display,
            )
        except FileNotFoundError as error:
            raise KeyFaceError(
                str(error), "make it with keyface dataset, then keyface train encode"
            ) from error
    _echo(run)


@app.command()
def vae(
    data: DataOption,
    run: RunOption,
    resume: ResumeOption = False,
    force: ForceOption = False,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    file: FileOption = None,
    chosen: SetOption = None,
    updates: UpdatesOption = None,
    minutes: MinutesOption = None,
    batch_size: BatchOption = None,
    learning_rate: RateOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    train_encoder: Annotated[
        bool, typer.Option(help="Let the encoder leave the linear code that it starts as.")
    ] = False,
    threads: ThreadsOption = None,
) -> None:
    """Train the VAE, in whose latents the UNets work; the first stage."""
    _check_new(run, "vae", resume, force)
    config = _config(run, None, preset)
    _set_threads(threads)
    given = {
        "updates": updates,
        "minutes": minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "precision": precision,
        "device": device,
    }
    train, _ = collect("vae", run, config, resume, recipe, file, given, chosen)
    from keyface_cli.training.vae import train_vae

    pools = sorted(data.glob("pictures*.npy"))
    if not pools:
        raise KeyFaceError(f"no pictures in {data}", "make them with keyface dataset avatars")
    with TrainingDisplay("vae") as display:
        train_vae(
            config,
            pools,
            run,
            train,
            resume=resume,
            force=force,
            freeze_encoder=not train_encoder,
            report=display,
        )
    _echo(run)


@app.command()
def decoder(
    data: DataOption,
    run: RunOption,
    resume: ResumeOption = False,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    file: FileOption = None,
    chosen: SetOption = None,
    updates: UpdatesOption = None,
    minutes: MinutesOption = None,
    batch_size: BatchOption = None,
    learning_rate: RateOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train the portrait decoder, which moves and paints the portrait; after vae."""
    config = _config(run, None, preset)
    if not config.portrait_decoder:
        raise ConfigError(f"a {config.preset} model has no portrait decoder", "use --preset mini")
    _set_threads(threads)
    given = {
        "updates": updates,
        "minutes": minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "precision": precision,
        "device": device,
    }
    train, _ = collect("decoder", run, config, resume, recipe, file, given, chosen)
    from keyface_cli.training.portrait_decoder import train_portrait_decoder

    with TrainingDisplay("decoder") as display:
        train_portrait_decoder(data, config, run, train, resume=resume, report=display)
    _echo(run)


@app.command()
def audio(
    encoder: Annotated[str, typer.Argument(help="wavlm, wav2vec2 or beats.")],
    data: DataOption,
    run: RunOption,
    start_from: FromOption = None,
    resume: ResumeOption = False,
    force: ForceOption = False,
    preset: PresetOption = None,
    recipe: RecipeOption = None,
    file: FileOption = None,
    chosen: SetOption = None,
    updates: UpdatesOption = None,
    minutes: MinutesOption = None,
    batch_size: BatchOption = None,
    learning_rate: RateOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train one audio encoder on the phones and mouth shapes of synthetic speech."""
    start = _starting_model(start_from)
    if isinstance(start, str):
        raise typer.BadParameter("name a model", param_hint="--from")
    config = _config(run, start, preset)
    encoders = sorted({*config.keyframe_encoders, *config.interpolation_encoders})
    if encoder not in encoders:
        raise typer.BadParameter(f"{config.preset} has {', '.join(encoders)}", param_hint="ENCODER")
    _check_new(run, encoder, resume, force)
    _set_threads(threads)
    given = {
        "updates": updates,
        "minutes": minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "precision": precision,
        "device": device,
    }
    train, _ = collect("audio", run, config, resume, recipe, file, given, chosen, encoder)
    from keyface_cli.training.audio import train_audio

    with TrainingDisplay(encoder) as display:
        shards = _scenes(data, "waveforms.npy")
        train_audio(
            encoder,
            config,
            shards,
            run,
            train,
            resume=resume,
            force=force,
            start_from=start,
            report=display,
        )
    _echo(run)


@app.command()
def reader(
    data: DataOption,
    run: RunOption,
    resume: ResumeOption = False,
    force: ForceOption = False,
    updates: UpdatesOption = None,
    minutes: MinutesOption = None,
    batch_size: BatchOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train a reader of faces from latents, for --set reading=0.05 of the UNets; after encode."""
    _set_threads(threads)
    from keyface_cli.training.latent_reader import FILE, RECIPE, train_reader
    from keyface_cli.training.options import TrainOptions, choose

    given = {
        "updates": updates,
        "minutes": minutes,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
    }
    options = choose(TrainOptions, RECIPE, {k: v for k, v in given.items() if v is not None})
    with TrainingDisplay("reader") as display:
        shards = _scenes(data, "latents_runs.npy")
        train_reader(shards, run, options, resume=resume, force=force, report=display)
    _echo(run / FILE)


@app.command()
def encode(
    data: DataOption,
    run: RunOption,
    sampled: Annotated[
        bool,
        typer.Option(
            "--sampled",
            help="Sample the scenes with the run's UNets too, for the portrait decoder.",
        ),
    ] = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Encode avatars with the run's VAE and audio encoders, for the UNets."""
    config = _config(run, None, None)
    _set_threads(threads)
    from keyface_cli.device import resolve_device
    from keyface_cli.models.codec import LatentCodec
    from keyface_cli.training.clips import encode_shard, encoded_shards
    from keyface_cli.training.run import load_trained

    place = resolve_device(device or "auto")
    vae: Any = load_trained(run, "vae", config).to(place)
    codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
    names = dict.fromkeys((*config.keyframe_encoders, *config.interpolation_encoders))
    encoders = {name: load_trained(run, name, config).to(place) for name in names}
    rendered = {path.parent for path in data.glob("*/runs.npy")}
    for shard in sorted(rendered.difference(encoded_shards(data))):
        console.say(f"encoding {shard}")
        encode_shard(shard, codec, encoders)
    if sampled:
        from keyface_cli.training.sampled import sample_shard

        first: Any = load_trained(run, "keyframe_unet", config).to(place)
        second: Any = load_trained(run, "interpolation_unet", config).to(place)
        for shard in encoded_shards(data):
            console.say(f"sampling {shard}")
            sample_shard(shard, config, first, second, codec)
    _echo(data)


app.command()(nsv)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The model to write.")
    ],
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


def _check_new(run: Path, name: str, resume: bool, force: bool) -> None:
    """Refuse to train a network again unasked, before anything of the run is changed."""
    from keyface_cli.training.run import refuse_trained

    if not resume and not force:
        refuse_trained(run, name)


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
