"""The options of `keyface train`: what they mean, and how they, files and recipes add up."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from keyface_cli.commands.options import Command, extended, in_panel, said
from keyface_cli.config import ModelConfig
from keyface_cli.errors import ConfigError
from keyface_cli.training.options import (
    FIELDS,
    MACHINE,
    OPTIONS,
    RECIPE,
    RECIPES,
    RUN,
    DiffusionOptions,
    TrainOptions,
    Value,
    choose,
    parse,
    read_toml,
    write_toml,
)

_run, _recipe, _machine = map(in_panel, (RUN, RECIPE, MACHINE))
DataOption = Annotated[Path, _run(metavar="DIR", help="Training data, from keyface dataset.")]
RunOption = Annotated[
    Path,
    _run("--output", "-o", metavar="RUN", help="The run: a model folder that the stages fill."),
]
ForceOption = Annotated[bool, _run("--force", "-f", help="Replace what is there.")]
ThreadsOption = Annotated[
    int | None, _machine(min=1, help="CPU threads.", show_default="all cores")
]


# what a training takes besides the fields of `TrainOptions` and `DiffusionOptions`
_RUN = {
    "data": DataOption,
    "run": RunOption,
    "resume": Annotated[
        bool, _run("--resume", help="Continue exactly where the run stopped, with its options.")
    ],
    "threads": ThreadsOption,
    "force": ForceOption,
    "start_from": Annotated[
        str | None,
        _run(
            "--from",
            metavar="MODEL",
            help="Start from a model (a folder or a name), or from another network of the run, "
            "such as keyframe_unet.",
            show_default="random weights",
        ),
    ],
    "preset": Annotated[
        str | None,
        _run(
            help="The architecture: keyface, mini or tiny.",
            show_default="the run's, else that of --from, else mini",
        ),
    ],
    "recipe": Annotated[
        str | None,
        _recipe(
            help="Where options begin: paper or mini.",
            show_default="paper for the published architecture, else mini",
        ),
    ],
    "file": Annotated[
        Path | None,
        _recipe(
            "--options",
            metavar="FILE.toml",
            help="Options, a table for each network; a run's own are in RUN/options.",
        ),
    ],
    "chosen": Annotated[
        list[str] | None, _recipe("--set", metavar="NAME=VALUE", help="Any option of such a file.")
    ],
}
_EVERY = ("data", "run", "resume", "updates", "minutes", "batch_size", "seed", "device", "threads")
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
        more: which options it has besides those of every training.
    """
    taken = {}
    for name in (*_EVERY, *more):
        default = False if name in ("resume", "force") else None
        taken[name] = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in ("data", "run") else default,
            annotation=_RUN.get(name) or _field(name),
        )
    return lambda command: extended(command, "asked", taken, _asked)


def _field(name: str) -> Any:
    """Return the annotation of an option that is a field; one that is not given is None."""
    one = replace(OPTIONS[name], shown="the recipe's")
    return Annotated[FIELDS[name] | None, said(name, one)]


def _asked(values: dict[str, Any]) -> Asked:
    own = {one.name for one in fields(Asked)} - {"given"}
    given = {k: v for k, v in values.items() if k not in own and v is not None}
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
