"""One video to make: the files, every choice, their limits, and what is read for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keyface_cli import __version__
from keyface_cli.checkpoints.checkpoint import Checkpoint, encoder_names
from keyface_cli.errors import JobError, VideoError
from keyface_cli.output.formats import DEFAULT_CRF, STDOUT, Format, SoundTrack, format_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from keyface_cli.emotion import EmotionTrack
    from keyface_cli.media.audio import StoredWaveform
    from keyface_cli.media.features import StoredFeatures
    from keyface_cli.media.framing import Crop

# option -> the least and the greatest number that it may be
LIMITS: dict[str, tuple[float, float]] = {
    "portrait_time": (0.0, 360_000.0),  # seconds: a hundred hours, which keeps infinity out
    "start": (0.0, 360_000.0),
    "duration": (0.04, 360_000.0),
    "emotion_strength": (0.0, 10.0),
    "audio_offset": (-60_000.0, 60_000.0),
    "seed": (0, 2**32 - 1),
    "steps": (1, 1000),
    "audio_guidance": (0.0, 100.0),
    "identity_guidance": (0.0, 100.0),
    "autoguidance": (0.0, 100.0),
    "chunk": (1, 1000),
    "emotion_guidance": (0.0, 100.0),
    "detail": (0.0, 1.0),
    "crf": (0, 51),
}
FRAME_RATES = (24, 25, 30, 50, 60)
# these decide what happens to files, not what is in them
_CONDUCT = {"force", "restart", "keep_job", "keyframes_only"}
_FILES = {"portrait", "audio", "output"}


@dataclass(frozen=True)
class Job:
    """The files and every choice, by the names that the options of `animate` have.

    Times are in seconds, `audio_offset` in milliseconds; None leaves a choice to the model.

    Raises:
        JobError: a number is out of its limits.
    """

    portrait: Path
    audio: Path
    output: Path
    crop: str = "auto"
    face: str = "largest"
    require_face: bool = False
    portrait_time: float | None = None
    background: str | None = None
    paste_back: bool = False
    size: str | None = None
    fps: int = 25
    crf: int = DEFAULT_CRF
    emotion: str = "neutral"
    emotion_strength: float = 1.0
    voice_model: Path | None = None
    start: float = 0.0
    duration: float | None = None
    audio_offset: float = 0.0
    features: Path | None = None
    seed: int = 0
    steps: int | None = None
    audio_guidance: float | None = None
    identity_guidance: float | None = None
    autoguidance: float | None = None
    chunk: int = 2
    emotion_guidance: float | None = None
    detail: float | None = None
    force: bool = False
    restart: bool = False
    keep_job: bool = False
    keyframes_only: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise JobError(f"{option(name)} must be between {low:g} and {high:g}: {value}")
        if self.fps not in FRAME_RATES:
            raise JobError(f"--fps must be one of {', '.join(map(str, FRAME_RATES))}: {self.fps}")

    @property
    def sound(self) -> SoundTrack:
        """What the video sounds like."""
        return SoundTrack(self.audio, self.start, self.duration, self.audio_offset / 1000)

    def choices(self) -> dict[str, Any]:
        """What is in the video, besides the files: the options that are not the defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
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
            words += [option(name)] if value is True else [option(name), str(value)]
        return shlex.join(words)


class Prepared(NamedTuple):
    """What a job's files hold.

    `portrait` is (3, R, R) in [-1, 1], cut out of `picture` at `crop`; `emotion` (N, 2) valence and
    arousal of each frame, sampled from `curve`; `features` what each encoder hears, where a file
    says so.
    """

    picture: Image.Image
    crop: Crop
    portrait: NDArray[np.float32]
    waveform: StoredWaveform
    emotion: NDArray[np.float32]
    curve: EmotionTrack
    features: dict[str, StoredFeatures] | None


def option(field: str) -> str:
    """Return the option that a field of `Job` is on the command line."""
    return f"--{field.replace('_', '-')}"


