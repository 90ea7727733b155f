"""One video to make: its files and every choice."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyface_cli.options import GenerationOptions, InputOptions, flag, option
from keyface_cli.output.formats import DEFAULT_CRF, SoundTrack

FRAME_RATES = (24, 25, 30, 50, 60)
# these decide what happens to files, not what is in them
_CONDUCT = {
    *("force", "restart", "keep_job", "keyframes_only", "sign", "key", "timestamp", "ingredients")
}
_FILES = {"portrait", "audio", "output"}


@dataclass(frozen=True, kw_only=True)
class Job(InputOptions):
    """The files and every choice, by the names that the options of `animate` have.

    Times are in seconds, `audio_offset` in milliseconds; None leaves a choice to the model.

    Raises:
        ConfigError: a number is out of its range.
    """

    portrait: Path
    audio: Path
    output: Path
    force: bool = False
    paste_back: bool = option(
        False,
        "Output",
        "Put the animated face back into the whole portrait, in its own size (up to 4K).",
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
    audio_offset: float = option(
        0.0,
        "Sound",
        "Let the sound come so many milliseconds later than its picture; below 0 earlier.",
        limits=(-60_000.0, 60_000.0),
        metavar="MS",
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
