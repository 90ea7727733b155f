"""`keyface dataset prepare`: folders of videos to shards of clips, restartable.

Each video is read twice: to follow its face (`tracking`), and to cut, check and encode what is
fit. Clips gather until a shard is full; then the shard and after it the index are written, so a
run that is killed loses one shard's work and is gone on with by the same command.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from keyface_cli.checkpoints.checkpoint import Checkpoint, encoder_names
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.config import FPS, NUM_FRAMES, SAMPLES_PER_FRAME
from keyface_cli.device import resolve_device
from keyface_cli.emotion.face_model import SIDE, FaceModel
from keyface_cli.errors import VideoError
from keyface_cli.files import csv_text, file_hash, write_text
from keyface_cli.media.crop import Crop, cut
from keyface_cli.media.framing import FRAMES, PUBLISHED, FaceFrame
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.speech import encode
from keyface_cli.training import shards
from keyface_cli.training.preparation import checks, media, tracking
from keyface_cli.training.preparation.writer import ShardWriter
from keyface_cli.training.run import fingerprint

BATCH = 8  # pictures that are encoded at once
CONTEXT_S = 4  # of sound that the encoders are given on each side of a clip
FACE = (0.18, 0.98, 0.12, 0.88)  # top, bottom, left, right of what the affect reader sees
REPORT = "report.csv"


@dataclass(frozen=True)
class Piece:
    """A stretch of a video and what became of it: a row of the report."""

    video: str
    start_s: float
    end_s: float
    outcome: str  # "kept", or the reason why not


@dataclass(frozen=True)
class Encoders:
    """What clips are encoded with.

    Args:
        codec: pictures to latents.
        audio: encoders by name.
        affect: reads valence and arousal; None stores zeros.
        frame: where the face is to be in the picture.
        size: pixels of a picture's side.
    """

    codec: LatentCodec
    audio: Mapping[str, nn.Module]
    affect: FaceModel | None
    frame: FaceFrame
    size: int

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.codec.parameters()).device


@dataclass(frozen=True)
class Limits:
    """How long clips are, in seconds; 6.84 s is what a clip of keyframes spans."""

    shortest_s: float = 7.0
    longest_s: float = 30.0


Report = Callable[[int, int, str], None]
"""Told how many videos are done, of how many, and which one is next."""


def prepare(
    videos: list[Path],
    folder: Path,
    encoders: Encoders,
    limits: Limits,
    made_with: Mapping[str, Any],
    report: Report | None = None,
) -> list[Piece]:
    """Make shards of videos; those that the folder has already are passed over.

    Args:
        videos: files, each once.
        folder: of the shards; made where it is missing.
        encoders: of the model that is to be trained.
        limits: of the clips' length.
        made_with: facts that all shards of a folder share; "encoders" names those of the audio.
        report: told of each video before it is read.

    Returns:
        What became of every stretch of every video, of those passed over too.

    Raises:
        KeyFaceError: the folder's shards were made otherwise, or the disk is full.
    """
    writer = ShardWriter(folder, made_with)
    for number, video in enumerate(videos):
        if report is not None:
            report(number, len(videos), video.name)
        key = fingerprint_of(video)
        if key in writer.videos:
            continue
        pieces = []
        for piece, name, clip in _clips(video, key, encoders, limits, writer):
            pieces.append(piece)
            if clip is not None:
                writer.add(name, key, clip)
        writer.finish(key, [asdict(piece) for piece in pieces])
    if report is not None:
        report(len(videos), len(videos), "")
    return finish(writer)


def finish(writer: ShardWriter) -> list[Piece]:
    """Write what was gathered, and the report; returns what became of every stretch."""
    writer.flush()
    pieces = [Piece(**row) for key in writer.videos for row in writer.videos[key]]
    rows = csv_text(("video", "start_s", "end_s", "outcome"), map(astuple, pieces))
    write_text(writer.folder / REPORT, rows)
    return pieces


def fingerprint_of(video: Path) -> str:
    """Name a video by where it lies, its size and when it was changed."""
    stat = video.stat()
    text = f"{video.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return f"{video.stem[:40]}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]}"


Found = tuple[Piece, str, Mapping[str, Any] | None]


def _clips(
    video: Path, key: str, encoders: Encoders, limits: Limits, writer: ShardWriter
) -> Iterator[Found]:
    """Give every stretch of a video: its row of the report, its name and, where fit, its arrays."""
    try:
        found = list(tracking.stretches(media.frames(video)))
    except VideoError as error:
        yield Piece(str(video), 0.0, 0.0, str(error).removeprefix(f"{video}: ")), "", None
        return
    with media.sound(video) as waveform:
        pictures = enumerate(media.frames(video))
        for stretch in found:
            for part in _parts(stretch, limits):
                reason = _problem(part, encoders, limits, waveform)
                name = f"{key}-{part.first:06d}"
                clip = None
                if reason is None and name not in writer.known:
                    reason, clip = _encode(part, pictures, waveform, encoders)
                outcome = reason or "kept"
                yield (
                    Piece(str(video), part.first / FPS, (part.last + 1) / FPS, outcome),
                    name,
                    clip,
                )


def _parts(stretch: tracking.Stretch, limits: Limits) -> list[tracking.Stretch]:
    """Divide a long stretch into equal parts that are not too long."""
    count = max(1, -(-len(stretch) // round(limits.longest_s * FPS)))
    edges = np.linspace(stretch.first, stretch.last + 1, count + 1).astype(int)
    parts = []
    for first, end in itertools.pairwise(edges.tolist()):
        at = stretch.looks[:, 0]
        looks = stretch.looks[(at >= first) & (at < end)]
        if not len(looks) and len(stretch.looks):  # a part between two looks
            looks = stretch.looks[np.abs(at - first).argmin()][None]
        parts.append(tracking.Stretch(first, end - 1, looks, stretch.size, stretch.reason))
    return parts


def _problem(
    part: tracking.Stretch, encoders: Encoders, limits: Limits, waveform: NDArray[np.float32]
) -> str | None:
    if part.reason is not None:
        return part.reason
    if len(part) < max(NUM_FRAMES, limits.shortest_s * FPS):
        return "too short"
    size = float(np.median(part.looks[:, 3]))
    if size < tracking.SMALLEST_FACE * encoders.frame.face * encoders.size:
        return "face too small"
    return checks.sound_problem(_sound_of(part, waveform), len(part))


def _sound_of(
    part: tracking.Stretch, waveform: NDArray[np.float32], context: int = 0
) -> NDArray[np.float32]:
    """The sound of a part and of `context` frames on each side, as far as there is some."""
    first = max(0, part.first - context) * SAMPLES_PER_FRAME
    end = (part.last + 1 + context) * SAMPLES_PER_FRAME
    return np.array(waveform[first:end])


def _encode(
    part: tracking.Stretch,
    pictures: Iterator[tuple[int, NDArray[np.uint8]]],
    waveform: NDArray[np.float32],
    encoders: Encoders,
) -> tuple[str | None, Mapping[str, Any] | None]:
    """Cut and encode a part; or say why it is not fit after all."""
    squares = tracking.crops(part, encoders.frame)
    latents, files, emotions, motion = [], [], [], []
    last: NDArray[np.uint8] | None = None
    for batch in _batches(pictures, part, squares, encoders.size):
        x = torch.from_numpy(np.stack(batch)).to(encoders.device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            encoded = encoders.codec.encode(x.float() / 127.5 - 1)
        latents.append(encoded.half().cpu().numpy())
        files += [shards.encode_jpeg(picture) for picture in batch]
        emotions.append(_affect(batch, encoders))
        with_last = batch if last is None else [last, *batch]
        motion.append(checks.mouth_motion(np.stack(with_last)))
        last = batch[-1]
    if len(files) < len(part):
        return "cut off", None
    sound = _sound_of(part, waveform)
    late = checks.lag(np.concatenate(motion), checks.loudness(sound, len(part)))
    if late:
        return f"sound and picture apart: {late:+d} frames", None
    features = _features(part, waveform, encoders)
    arrays = {"latents": np.concatenate(latents), "emotion": np.concatenate(emotions)}
    return None, arrays | features | {"pictures": files}


def _batches(
    pictures: Iterator[tuple[int, NDArray[np.uint8]]],
    part: tracking.Stretch,
    squares: list[Crop],
    size: int,
) -> Iterator[list[NDArray[np.uint8]]]:
    batch: list[NDArray[np.uint8]] = []
    for number, picture in pictures:
        if number < part.first:
            continue
        square = cut(Image.fromarray(picture), squares[number - part.first], size)
        batch.append(np.asarray(square))
        if len(batch) == BATCH or number == part.last:
            yield batch
            batch = []
        if number == part.last:
            return


def _affect(batch: list[NDArray[np.uint8]], encoders: Encoders) -> NDArray[np.float16]:
    if encoders.affect is None:
        return np.zeros((len(batch), 2), np.float16)
    top, bottom, left, right = (round(edge * encoders.size) for edge in FACE)
    size, crop = (SIDE, SIDE), (left, top, right, bottom)
    faces = [Image.fromarray(p).crop(crop).resize(size, Image.Resampling.BILINEAR) for p in batch]
    read = np.stack([encoders.affect.read(np.asarray(face))[-2:] for face in faces])
    return np.clip(read, -1, 1).astype(np.float16)


def _features(
    part: tracking.Stretch, waveform: NDArray[np.float32], encoders: Encoders
) -> dict[str, NDArray[np.float16]]:
    """Each encoder's features of a part, (N, 2, D), made with some sound around it."""
    context = CONTEXT_S * FPS
    sound = torch.from_numpy(_sound_of(part, waveform, context))
    skipped = part.first - max(0, part.first - context)
    missing = (skipped + len(part)) * SAMPLES_PER_FRAME - len(sound)
    sound = torch.nn.functional.pad(sound, (0, max(0, missing)))
    with torch.inference_mode():
        found = encode(encoders.audio, sound)
    return {
        name: tokens[skipped : skipped + len(part)].half().cpu().numpy()
        for name, tokens in found.items()
    }


