"""The choices of one run, each with all that is said of it, and what a run reports and keeps.

An option is a field of a dataclass: its name, its type and its default, and in the field's metadata
an `Option` with its range, its help and its panel. The options of the command line, the columns of
a batch and the keywords of Python come from there.
"""

from __future__ import annotations

import dataclasses
import numbers
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

from keyface_cli.config import ModelConfig, SamplingConfig
from keyface_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Option:
    """What is said of a choice.

    Args:
        help: for the command line.
        panel: of the help, under which it is listed.
        limits: the least and the greatest number that it may be.
        words: all that it may be, where that is a few.
        metavar: the word for its value.
        shown: the default, in words, where the field's own says nothing.
        short: another name on the command line, as "-e".
        off: what switches it off on the command line, as "--no-compile".
    """

    help: str
    panel: str
    limits: tuple[float, float] | None = None
    words: tuple[Any, ...] = ()
    metavar: str | None = None
    shown: str | None = None
    short: str | None = None
    off: str | None = None


def option(default: Any, panel: str, help: str, **more: Any) -> Any:
    """Return a dataclass's field for a choice; see `Option`."""
    return field(default=default, metadata={"option": Option(help, panel, **more)})


_LONGEST_S = 360_000.0  # a hundred hours, which keeps infinity out
QUALITIES = ("exact", "fast", "draft")  # presets of a model, see `ModelConfig.sampling_of`


def of_model(name: str, help: str, limits: tuple[float, float]) -> Any:
    """Return a field for a choice that every model has a default of its own for."""
    shown = f"the model's own; published: {getattr(SamplingConfig, name)}"
    return option(None, "Model", help, limits=limits, shown=shown)


def options_of(kind: type[Any]) -> dict[str, Option]:
    """Return the options of a dataclass by the names of their fields, in their order."""
    fields = {one.name: one.metadata.get("option") for one in dataclasses.fields(kind)}
    return {name: found for name, found in fields.items() if found is not None}


def flag(name: str) -> str:
    """Return the option that a field is on the command line: `audio_offset` is --audio-offset."""
    return f"--{name.replace('_', '-')}"


_WORDS: dict[type[Any], tuple[type[Any], str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "text"),
    Path: (PurePath, "a path"),
}


def _of_type(hint: Any, name: str, value: Any) -> Any:
    """Return a value as a field of this type has it; an option's type is plain, or plain or None.

    Raises:
        ConfigError: it is of another type.
    """
    plain, *empty = typing.get_args(hint) or (hint,)
    if value is None and empty:
        return None
    kind, words = _WORDS[plain]
    if not isinstance(value, kind) or (isinstance(value, bool) and plain is not bool):
        raise ConfigError(f"{name} must be {words}: {value!r}")
    return plain(value)


