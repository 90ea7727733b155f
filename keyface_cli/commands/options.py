"""The options that commands share by name: what they mean, their bounds and their panels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_PORTRAIT, _MODEL, _SOUND = "Portrait", "Model", "Sound"
_MACHINE, _OUTPUT = "Machine", "Output"
_OWN = "the model's own; published: {}"
_LONGEST_S = 360_000.0  # a hundred hours: keeps infinity out


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise typer.BadParameter("use auto, cpu, cuda, cuda:N or mps")
    return name


CropOption = Annotated[
    str,
    typer.Option(
        metavar="auto|center|none|X,Y,W,H",
        help="The square to animate: around a face, in the middle, the whole picture, or this one "
        "in pixels. Nothing is ever squashed.",
        rich_help_panel=_PORTRAIT,
    ),
]
FaceOption = Annotated[
    str,
    typer.Option(
        metavar="N|largest|left|right",
        help="Which face, where there are several; numbers count from the left.",
        rich_help_panel=_PORTRAIT,
    ),
]
RequireFaceOption = Annotated[
    bool,
    typer.Option(
        "--require-face",
        help="Refuse a portrait in which no face is found.",
        rich_help_panel=_PORTRAIT,
    ),
]
PortraitTimeOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=_LONGEST_S,
        metavar="SECONDS",
        help="Which frame of a portrait that is a video.",
        show_default="the first",
        rich_help_panel=_PORTRAIT,
    ),
]
BackgroundOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLOUR",
        help="What shows through a transparent portrait: a name, or #rrggbb.",
        show_default="the colour of its edge",
        rich_help_panel=_PORTRAIT,
    ),
]
EmotionOption = Annotated[
    str,
    typer.Option(
        "--emotion",
        "-e",
        metavar="NAME|FILE.csv",
        help="One of 24 names (happy, sad, angry, ...), or a curve: a CSV file with the columns "
        "time (in seconds), valence and arousal (-1 to 1).",
        rich_help_panel=_SOUND,
    ),
]
StartOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=_LONGEST_S,
        metavar="SECONDS",
        help="Leave out the beginning of the recording.",
        rich_help_panel=_SOUND,
    ),
]
DurationOption = Annotated[
    float | None,
    typer.Option(
        min=0.04,
        max=_LONGEST_S,
        metavar="SECONDS",
        help="Use no more than this of the recording.",
        show_default="to its end",
        rich_help_panel=_SOUND,
    ),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What the model hears in this recording, from keyface embed.",
        show_default="to listen now",
        rich_help_panel=_SOUND,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="A model's name, or its folder.",
        show_default="keyface where it is installed, else mini",
        rich_help_panel=_MODEL,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**32 - 1,
        metavar="NUMBER",
        help="Another number gives another performance, the same one the same.",
        rich_help_panel=_MODEL,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1000,
        help="Steps of each sampling: fewer is faster.",
        show_default=_OWN.format(10),
        rich_help_panel=_MODEL,
    ),
]
AudioGuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=100.0,
        help="How much the keyframes heed the sound; 1 is no guidance.",
        show_default=_OWN.format(5.0),
        rich_help_panel=_MODEL,
    ),
]
IdentityGuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=100.0,
        help="How much the keyframes heed the portrait; 1 is no guidance.",
        show_default=_OWN.format(2.0),
        rich_help_panel=_MODEL,
    ),
]
AutoguidanceOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=100.0,
        help="How far the frames between keep from those of a weaker model; 1 is no guidance.",
        show_default=_OWN.format(2.0),
        rich_help_panel=_MODEL,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|mps",
        callback=_check_device,
        help="Where to compute; auto takes a GPU where there is one.",
        rich_help_panel=_MACHINE,
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        help="Number format of the networks; auto is the device's fastest.",
        rich_help_panel=_MACHINE,
    ),
]
VaeDtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        help="Number format of the VAE; auto is that of the networks.",
        show_default="the model's own; published: float32",
        rich_help_panel=_MACHINE,
    ),
]
MemoryOption = Annotated[
    Literal["auto", "high", "balanced", "low"],
    typer.Option(
        help="What stays on the GPU: all networks, those of the running stage, or the running "
        "layers; auto is what fits, and where memory runs out the next lower one is taken.",
        rich_help_panel=_MACHINE,
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the networks first: minutes once, then faster; for long videos on a GPU.",
        rich_help_panel=_MACHINE,
    ),
]
ChunkOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=1000,
        help="Segments of 13 frames that are made together: more is faster and takes more memory.",
        rich_help_panel=_MACHINE,
    ),
]
CrfOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=51,
        help="Quality of the picture: lower is better and larger.",
        rich_help_panel=_OUTPUT,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.mp4",
        help="The video to write.",
        show_default="PORTRAIT-AUDIO.mp4 in this folder",
        rich_help_panel=_OUTPUT,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", "-f", help="Replace an existing file.", rich_help_panel=_OUTPUT),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object that describes the result instead of its path.",
        rich_help_panel=_OUTPUT,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress, only warnings and errors.", rich_help_panel=_OUTPUT
    ),
]
