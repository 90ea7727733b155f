"""A job that has been looked at: its texts parsed, its files hashed and read, each of them once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keyface_cli.checkpoints.checkpoint import Checkpoint, encoder_names
from keyface_cli.errors import JobError, VideoError
from keyface_cli.files import file_hash
from keyface_cli.jobs.job import Job
from keyface_cli.jobs.signing import find_signer
from keyface_cli.options import flag
from keyface_cli.output.formats import DEFAULT_CRF, GIF_FPS, STDOUT, Format, check_output
from keyface_cli.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from keyface_cli.credentials.signing import Signer
    from keyface_cli.emotion import EmotionTrack
    from keyface_cli.media.audio import StoredWaveform
    from keyface_cli.media.crop import Colour, Crop
    from keyface_cli.media.features import StoredFeatures
    from keyface_cli.media.framing import View

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A job, and what its texts mean.

    Args:
        job: what to make.
        kind: what kind of result.
        box: what the video is to fit into, (width, height) in pixels; None as for `--size`.
        background: RGB in 0..255 behind a transparent portrait; None is the colour of its edge.
        curve: the emotion; None is to be estimated from the voice.
        signer: what signs the result; None leaves it unsigned.
    """

    job: Job
    kind: Format
    box: tuple[int, int] | None
    background: Colour | None
    curve: EmotionTrack | None
    signer: Signer | None = None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file, by the name that a user knows it under.

        Raises:
            JobError: one cannot be read.
        """
        job = self.job
        files = {"portrait": job.portrait, "recording": job.audio}
        files |= {} if job.voice_model is None else {"voice model": job.voice_model}
        try:
            return {name: file_hash(path) for name, path in files.items()}
        except OSError as error:
            reason = error.strerror or error
            raise JobError(f"{error.filename}: cannot be read: {reason}") from error

    def recipe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return what decides what the video shows, by the names that a user knows it under.

        Raises:
            JobError: a file cannot be read.
        """
        from keyface_cli.emotion.load import fingerprint

        # these change no more than the last bits
        apart = ("chunk", "features")
        choices = {k: value for k, value in self.job.choices().items() if k not in apart}
        listed = json.dumps(checkpoint.manifest["files"], sort_keys=True)
        return {
            **{flag(name): str(value) for name, value in choices.items()},
            **self.hashes,
            "emotion curve": fingerprint(self.curve),
            "kind of output": self.job.output.suffix.lower(),
            "model": hashlib.sha256(listed.encode()).hexdigest(),
            "version of keyface": __version__,
        }

    def dependencies(
        self, checkpoint: Checkpoint, device: str, dtype: str, vae_dtype: str | None
    ) -> dict[str, Any]:
        """Return everything that the video's bits depend on: its recipe, and what computes it."""
        features = self.job.features
        return {
            **self.recipe(checkpoint),
            "features file": None if features is None else file_hash(features),
            flag("chunk"): None if self.job.chunk is None else str(self.job.chunk),
            "version of torch": version("torch"),
            "device": device.split(":")[0],
            "--dtype": dtype,
            "--vae-dtype": vae_dtype,
        }