@dataclass(frozen=True)
class GenerationOptions:
    """The choices of one run; None means the model's own default.

    Args:
        seed: of all noise.
        steps: of each sampling.
        audio_guidance: scale of the sound in the keyframes; 1 turns it off.
        identity_guidance: scale of the portrait in the keyframes; 1 turns it off.
        autoguidance: scale of the interpolation's guide; 1 turns it off.
        chunk: segments (0.52 s each) that are sampled together: speed against memory. None is as
            many as fit into a GPU's memory, 2 without one.
        emotion_guidance: scale of valence and arousal in the keyframes; 1 turns it off.
        liveliness: how much head, eyes and lids move of their own; 0 is still.
        preset: "exact", "fast" or "draft": which defaults of the model the others change.

    Raises:
        ConfigError: a value is of another type, or a number is out of its range.
    """

    seed: int = option(
        0,
        "Model",
        "Random seed; the same seed reproduces the same video.",
        limits=(0, 2**32 - 1),
        metavar="NUMBER",
    )
    steps: int | None = of_model("steps", "Steps of each sampling: fewer is faster.", (1, 1000))
    audio_guidance: float | None = of_model(
        "audio_guidance", "Audio guidance scale for keyframes; 1 turns it off.", (0.0, 100.0)
    )
    identity_guidance: float | None = of_model(
        "identity_guidance",
        "Identity guidance scale for keyframes; 1 turns it off.",
        (0.0, 100.0),
    )
    autoguidance: float | None = of_model(
        "autoguidance",
        "Autoguidance scale for the interpolated frames; 1 turns it off. Where the model has no "
        "guide network, as the bundled one, it magnifies motion between keyframes.",
        (0.0, 100.0),
    )
    chunk: int | None = option(
        None,
        "Machine",
        "Segments of 13 frames that are made together: more is faster and takes more memory.",
        limits=(1, 1000),
        shown="as many as fit on a GPU, else 2",
    )
    emotion_guidance: float | None = of_model(
        "emotion_guidance",
        "Emotion guidance scale for keyframes; 1 turns it off.",
        (0.0, 100.0),
    )
    liveliness: float | None = of_model(
        "liveliness",
        "How much the head moves, the eyes wander and the lids blink; 0 keeps them still.",
        (0.0, 1.0),
    )
    preset: str = option(
        "exact",
        "Model",
        "Trade quality for speed, as far as the model names a way: fewer steps, less guidance, the "
        "VAE in half precision. exact is the model as it was published.",
        words=QUALITIES,
        metavar="|".join(QUALITIES),
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, one in options_of(type(self)).items():
            value = _of_type(hints[name], name, getattr(self, name))
            object.__setattr__(self, name, value)  # as of numpy's numbers, or 3 for 3.0
            if value is None:
                continue
            if one.limits is not None and not one.limits[0] <= value <= one.limits[1]:
                low, high = one.limits
                raise ConfigError(f"{name} must be between {low:g} and {high:g}: {value}")
            if one.words and value not in one.words:
                raise ConfigError(
                    f"{name} must be one of {', '.join(map(str, one.words))}: {value}"
                )

    def sampling(self, config: ModelConfig) -> SamplingConfig:
        """Fill what is None from the preset of a model.

        Raises:
            ConfigError: the model has no such preset.
        """
        names = {one.name for one in dataclasses.fields(SamplingConfig)}
        chosen = {name: getattr(self, name) for name in names & options_of(type(self)).keys()}
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(config.sampling_of(self.preset), **given)


@dataclass(frozen=True, kw_only=True)
class InputOptions(GenerationOptions):
    """What is taken of a portrait and a recording, and what face is made to it.

    Times are in seconds; None leaves a choice to the model.

    Raises:
        ConfigError: a value is of another type, or a number is out of its range.
    """

    crop: str = option(
        "auto",
        "Portrait",
        "The square to animate: around a face, in the middle, the whole picture, or this one "
        "in pixels. Nothing is ever squashed.",
        metavar="auto|center|none|X,Y,W,H",
    )
    face: str = option(
        "largest",
        "Portrait",
        "Which face, where there are several; numbers count from the left.",
        metavar="N|largest|left|right",
    )
    require_face: bool = option(False, "Portrait", "Refuse a portrait in which no face is found.")
    portrait_time: float | None = option(
        None,
        "Portrait",
        "Which frame of a portrait that is a video.",
        limits=(0.0, _LONGEST_S),
        metavar="SECONDS",
        shown="the first",
    )
    background: str | None = option(
        None,
        "Portrait",
        "What shows through a transparent portrait: a name, or #rrggbb.",
        metavar="COLOUR",
        shown="the colour of its edge",
    )
    size: str | None = option(
        None,
        "Output",
        "Size of the video in pixels: it is made as large as fits into this.",
        metavar="N|WxH",
        shown="the model's, with --paste-back the portrait's",
    )
    emotion: str = option(
        "neutral",
        "Sound",
        "One of 24 names (happy, sad, angry, ...), a curve in one line "
        '("neutral@0 happy@3.5 sad:0.6@8"), a curve in a CSV or JSON file, or auto: a guess from '
        "the voice.",
        metavar="NAME|LINE|FILE|auto",
        short="-e",
    )
    emotion_strength: float = option(
        1.0,
        "Sound",
        "Multiply valence and arousal by this, clipped to [-1, 1].",
        limits=(0.0, 10.0),
    )
    voice_model: Path | None = option(
        None,
        "Sound",
        "A speech-emotion model (arousal, dominance, valence) for --emotion auto.",
        metavar="FILE.onnx",
        shown="the voice's loudness, melody and rate",
    )
    start: float = option(
        0.0,
        "Sound",
        "Leave out the beginning of the recording.",
        limits=(0.0, _LONGEST_S),
        metavar="SECONDS",
    )
    duration: float | None = option(
        None,
        "Sound",
        "Use no more than this of the recording.",
        limits=(0.04, _LONGEST_S),
        metavar="SECONDS",
        shown="to its end",
    )
    features: Path | None = option(
        None,
        "Sound",
        "Audio features of this recording, from keyface embed.",
        metavar="FILE",
        shown="computed now",
    )


class Progress(Protocol):
    """Called while a video is made, often; must return quickly."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report how far a stage is.

        Args:
            stage: "audio", "keyframes", "interpolation" or "decode".
            done: keyframes in stage "keyframes", video frames in the others.
            total: of the whole video. Stages take turns, so each reaches its total by the end.
        """


class KeyframeStore(Protocol):
    """Where the keyframes of a video are kept between runs."""

    def get(self, clip: int) -> Tensor | None:
        """Return what was put for a clip, exactly, or None."""

    def put(self, clip: int, latents: Tensor) -> None:
        """Keep the latents of a clip's keyframes, float32 (K, C, h, w) on the CPU."""