def check(job: Job) -> Format:
    """Check what can be checked in an instant.

    Returns:
        What kind of result is wanted.

    Raises:
        VideoError: the output cannot be written, is one of the inputs, or ffmpeg is absent; or no
            such size.
        PortraitError: no such background colour.
        EmotionError: the emotion is none, or its file is no curve.
    """
    from keyface_cli.emotion.load import check_emotion
    from keyface_cli.media.ffmpeg import find_ffmpeg
    from keyface_cli.media.portrait import parse_colour
    from keyface_cli.output.compose import parse_size
    from keyface_cli.output.formats import check_output

    if job.output != STDOUT:
        for source in (job.portrait, job.audio):
            if source.exists() and job.output.exists() and source.samefile(job.output):
                raise VideoError(f"{job.output}: is an input, and would be replaced by the output")
    if job.size is not None:
        parse_size(job.size)
    if job.background is not None:
        parse_colour(job.background)
    kind = check_output(job.output, job.force or job.keyframes_only)
    if kind.name == "pipe" and job.keyframes_only:
        raise VideoError("keyframes cannot be piped", "name a file with -o")
    check_emotion(job.emotion, job.voice_model)
    find_ffmpeg()
    return kind


def read(job: Job, checkpoint: Checkpoint) -> Prepared:
    """Read the emotion, the portrait and the recording, in the order of what they cost.

    Raises:
        EmotionError, PortraitError, AudioError, FeaturesError: one of them cannot be used.
        VideoError: the picture has no size that a video could have.
    """
    from keyface_cli.emotion import choose_curve, warn_of_curve
    from keyface_cli.media.audio import count_frames, store_waveform
    from keyface_cli.media.framing import (
        FRAMES,
        PUBLISHED,
        choose_crop,
        cut,
        to_network,
        warn_of_few_pixels,
    )
    from keyface_cli.media.portrait import parse_colour, read_picture
    from keyface_cli.output.compose import output_size, parse_size

    config = checkpoint.config
    colour = None if job.background is None else parse_colour(job.background)
    picture = read_picture(job.portrait, colour, job.portrait_time)
    if job.paste_back:
        box = None if job.size is None else parse_size(job.size)
        output_size(picture.size, box, format_of(job.output).even)
    frame = FRAMES.get(config.preset, PUBLISHED)
    crop = choose_crop(job.portrait, picture, job.crop, job.face, frame, job.require_face)
    warn_of_few_pixels(job.portrait, crop, config.resolution)
    portrait = to_network(cut(picture, crop, config.resolution))
    place = Path.cwd() if job.output == STDOUT else job.output.resolve().parent
    waveform = store_waveform(job.audio, place, job.start, job.duration)
    N = count_frames(len(waveform))
    curve = choose_curve(job.emotion, waveform, job.emotion_strength, job.voice_model)
    warn_of_curve(curve, N)
    features = None
    if job.features is not None:
        from keyface_cli.media.features import load_features, origin

        names = encoder_names(config)
        belongs = origin(job.audio, job.start, job.duration, checkpoint, names)
        features = load_features(job.features, belongs, N)
    return Prepared(picture, crop, portrait, waveform, curve.sample(N), curve, features)


def recipe(job: Job, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what decides what a video shows, by the names that a user knows it under.

    Raises:
        EmotionError, PortraitError, AudioError: a file cannot be read.
    """
    from keyface_cli.emotion.load import fingerprint
    from keyface_cli.files import file_hash

    files = {"portrait": job.portrait, "recording": job.audio}
    if job.voice_model is not None:
        files["voice model"] = job.voice_model
    try:
        hashes = {name: file_hash(path) for name, path in files.items()}
    except OSError as error:
        raise JobError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    apart = ("chunk", "features")  # these change no more than the last bits
    choices = {name: value for name, value in job.choices().items() if name not in apart}
    named = {option(name): str(value) for name, value in choices.items()}
    listed = json.dumps(checkpoint.manifest["files"], sort_keys=True)
    return {
        **named,
        **hashes,
        "emotion curve": fingerprint(job.emotion),
        "kind of output": job.output.suffix.lower(),
        "model": hashlib.sha256(listed.encode()).hexdigest(),
        "version of keyface": __version__,
    }


def identity(
    job: Job, recipe: dict[str, Any], device: str, dtype: str, vae_dtype: str | None
) -> dict[str, Any]:
    """Return everything that the bits of a video depend on: its recipe, and what computes it."""
    from keyface_cli.files import file_hash

    return {
        **recipe,
        "features file": None if job.features is None else file_hash(job.features),
        option("chunk"): str(job.chunk),
        "version of torch": version("torch"),
        "device": device.split(":")[0],
        "--dtype": dtype,
        "--vae-dtype": vae_dtype,
    }


def digest(recipe: dict[str, Any]) -> str:
    """Return what stands in a video for its recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