class JobInputs(NamedTuple):
    """What a job's files hold.

    `portrait` is (3, R, R) in [-1, 1], cut out of `picture` around `crop`, and `view` what of it is
    shown, see `framing.cut_out`; `emotion` (N, 2) valence and arousal of each frame, sampled from
    `curve`; `features` those of each audio encoder, where they come from a file or of an earlier
    job.
    """

    picture: Image.Image
    crop: Crop
    portrait: NDArray[np.float32]
    waveform: StoredWaveform
    emotion: NDArray[np.float32]
    curve: EmotionTrack
    features: Mapping[str, StoredFeatures] | None
    view: View | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `KeyFacePipeline.stream` and its like take of it, by the names that they have."""
        names = ("portrait", "waveform", "emotion", "features", "view")
        return {name: getattr(self, name) for name in names}

    @property
    def shown(self) -> int:
        """Pixels of a side of the frames that are made."""
        shown = self.portrait if self.view is None else self.view.picture
        return int(shown.shape[-1])


def make_plan(job: Job) -> Plan:
    """Parse a job's texts, and check what can be checked in an instant.

    Raises:
        VideoError: the output cannot be written, is one of the inputs, or ffmpeg is absent; or no
            such size.
        PortraitError: no such background colour.
        EmotionError: the emotion is none, or its file is no curve.
        CredentialsError: the result cannot be signed as is wanted.
    """
    from keyface_cli.emotion.load import check_emotion
    from keyface_cli.media.ffmpeg import find_ffmpeg
    from keyface_cli.media.framing import parse_size
    from keyface_cli.media.portrait import parse_colour

    if job.output != STDOUT:
        for source in (job.portrait, job.audio):
            if source.exists() and job.output.exists() and source.samefile(job.output):
                raise VideoError(f"{job.output}: is an input, and would be replaced by the output")
    box = None if job.size is None else parse_size(job.size)
    background = None if job.background is None else parse_colour(job.background)
    kind = check_output(job.output, job.force or job.keyframes_only)
    _check_choices(job, kind)
    if kind.name == "pipe" and job.keyframes_only:
        raise VideoError("keyframes cannot be piped", "name a file with -o")
    curve = check_emotion(job.emotion, job.voice_model)
    find_ffmpeg()
    return Plan(job, kind, box, background, curve, find_signer(job))


def _check_choices(job: Job, kind: Format) -> None:
    """Refuse what a kind of result cannot show, and say what means nothing to it.

    Raises:
        VideoError: a GIF of more frames a second than browsers show.
    """
    if kind.name == ".gif" and job.fps > GIF_FPS:
        raise VideoError(
            f"{job.output}: browsers show a GIF of {job.fps} frames a second three times slower",
            f"use --fps {GIF_FPS}, or another kind of file",
        )
    if job.crf != DEFAULT_CRF and not kind.has_quality:
        logger.warning("%s: --crf does nothing here, it is of .mp4 and .webm", job.output)
    if job.audio_offset and not kind.audio:
        logger.warning("%s: --audio-offset does nothing here, where there is no sound", job.output)


def read(plan: Plan, checkpoint: Checkpoint) -> JobInputs:
    """Read the portrait, the recording and the emotion, in the order of what they cost.

    Raises:
        EmotionError, PortraitError, AudioError, FeaturesError: one of them cannot be used.
        VideoError: the picture has no size that a video could have.
    """
    from keyface_cli.emotion import estimate_curve, warn_of_curve
    from keyface_cli.media.audio import count_frames, store_waveform
    from keyface_cli.media.framing import cut_out
    from keyface_cli.media.portrait import read_picture
    from keyface_cli.output.compose import output_size

    job, config = plan.job, checkpoint.config
    picture = read_picture(job.portrait, plan.background, job.portrait_time)
    enlarged = output_size(picture.size, plan.box, plan.kind.even)[2] if job.paste_back else 0.0

    def scale(crop: Crop) -> float:
        return enlarged * crop.side if job.paste_back else min(plan.box or (0,))

    cut = cut_out(picture, config, job.crop, job.face, job.require_face, job.portrait, scale)
    place = Path.cwd() if job.output == STDOUT else job.output.resolve().parent
    waveform = store_waveform(job.audio, place, job.start, job.duration)
    N = count_frames(len(waveform))
    curve = plan.curve or estimate_curve(waveform, job.voice_model)
    curve = curve.scaled(job.emotion_strength)
    warn_of_curve(curve, N)
    features = None
    if job.features is not None:
        from keyface_cli.media.features import load_features, origin

        names = encoder_names(config)
        sound = plan.hashes["recording"]
        belongs = origin(sound, job.start, job.duration, checkpoint, names)
        features = load_features(job.features, belongs, N)
    return JobInputs(
        picture, cut.crop, cut.portrait, waveform, curve.sample(N), curve, features, cut.view
    )


def digest(recipe: dict[str, Any]) -> str:
    """Return what the metadata of a video says of its recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
