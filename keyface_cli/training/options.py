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

Value = bool | int | float | str
Options = TypeVar("Options", "TrainOptions", "DiffusionOptions")
PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainOptions:
    """How long, how fast and on what to train; the defaults are those of the bundled model."""

    updates: int = 10_000  # in all, counting those of the run that is resumed
    minutes: float = math.inf  # stop and save after this time, whatever has been reached
    batch_size: int = 8  # examples that each process takes through the network at once
    accumulate: int = 1  # batches whose gradients are averaged into one update
    learning_rate: float = 5e-4  # the peak
    schedule: str = "cosine"  # after the warm-up: "cosine", to a twentieth of it, or "constant"
    warmup: int = 200  # updates of linear warm-up
    weight_decay: float = 0.01
    beta2: float = 0.99  # of Adam
    # peak rate of Muon, which trains the inner matrices, see `optim`; 0 is AdamW for everything,
    # and a negative one the stage's own choice
    muon_rate: float = -1.0
    ema_decay: float = 0.995  # of the averaged network, which is what is saved; 0 for none
    clip_norm: float = 1.0  # greatest norm of a gradient; 0 for no clipping
    seed: int = 0  # of weights, order and noise
    save_every: int = 200
    log_every: int = 20
    sample_every: int = 1000  # updates between samples of held-out clips; 0 for none
    precision: str = "bfloat16"  # autocast of the forward pass; weights stay in float32
    device: str = "auto"
    draw_threads: int = -1  # that prepare batches; 0 is none; negative: as many as pay
    checkpointing: bool = False  # compute activations again in the backward pass: less memory
    compile: bool = False  # translate the network by torch.compile first


@dataclass(frozen=True)
class DiffusionOptions:
    """What a UNet learns from; the defaults are the published ones for keyframes."""

    log_sigma_mean: float = 1.0
    log_sigma_std: float = 1.2
    # share of clips whose sigma is drawn log-uniformly over the whole range that sampling visits;
    # the log-normal seldom reaches either end of it
    wide_sigmas: float = 0.0
    # share of clips whose sigma is drawn log-uniformly from 50 to 700, where sampling begins: with
    # very few steps nearly all that is seen is decided there
    high_sigmas: float = 0.0
    weight_limit: float = math.inf  # of (sigma^2 + 1) / sigma^2
    lower_half: float = 3.0  # lambda_lower; 2 for interpolation
    mouth: float = 1.0  # factor of the cells around the mouth, on top of the lower half's
    eyes: float = 1.0  # factor of the cells around eyes and brows
    pixel: float = 0.0  # weight of the squared error of one decoded frame; published: 1
    perceptual: float = 0.0  # weight of the perceptual distance of that frame; published: 1
    # file of the network that compares, see `perceptual`; "" where `perceptual` is 0
    perceptual_weights: str = ""
    # weight of the difference between what a `LatentReader` reads from denoised and true latents
    reading: float = 0.0
    reading_weights: str = ""  # file of the reader; "" is the run's own
    drop_identity: float = 0.1
    drop_audio: float = 0.2
    # share of the drawn avatars' clips of keyframes whose identity is the head at rest
    from_rest: float = 0.0
    # share of the drawn avatars' runs that lie between keyframes as stage one samples them, made by
    # `keyface train encode --sampled`; the truth that is asked for stays
    sampled_keyframes: float = 0.0
    freeze_temporal: bool = False  # leave the layers along time as they are; published: True
    # of an interpolation run, after which it leaves the guide; 0 keeps the guide that is there
    guide_share: float = 1 / 16
    held_out: int = 0  # clips that are kept from training, for samples


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
    field.name: get_type_hints(cls)[field.name]
    for cls in (TrainOptions, DiffusionOptions)
    for field in dataclasses.fields(cls)
}


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
    words = {"precision": PRECISIONS, "schedule": SCHEDULES}.get(name)
    if words and value not in words:
        raise ConfigError(f"{where}{name}: {value}", f"use {', '.join(words)}")
    low, high = _BOUNDS.get(name, (0, math.inf))
    if kind in (int, float) and not low <= value <= high:
        raise ConfigError(f"{where}{name} must be from {low} to {high}: {value}")
    return value  # type: ignore[no-any-return]


_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("updates", "batch_size", "accumulate", "save_every", "log_every"), (1, 1e9)),
    **dict.fromkeys(
        (
            *("drop_identity", "drop_audio", "from_rest", "sampled_keyframes", "guide_share"),
            *("wide_sigmas", "high_sigmas"),
        ),
        (0, 1),
    ),
    **dict.fromkeys(("ema_decay", "beta2"), (0, 0.999999)),
    **dict.fromkeys(("muon_rate", "draw_threads"), (-1, 1024)),
    "log_sigma_mean": (-100, 100),
    "learning_rate": (0, 1),
}


def _toml(value: Value) -> str:
    if isinstance(value, float):
        return repr(value)  # inf is a float of TOML too
    return json.dumps(value, ensure_ascii=False)
