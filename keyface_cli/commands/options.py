"""The options that commands share by name: what they mean, their bounds and their panels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from keyface_cli.jobs.job import FRAME_RATES, LIMITS

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_PORTRAIT, _MODEL, _SOUND = "Portrait", "Model", "Sound"
_MACHINE, _OUTPUT = "Machine", "Output"
_OWN = "the model's own; published: {}"


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise typer.BadParameter("use auto, cpu, cuda, cuda:N or mps")
    return name


def _check_fps(fps: int) -> int:
    if fps not in FRAME_RATES:
        raise typer.BadParameter(f"use {', '.join(map(str, FRAME_RATES))}")
    return fps


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
        min=LIMITS["portrait_time"][0],
        max=LIMITS["portrait_time"][1],
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
        metavar="NAME|LINE|FILE|auto",
        help="One of 24 names (happy, sad, angry, ...), a curve in one line "
        '("neutral@0 happy@3.5 sad:0.6@8"), a curve in a CSV or JSON file, or auto: a guess from '
        "the voice.",
        rich_help_panel=_SOUND,
    ),
]
EmotionStrengthOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=10.0,
        help="How many times as far from neutral as the curve says, up to the full range.",
        rich_help_panel=_SOUND,
    ),
]
VoiceModelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.onnx",
        help="A speech-emotion model (arousal, dominance, valence) for --emotion auto.",
        show_default="the voice's loudness, melody and rate",
        rich_help_panel=_SOUND,
    ),
]
StartOption = Annotated[
    float,
    typer.Option(
        min=LIMITS["start"][0],
        max=LIMITS["start"][1],
        metavar="SECONDS",
        help="Leave out the beginning of the recording.",
        rich_help_panel=_SOUND,
    ),
]
DurationOption = Annotated[
    float | None,
    typer.Option(
        min=LIMITS["duration"][0],
        max=LIMITS["duration"][1],
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
        min=LIMITS["seed"][0],
        max=LIMITS["seed"][1],
        metavar="NUMBER",
        help="Another number gives another performance, the same one the same.",
        rich_help_panel=_MODEL,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=LIMITS["steps"][0],
        max=LIMITS["steps"][1],
        help="Steps of each sampling: fewer is faster.",
        show_default=_OWN.format(10),
        rich_help_panel=_MODEL,
    ),
]
AudioGuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=LIMITS["audio_guidance"][0],
        max=LIMITS["audio_guidance"][1],
        help="How much the keyframes heed the sound; 1 is no guidance.",
        show_default=_OWN.format(5.0),
        rich_help_panel=_MODEL,
    ),
]
IdentityGuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=LIMITS["identity_guidance"][0],
        max=LIMITS["identity_guidance"][1],
        help="How much the keyframes heed the portrait; 1 is no guidance.",
        show_default=_OWN.format(2.0),
        rich_help_panel=_MODEL,
    ),
]
AutoguidanceOption = Annotated[
    float | None,
    typer.Option(
        min=LIMITS["autoguidance"][0],
        max=LIMITS["autoguidance"][1],
        help="How far the frames between keep from those of a weaker model; 1 is no guidance.",
        show_default=_OWN.format(2.0),
        rich_help_panel=_MODEL,
    ),
]
EmotionGuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=LIMITS["emotion_guidance"][0],
        max=LIMITS["emotion_guidance"][1],
        help="How much the keyframes heed valence and arousal; 1 is no guidance.",
        show_default=_OWN.format(1.0),
        rich_help_panel=_MODEL,
    ),
]
DetailOption = Annotated[
    float | None,
    typer.Option(
        min=LIMITS["detail"][0],
        max=LIMITS["detail"][1],
        help="How much of the portrait's fine detail is put back where the face has not moved.",
        show_default=_OWN.format(0.0),
        rich_help_panel=_MODEL,
    ),
]
ReaderOption = Annotated[
    Path | None,
    typer.Option(
        "--reader",
        metavar="FILE",
        help="The face reader; trained and saved there if absent.",
        show_default="a file in keyface's data folder",
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
        min=LIMITS["chunk"][0],
        max=LIMITS["chunk"][1],
        help="Segments of 13 frames that are made together: more is faster and takes more memory.",
        rich_help_panel=_MACHINE,
    ),
]
PasteBackOption = Annotated[
    bool,
    typer.Option(
        "--paste-back",
        help="Put the animated face back into the whole portrait, in its own size (up to 4K).",
        rich_help_panel=_OUTPUT,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|WxH",
        help="Size of the video in pixels: it is made as large as fits into this.",
        show_default="the model's, with --paste-back the portrait's",
        rich_help_panel=_OUTPUT,
    ),
]
FpsOption = Annotated[
    int,
    typer.Option(
        metavar="24|25|30|50|60",
        callback=_check_fps,
        help="Frames a second; the model makes 25, others are interpolated between them.",
        rich_help_panel=_OUTPUT,
    ),
]
RestartOption = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Begin anew, whatever an earlier run has finished.",
        rich_help_panel=_OUTPUT,
    ),
]
KeepJobOption = Annotated[
    bool,
    typer.Option(
        "--keep-job",
        help="Keep the job folder, OUTPUT.keyface, when the video is complete.",
        rich_help_panel=_OUTPUT,
    ),
]
KeyframesOnlyOption = Annotated[
    bool,
    typer.Option(
        "--keyframes-only",
        help="Stop after the keyframes and write them as PNGs into the job folder; the same "
        "command without this goes on from them.",
        rich_help_panel=_OUTPUT,
    ),
]
AudioOffsetOption = Annotated[
    float,
    typer.Option(
        min=LIMITS["audio_offset"][0],
        max=LIMITS["audio_offset"][1],
        metavar="MS",
        help="Let the sound come so many milliseconds later than its picture; below 0 earlier.",
        rich_help_panel=_SOUND,
    ),
]
CrfOption = Annotated[
    int,
    typer.Option(
        min=LIMITS["crf"][0],
        max=LIMITS["crf"][1],
        help="Quality of the picture: lower is better and larger.",
        rich_help_panel=_OUTPUT,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.mp4|.mov|.webm|.gif|FOLDER|-",
        help="The video to write: its suffix says which kind. Without one it is a folder of PNGs; "
        "- writes raw RGB frames to a pipe.",
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
