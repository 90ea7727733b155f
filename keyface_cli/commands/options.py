"""The options of commands: those that are fields of a dataclass, and those that many share."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from keyface_cli.options import Option, flag, options_of

Command = Callable[..., None]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_MODEL, _MACHINE, _OUTPUT = "Model", "Machine", "Output"
_PANELS = (_OUTPUT, "Portrait", "Sound", _MODEL, _MACHINE)  # as the help lists them


def in_panel(panel: str) -> Callable[..., Any]:
    """Return `typer.Option` for the options that the help lists under one heading."""
    return partial(typer.Option, rich_help_panel=panel)


def writes(metavar: str, help: str, **more: Any) -> Any:
    """Return the option that says where a command writes."""
    return typer.Option("--output", "-o", metavar=metavar, help=help, **more)


_output, _model, _machine = map(in_panel, (_OUTPUT, _MODEL, _MACHINE))


def taking(kind: type[Any], *names: str) -> Callable[[Command], Command]:
    """Give a command the options that are fields of a dataclass (see `options.Option`).

    Args:
        kind: the dataclass.
        names: which of its options; none named are all of them.

    Returns:
        A decorator for a command that takes their values as a dictionary, `choices`.
    """
    table, hints = options_of(kind), get_type_hints(kind)
    defaults = {one.name: one.default for one in dataclasses.fields(kind)}
    taken = {
        name: inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults[name],
            annotation=Annotated[hints[name], said(name, table[name])],
        )
        for name in names or table
    }

    def decorate(command: Command) -> Command:
        return extended(command, "choices", taken, dict, order=_panel)

    return decorate


def extended(
    command: Command,
    name: str,
    taken: Mapping[str, inspect.Parameter],
    make: Callable[[dict[str, Any]], Any],
    order: Callable[[inspect.Parameter], int] = lambda _: 0,
) -> Command:
    """Give a command several parameters in place of one.

    Args:
        command: of Typer's.
        name: the one.
        taken: the others, by name.
        make: the value of the one, of those of the others.
        order: which come first in the help.
    """

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{name: make({one: given.pop(one) for one in taken})}, **given)

    own = inspect.signature(command, eval_str=True)
    kept = [one for one in own.parameters.values() if one.name != name]
    together = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in kept]
    together = sorted([*together, *taken.values()], key=order)
    run.__annotations__ = {one.name: one.annotation for one in together}
    run.__signature__ = own.replace(parameters=together)  # type: ignore[attr-defined]
    return run


def _panel(parameter: inspect.Parameter) -> int:
    """The place of a parameter's panel in the help; what is in none comes first."""
    said = next(iter(getattr(parameter.annotation, "__metadata__", ())), None)
    panel = getattr(said, "rich_help_panel", None)
    return _PANELS.index(panel) if panel in _PANELS else -1


def said(name: str, one: Option) -> Any:
    """Return what Typer is to make of an option, under the name of a field."""
    low, high = one.limits or (None, None)
    return typer.Option(
        f"{flag(name)}/{one.off}" if one.off else flag(name),
        *([one.short] if one.short else []),
        min=low,
        max=None if high == math.inf else high,
        metavar=one.metavar,
        help=one.help,
        show_default=one.shown or True,
        callback=_one_of(one.words) if one.words else None,
        rich_help_panel=one.panel,
    )


def _one_of(words: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is not None and value not in words:
            raise typer.BadParameter(f"use {', '.join(map(str, words))}")
        return value

    return check


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise typer.BadParameter("use auto, cpu, cuda, cuda:N or mps")
    return name


OutputOption = Annotated[
    Path | None,
    _output(
        "--output",
        "-o",
        metavar="FILE.mp4|.mov|.webm|.gif|FOLDER|-",
        help="The video to write: its suffix says which kind. Without one it is a folder of PNGs; "
        "- writes raw RGB frames to a pipe.",
        show_default="PORTRAIT-AUDIO.mp4 in this folder",
    ),
]
ForceOption = Annotated[bool, _output("--force", "-f", help="Replace an existing file.")]
JsonOption = Annotated[
    bool,
    _output("--json", help="Print one JSON object that describes the result instead of its path."),
]
QuietOption = Annotated[
    bool, _output("--quiet", "-q", help="No progress, only warnings and errors.")
]
ModelOption = Annotated[
    str | None,
    _model(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="A model's name, or its folder.",
        show_default="keyface where it is installed, else mini",
    ),
]
ScenesSeedOption = Annotated[
    int, typer.Option(min=1, help="Which scenes and heads; training uses none of them.")
]
PhotographsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Photographs of faces too: faces.csv, landmarks.npz and the pictures; people 121 to "
        "130 of the neutral set are held out from training.",
    ),
]
ReaderOption = Annotated[
    Path | None,
    typer.Option(
        "--reader",
        metavar="FILE",
        help="The network that reads faces, of keyface evaluate reader.",
        show_default="the package's, or the one that was trained here",
    ),
]
DeviceOption = Annotated[
    str,
    _machine(
        metavar="auto|cpu|cuda|cuda:N|mps",
        callback=_check_device,
        help="Where to compute; auto takes a GPU where there is one.",
    ),
]
DtypeOption = Annotated[
    Dtype, _machine(help="Number format of the networks; auto is the device's fastest.")
]
VaeDtypeOption = Annotated[
    Dtype | None,
    _machine(
        help="Number format of the VAE; auto is that of the networks.",
        show_default="the model's own; published: float32",
    ),
]
MemoryOption = Annotated[
    Literal["auto", "high", "balanced", "low"],
    _machine(
        help="What stays on the GPU: all networks, those of the running stage, or the running "
        "layers; auto is what fits, and where memory runs out the next lower one is taken."
    ),
]
ClusterOption = Annotated[
    str | None,
    _machine(
        metavar="ADDRESS|local",
        help="Share the work out over a Ray cluster, whose machines see the same files under the "
        "same paths: one worker for each GPU, without any for each machine; local: processes of "
        "this machine.",
        show_default=False,
    ),
]
CompileOption = Annotated[
    bool,
    _machine(
        "--compile",
        help="Compile the networks first: minutes once, then faster; for long videos on a GPU.",
    ),
]
