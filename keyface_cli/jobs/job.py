"""One video to make: its files and every choice."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyface_cli.options import GenerationOptions, flag, option
from keyface_cli.output.formats import DEFAULT_CRF, SoundTrack

FRAME_RATES = (24, 25, 30, 50, 60)
_LONGEST_S = 360_000.0  # a hundred hours, which keeps infinity out
# these decide what happens to files, not what is in them
_CONDUCT = {
    *("force", "restart", "keep_job", "keyframes_only", "sign", "key", "timestamp", "ingredients")
}
_FILES = {"portrait", "audio", "output"}


@dataclass(frozen=True, kw_only=True)
class Job(GenerationOptions):
    """The files and every choice, by the names that the options of `animate` have.

    Times are in seconds, `audio_offset` in milliseconds; None leaves a choice to the model.

    Raises:
        ConfigError: a number is out of its range.
    """

    portrait: Path
    audio: Path
    output: Path
    force: bool = False
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
    paste_back: bool = option(
        False,
        "Output",
        "Put the animated face back into the whole portrait, in its own size (up to 4K).",
    )
    size: str | None = option(
        None,
        "Output",
        "Size of the video in pixels: it is made as large as fits into this.",
        metavar="N|WxH",
        shown="the model's, with --paste-back the portrait's",
    )
    fps: int = option(
        25,
        "Output",
        "Frames a second; the model makes 25, others are interpolated between them.",
        words=FRAME_RATES,
        metavar="|".join(map(str, FRAME_RATES)),
    )
    crf: int = option(
        DEFAULT_CRF,
        "Output",
        "Quality of the picture: lower is better and larger.",
        limits=(0, 51),
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
    audio_offset: float = option(
        0.0,
        "Sound",
        "Let the sound come so many milliseconds later than its picture; below 0 earlier.",
        limits=(-60_000.0, 60_000.0),
        metavar="MS",
    )
    features: Path | None = option(
        None,
        "Sound",
        "Audio features of this recording, from keyface embed.",
        metavar="FILE",
        shown="computed now",
    )
    restart: bool = option(
        False, "Output", "Start over, discarding what an earlier run has finished."
    )
    keep_job: bool = option(
        False, "Output", "Keep the job folder, OUTPUT.keyface, when the video is complete."
    )
    keyframes_only: bool = option(
        False,
        "Output",
        "Stop after the keyframes and write them as PNGs into the job folder; the same "
        "command without this resumes from them.",
    )
    sign: Path | None = option(
        None,
        "Output",
        "Sign the result with this certificate (C2PA content credentials), followed by those that "
        "vouch for it; keyface credentials new makes one.",
        metavar="CERT.pem",
        shown="KEYFACE_SIGN_CERT in the environment, else unsigned",
    )
    key: Path | None = option(
        None,
        "Output",
        "The certificate's private key.",
        metavar="KEY.pem",
        shown="KEYFACE_SIGN_KEY in the environment",
    )
    timestamp: str | None = option(
        None,
        "Output",
        "Ask this time-stamp authority (RFC 3161) to confirm the time; it is sent a hash.",
        metavar="URL",
        shown="none is asked",
    )
    ingredients: bool = option(
        False,
        "Output",
        "Show a small picture of the portrait in what is signed, which else names its hash.",
    )

    @property
    def sound(self) -> SoundTrack:
        """What the video sounds like."""
        return SoundTrack(self.audio, self.start, self.duration, self.audio_offset / 1000)

    @property
    def generation(self) -> GenerationOptions:
        """What the pipeline has to know of it."""
        names = [one.name for one in dataclasses.fields(GenerationOptions)]
        return GenerationOptions(**{name: getattr(self, name) for name in names})

    def choices(self) -> dict[str, Any]:
        """What is in the video, besides the files: the options that are not the defaults."""
        inherited = len(dataclasses.fields(GenerationOptions))
        fields = dataclasses.fields(self)
        return {
            field.name: getattr(self, field.name)
            for field in (*fields[inherited:], *fields[:inherited])
            if field.name not in _FILES | _CONDUCT and getattr(self, field.name) != field.default
        }

    def command(self, model: str) -> str:
        """Return the command line that makes the video again, without its output's name.

        Files are named without their folders, which are nobody's business.
        """
        words = ["keyface", "animate", self.portrait.name, self.audio.name, "--model", model]
        for name, value in self.choices().items():
            if name == "features":
                continue
            if name == "emotion" and Path(self.emotion).suffix:
                value = Path(self.emotion).name
            if isinstance(value, Path):
                value = value.name
            words += [flag(name)] if value is True else [flag(name), str(value)]
        return shlex.join(words)


def default_output(portrait: Path, audio: Path, folder: Path = Path()) -> Path:
    """Return the video that is made where no other is named."""
    return folder / f"{portrait.stem}-{audio.stem}.mp4"
