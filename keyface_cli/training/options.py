"""The options of a training, the two recipes, and the TOML files that hold them.

A file has one table for each network, such as `[keyframes]`; its keys are the fields of
`TrainOptions` and, for the UNets, of `DiffusionOptions`. A run keeps the options of each network
in `options/NAME.toml`, which is such a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from keyface_cli.errors import ConfigError
from keyface_cli.files import write_text
from keyface_cli.options import option, options_of

Value = bool | int | float | str
Options = TypeVar("Options", "TrainOptions", "DiffusionOptions")
RUN, RECIPE, MACHINE = "Run", "Recipe", "Machine"
_SHARE = (0, 1)


def _of(default: Value, help: str, limits: tuple[float, float] = (0, math.inf), **more: Any) -> Any:
    """Return a field for an option; the panel is that of the recipe unless another is named."""
    bounds = limits if type(default) in (int, float) else None
    return option(default, more.pop("panel", RECIPE), help, limits=bounds, **more)


@dataclass(frozen=True)
class TrainOptions:
    """How long, how fast and on what to train; the defaults are those of the bundled model."""

    updates: int = _of(
        10_000, "Updates in all, with those of a run that is resumed.", (1, math.inf)
    )
    minutes: float = _of(math.inf, "Stop and save after this time.")
    batch_size: int = _of(8, "Examples that each process takes at once.", (1, math.inf))
    accumulate: int = _of(1, "Batches in an update, whose gradients are averaged.", (1, math.inf))
    learning_rate: float = _of(5e-4, "At its peak.", _SHARE)
    schedule: str = _of(
        "cosine",
        "After the warm-up: to a twentieth of the rate, or constant.",
        words=("constant", "cosine"),
    )
    warmup: int = _of(200, "Updates of linear warm-up.")
    weight_decay: float = _of(0.01, "Of the weights.")
    beta2: float = _of(0.99, "Of Adam.", (0, 0.999999))
    muon_rate: float = _of(
        -1.0,
        "Peak rate of Muon, which trains the inner matrices, see `optim`; 0 is AdamW for "
        "everything, and a negative one the stage's own choice.",
        (-1, 1024),
    )
    ema_decay: float = _of(
        0.995, "Of the averaged network, which is what is saved; 0 for none.", (0, 0.999999)
    )
    clip_norm: float = _of(1.0, "Greatest norm of a gradient; 0 for no clipping.")
    seed: int = _of(0, "Of weights, order and noise.")
    save_every: int = _of(200, "Updates between states.", (1, math.inf))
    log_every: int = _of(20, "Updates between rows of the log.", (1, math.inf))
    sample_every: int = _of(1000, "Updates between samples of held-out clips; 0 for none.")
    precision: str = _of(
        "bfloat16",
        "float32, bfloat16 or float16, of the forward pass; weights stay in float32.",
        words=("float32", "bfloat16", "float16"),
        panel=MACHINE,
    )
    device: str = _of("auto", "auto, cpu, cuda, cuda:N, mps.", panel=MACHINE)
    draw_threads: int = _of(
        -1, "That prepare batches; 0 is none; negative: as many as pay.", (-1, 1024)
    )
    checkpointing: bool = _of(
        False,
        "Less memory, a third more time: activations are computed twice.",
        panel=MACHINE,
        off="--no-checkpointing",
    )
    compile: bool = _of(False, "Compile the network.", panel=MACHINE, off="--no-compile")


@dataclass(frozen=True)
class DiffusionOptions:
    """What a UNet learns from; the defaults are the published ones for keyframes."""

    log_sigma_mean: float = _of(1.0, "Of the noise levels.", (-100, 100))
    log_sigma_std: float = _of(1.2, "Of the noise levels.")
    wide_sigmas: float = _of(
        0.0,
        "Share of clips whose sigma is drawn log-uniformly over the whole range that sampling "
        "visits; the log-normal seldom reaches either end of it.",
        _SHARE,
    )
    high_sigmas: float = _of(
        0.0,
        "Share of clips whose sigma is drawn log-uniformly from 50 to 700, where sampling begins: "
        "with very few steps nearly all that is seen is decided there.",
        _SHARE,
    )
    weight_limit: float = _of(math.inf, "Of (sigma^2 + 1) / sigma^2.")
    lower_half: float = _of(3.0, "lambda_lower; 2 for interpolation.")
    mouth: float = _of(1.0, "Factor of the cells around the mouth, on top of the lower half's.")
    eyes: float = _of(1.0, "Factor of the cells around eyes and brows.")
    pixel: float = _of(0.0, "Weight of the squared error of one decoded frame; published: 1.")
    perceptual: float = _of(0.0, "Weight of the perceptual distance of that frame; published: 1.")
    perceptual_weights: str = _of(
        "",
        "Weights of the perceptual loss: VGG16 of ImageNet, for LPIPS.",
        metavar="FILE",
        short="--perceptual",
    )
    reading: float = _of(
        0.0,
        "Weight of the difference between what a `LatentReader` reads from denoised and true "
        "latents.",
    )
    reading_weights: str = _of("", "File of the reader; none is the run's own.")
    drop_identity: float = _of(0.1, "Share of clips without the portrait.", _SHARE)
    drop_audio: float = _of(0.2, "Share of clips without the sound.", _SHARE)
    from_rest: float = _of(
        0.0,
        "Share of the drawn avatars' clips of keyframes whose identity is the head at rest.",
        _SHARE,
    )
    sampled_keyframes: float = _of(
        0.0,
        "Share of the drawn avatars' runs that lie between keyframes as stage one samples them, "
        "made by `keyface train encode --sampled`; the truth that is asked for stays.",
        _SHARE,
    )
    freeze_temporal: bool = _of(
        False, "Leave the layers along time as they are, as published.", off="--all-layers"
    )
    guide_share: float = _of(
        1 / 16,
        "Of an interpolation run, after which it leaves the guide; 0 keeps the one there is.",
        _SHARE,
    )
    held_out: int = _of(0, "Clips that are kept from training, for samples.")


_PAPER_TRAIN: dict[str, Value] = {
    "updates": 100_000,  # the published number is not known
    "batch_size": 1,
    "learning_rate": 1e-5,
    "schedule": "constant",
    "warmup": 1000,
    "beta2": 0.999,
    "muon_rate": 0.0,
    "ema_decay": 0.0,
    "clip_norm": 0.0,
    "save_every": 1000,
    "checkpointing": True,
}
_MINI_UNET: dict[str, Value] = {
    "updates": 4000,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup": 100,
    "ema_decay": 0.99,
    "save_every": 100,
    "wide_sigmas": 0.1,
    "high_sigmas": 0.75,  # it is sampled in very few steps
    "weight_limit": 10.0,
    "mouth": 4.0,
    "eyes": 4.0,  # small, and hardly anything else shows arousal
}
_DECODER: dict[str, Value] = {
    "updates": 4000,
    "batch_size": 6,
    "learning_rate": 6e-4,
    "warmup": 100,
    "ema_decay": 0.99,
    "save_every": 100,
    "sample_every": 0,
}
# recipe -> network -> what differs from the defaults above
RECIPES: dict[str, dict[str, dict[str, Value]]] = {
    # what the published model was trained with (stages/README.md, Training)
    "paper": {
        "keyframes": _PAPER_TRAIN
        | {"pixel": 1.0, "perceptual": 1.0, "freeze_temporal": True, "held_out": 4},
        "interpolation": _PAPER_TRAIN | {"lower_half": 2.0, "freeze_temporal": True, "held_out": 4},
        "vae": {"updates": 8000, "batch_size": 4, "learning_rate": 1e-4, "warmup": 100},
        "decoder": _DECODER,
        "audio": {"updates": 1400, "learning_rate": 1e-4, "warmup": 100, "ema_decay": 0.99},
    },
    # for a model like the bundled one
    "mini": {
        "keyframes": _MINI_UNET
        | {"drop_identity": 0.02, "drop_audio": 0.1, "from_rest": 0.5, "held_out": 4},
        # its guidance is autoguidance, where both networks have every condition
        "interpolation": _MINI_UNET
        | {
            "lower_half": 2.0,
            "drop_identity": 0.0,
            "drop_audio": 0.0,
            "sampled_keyframes": 0.6,
            "held_out": 4,
        },
        "vae": {"updates": 8000, "batch_size": 4, "learning_rate": 4e-4, "warmup": 100},
        "decoder": _DECODER,
        "audio": {
            "updates": 3000,
            "batch_size": 12,
            "learning_rate": 1e-3,
            "muon_rate": 0.02,
            "warmup": 100,
            "ema_decay": 0.99,
        },
    },
}
FIELDS = {
    name: get_type_hints(cls)[name]
    for cls in (TrainOptions, DiffusionOptions)
    for name in options_of(cls)
}
OPTIONS = options_of(TrainOptions) | options_of(DiffusionOptions)


def choose(cls: type[Options], *layers: Mapping[str, Value]) -> Options:
    """Build one of the two option classes; a later layer's value replaces an earlier one's.

    Args:
        cls: `TrainOptions` or `DiffusionOptions`; keys of the other one are passed over.
        layers: names and values, as from `RECIPES`, `read_toml` and the command line.

    Raises:
        ConfigError: an unknown name, a value of another type or out of its range.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            checked = _check(name, value)
            if name in {field.name for field in dataclasses.fields(cls)}:
                values[name] = checked
    return cls(**values)


