"""The options of `keyface train`: what they mean, and how they, files and recipes add up."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyface_cli.commands.options import Command, extended
from keyface_cli.config import ModelConfig
from keyface_cli.errors import ConfigError

if TYPE_CHECKING:
    from keyface_cli.training.options import DiffusionOptions, TrainOptions, Value

_WHERE, _HOW, _MACHINE = "Run", "Recipe", "Machine"

DataOption = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Training data, from keyface dataset.", rich_help_panel=_WHERE
    ),
]
RunOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="RUN",
        help="The run: a model folder that the stages fill.",
        rich_help_panel=_WHERE,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="The architecture: keyface, mini or tiny.",
        show_default="the run's, else that of --from, else mini",
        rich_help_panel=_WHERE,
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Start from a model (a folder or a name), or from another network of the run, such "
        "as keyframe_unet.",
        show_default="random weights",
        rich_help_panel=_WHERE,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue exactly where the run stopped, with its options.",
        rich_help_panel=_WHERE,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        "-f",
        help="Replace what is there.",
        rich_help_panel=_WHERE,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Where options begin: paper or mini.",
        show_default="paper for the published architecture, else mini",
        rich_help_panel=_HOW,
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--options",
        metavar="FILE.toml",
        help="Options, a table for each network; a run's own are in RUN/options.",
        rich_help_panel=_HOW,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any option of such a file.", rich_help_panel=_HOW
    ),
]


def _number(*names: str, help: str, panel: str = _HOW, **bounds: Any) -> Any:
    return typer.Option(
        *names, help=help, show_default="the recipe's", rich_help_panel=panel, **bounds
    )


UpdatesOption = Annotated[int | None, _number(help="Updates in all.", min=1)]
MinutesOption = Annotated[float | None, _number(help="Stop and save after this time.", min=0)]
BatchOption = Annotated[
    int | None, _number("--batch-size", help="Examples that each process takes at once.", min=1)
]
AccumulateOption = Annotated[int | None, _number(help="Batches in an update.", min=1)]
RateOption = Annotated[
    float | None, _number("--learning-rate", help="At its peak.", min=1e-9, max=1.0)
]
SeedOption = Annotated[int | None, _number(help="Of weights, order and noise.", min=0)]
PrecisionOption = Annotated[
    str | None, _number(help="float32, bfloat16 or float16.", panel=_MACHINE)
]
DeviceOption = Annotated[str | None, _number(help="auto, cpu, cuda, cuda:N, mps.", panel=_MACHINE)]
CompileOption = Annotated[
    bool | None, typer.Option("--compile", help="Compile the network.", rich_help_panel=_MACHINE)
]
CheckpointingOption = Annotated[
    bool | None,
    _number(
        "--checkpointing/--no-checkpointing",
        help="Less memory, a third more time: activations are computed twice.",
        panel=_MACHINE,
    ),
]
LayersOption = Annotated[
    bool | None,
    _number("--freeze-temporal/--all-layers", help="Leave the layers along time as they are."),
]
PerceptualOption = Annotated[
    Path | None,
    typer.Option(
        "--perceptual",
        metavar="FILE",
        help="Weights of the perceptual loss: VGG16 of ImageNet, for LPIPS.",
        rich_help_panel=_HOW,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads.", show_default="all cores", rich_help_panel=_MACHINE),
]


# what every training takes; and what some take besides, with the defaults of the help
_EVERY = {
    "data": DataOption,
    "run": RunOption,
    "resume": ResumeOption,
    "updates": UpdatesOption,
    "minutes": MinutesOption,
    "batch_size": BatchOption,
    "seed": SeedOption,
    "device": DeviceOption,
    "threads": ThreadsOption,
}
_MORE = {
    "force": ForceOption,
    "start_from": FromOption,
    "preset": PresetOption,
    "recipe": RecipeOption,
    "file": FileOption,
    "chosen": SetOption,
    "accumulate": AccumulateOption,
    "learning_rate": RateOption,
    "freeze_temporal": LayersOption,
    "perceptual_weights": PerceptualOption,
    "precision": PrecisionOption,
    "compile": CompileOption,
    "checkpointing": CheckpointingOption,
}
NETWORK = ("force", "preset", "recipe", "file", "chosen", "learning_rate", "precision")


@dataclass(frozen=True)
class Asked:
    """The options that a training command was given.

    Args:
        data: folder of the training data.
        run: the run folder.
        resume: continue where the run stopped.
        threads: of the CPU; None leaves them as they are.
        start_from: of `--from`.
        force: replace what is there.
        preset: of `--preset`.
        recipe: of `--recipe`.
        file: of `--options`.
        chosen: of `--set`.
        given: the other options, fields of `TrainOptions` and `DiffusionOptions`, where given.
    """

    data: Path
    run: Path
    resume: bool
    threads: int | None
    start_from: str | None = None
    force: bool = False
    preset: str | None = None
    recipe: str | None = None
    file: Path | None = None
    chosen: list[str] | None = None
    given: dict[str, Any] = field(default_factory=dict)


def training(*more: str) -> Callable[[Command], Command]:
    """Give a command the options of a training, as one argument: `asked`.

    Args:
        more: which options it has besides those of every training, see `_MORE`.
    """
    taken = {}
    for name, kind in (_EVERY | {name: _MORE[name] for name in more}).items():
        default = False if name in ("resume", "force") else None
        taken[name] = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in ("data", "run") else default,
            annotation=kind,
        )
    return lambda command: extended(command, "asked", taken, _asked)


def _asked(values: dict[str, Any]) -> Asked:
    own = {one.name for one in fields(Asked)} - {"given"}
    given = {k: v for k, v in values.items() if k not in own and v is not None}
    if given.get("compile") is False:
        del given["compile"]
    if "perceptual_weights" in given:
        given["perceptual_weights"] = str(given["perceptual_weights"])
    return Asked(**{k: v for k, v in values.items() if k in own}, given=given)


def collect(
    table: str, asked: Asked, config: ModelConfig, *, stored: bool, name: str | None = None
) -> tuple[TrainOptions, DiffusionOptions]:
    """Collect the options of a network, the strongest last, and keep them in the run.

    Args:
        table: "vae", "decoder", "audio", "keyframes" or "interpolation".
        asked: the options of the command.
        config: of the model, whose preset chooses the recipe.
        stored: begin with the run's own, where it has some.
        name: of the network, where a table serves several.

    Raises:
        ConfigError: an option or a recipe that there is not.
    """
    from keyface_cli.training.options import (
        RECIPES,
        DiffusionOptions,
        TrainOptions,
        choose,
        parse,
        read_toml,
        write_toml,
    )

    recipe = asked.recipe or ("paper" if config.preset == "keyface" else "mini")
    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe: {recipe}", f"use one of {', '.join(RECIPES)}")
    kept = asked.run / "options" / f"{name or table}.toml"
    layers: list[dict[str, Value]] = [RECIPES[recipe][table]]
    if stored and kept.is_file():
        layers.append(read_toml(kept, table))
    if asked.file is not None:
        layers.append(read_toml(asked.file, table))
    layers.append(asked.given)
    layers.append(dict(parse(text) for text in asked.chosen or []))
    train, diffusion = choose(TrainOptions, *layers), choose(DiffusionOptions, *layers)
    if is_main():
        parts = (train, diffusion) if table in ("keyframes", "interpolation") else (train,)
        write_toml(kept, table, *parts)
    return train, diffusion


def is_main() -> bool:
    """Whether this is the process, of those that accelerate starts, that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"