def load_encoders(model: str | None, affect: Path | None, device: str) -> Encoders:
    """Load what clips are encoded with.

    Args:
        model: a model's folder or name; None is the default one.
        affect: the file of the affect reader, or None for zeros.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        WeightsError, EmotionError: a file is missing or damaged.
        DeviceError: there is no such device.
    """
    reader = None if affect is None else FaceModel(affect)
    checkpoint = Checkpoint.open(resolve_model(model))
    config, place = checkpoint.config, resolve_device(device)

    def load(name: str) -> Any:
        return checkpoint.load(name, device=place, dtype=torch.float32)

    codec = LatentCodec(load("vae"), config.latent_scale, config.vae_patch_size)
    audio = {name: load(name) for name in encoder_names(config)}
    frame = FRAMES.get(config.preset, PUBLISHED)
    return Encoders(codec, audio, reader, frame, config.resolution)


def summarise(pieces: list[Piece]) -> dict[str, dict[str, float]]:
    """Count the stretches of each outcome, and their hours; "kept" comes first."""
    found: dict[str, dict[str, float]] = {"kept": {"clips": 0, "hours": 0.0}}
    for piece in pieces:
        row = found.setdefault(piece.outcome.split(":")[0], {"clips": 0, "hours": 0.0})
        row["clips"] += 1
        row["hours"] += (piece.end_s - piece.start_s) / 3600
    return found


def facts_of(encoders: Encoders, limits: Limits) -> dict[str, Any]:
    """Say what shards are made with: weights by a hash of their numbers, framing and limits."""
    facts = {
        "vae": fingerprint(encoders.codec.vae),
        "encoders": {name: fingerprint(module) for name, module in encoders.audio.items()},
        "affect": None,
        "frame": asdict(encoders.frame),
        "size": encoders.size,
        "limits": asdict(limits),
    }
    if encoders.affect is not None:
        facts["affect"] = file_hash(encoders.affect.path)
    return facts