def read_toml(path: Path, table: str) -> dict[str, Value]:
    """Read the options of one network from a file.

    Args:
        path: of the file.
        table: "vae", "decoder", "audio", "keyframes" or "interpolation"; empty where the file has
            none.

    Raises:
        ConfigError: the file is missing, no TOML, or has a key that there is not.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read options: {path}: {error}") from error
    for name, content in tables.items():
        if name not in RECIPES["paper"] or not isinstance(content, dict):
            raise ConfigError(
                f"{path}: not a table of options: {name}", f"use {', '.join(RECIPES['paper'])}"
            )
        for key, value in content.items():
            _check(key, value, f"{path}: ")
    found: dict[str, Value] = tables.get(table, {})
    return found


def write_toml(path: Path, table: str, *options: TrainOptions | DiffusionOptions) -> None:
    """Write options so that `read_toml` gives them back; the file is whole or the old one."""
    lines = [f"[{table}]"]
    for part in options:
        for name, value in dataclasses.asdict(part).items():
            lines.append(f"{name} = {_toml(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n", ConfigError)


def parse(text: str) -> tuple[str, Value]:
    """Read one NAME=VALUE, the value as in TOML; a word without quotes is taken for text.

    Raises:
        ConfigError: there is no such option, or its value is of another type.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"not NAME=VALUE: {text}")
    name = name.strip()
    if FIELDS.get(name) is str:
        return name, _check(name, value.strip())
    try:
        return name, _check(name, tomllib.loads(f"x = {value}")["x"])
    except tomllib.TOMLDecodeError as error:
        _check(name, value)  # names an unknown option first
        raise ConfigError(f"{name}: not a value: {value}") from error


def _check(name: str, value: Any, where: str = "") -> Value:
    """Return the value as its field's type."""
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(FIELDS)}"
        raise ConfigError(f"{where}unknown option: {name}", hint)
    kind = FIELDS[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where}{name}: expected {kind.__name__}, found {value!r}")
    words = OPTIONS[name].words
    if words and value not in words:
        raise ConfigError(f"{where}{name}: {value}", f"use {', '.join(words)}")
    low, high = OPTIONS[name].limits or (0, math.inf)
    if kind in (int, float) and not low <= value <= high:
        raise ConfigError(f"{where}{name} must be from {low} to {high}: {value}")
    return value  # type: ignore[no-any-return]


def _toml(value: Value) -> str:
    if isinstance(value, float):
        return repr(value)  # inf is a float of TOML too
    return json.dumps(value, ensure_ascii=False)
