"""Portrait, sound and emotion become frames: the whole method, as a stream.

    sound    -> tokens of the audio encoders -> each stage's audio context
    portrait -> identity latent
    clip     -> keyframe latents      (stage one, when the next segment needs them)
    segments -> latents of all frames (stage two, a chunk at a time) -> pictures -> merged frames

Only the waveform's features grow with its length; latents and pictures are dropped as they go.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyface_cli.checkpoint import Checkpoint, encoder_names, needed_components, resolve_model
from keyface_cli.config import (
    KEYFRAME_STEP,
    NUM_FRAMES,
    SAMPLES_PER_FRAME,
    ModelConfig,
    SamplingConfig,
)
from keyface_cli.device import memory_errors, require_memory, resolve_device, resolve_dtype
from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.errors import ConfigError, WeightsError
from keyface_cli.models.speech import encode
from keyface_cli.models.unet import VideoUNet
from keyface_cli.models.vae import LatentCodec
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.stages.start import noise_for
from keyface_cli.stages.timeline import Clip, Segment, Timeline

STAGES = ("load", "audio", "keyframes", "interpolation", "decode")
AUDIO_ENCODERS = ("wavlm", "wav2vec2", "beats")
DECODE_PIXELS = 2**19  # decoded at once: 8 pictures of 256 x 256, 2 of 512 x 512


class Progress(Protocol):
    """Called while a video is made, often; must return quickly."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report how far a stage is.

        Args:
            stage: "audio", "keyframes", "interpolation" or "decode".
            done: keyframes in stage "keyframes", video frames in the others.
            total: of the whole video. Stages take turns, so each reaches its total by the end.
        """


@dataclass(frozen=True)
class GenerationOptions:
    """The choices of one run; None means the model's own default.

    Args:
        seed: of all noise, any integer.
        steps: of each sampling, 1 or more.
        audio_guidance: scale of the sound in the keyframes; 1 is none.
        identity_guidance: scale of the portrait in the keyframes; 1 is none.
        autoguidance: scale of the interpolation's guide; 1 is none.
        chunk: segments (0.52 s each) that are sampled together: speed against memory.
    """

    seed: int = 0
    steps: int | None = None
    audio_guidance: float | None = None
    identity_guidance: float | None = None
    autoguidance: float | None = None
    chunk: int = 2

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """Fill what is None from a model's defaults.

        Raises:
            ConfigError: a number is out of its range.
        """
        names = ("steps", "audio_guidance", "identity_guidance", "autoguidance")
        chosen = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in chosen.items() if value is not None}
        for name, value in {"chunk": self.chunk, **given}.items():
            least = 1 if name in ("steps", "chunk") else 0
            if not least <= value < float("inf"):
                raise ConfigError(f"{name} must be {least} or more: {value}")
        return replace(defaults, **given)


class KeyFacePipeline:
    """A loaded model, made by `load`.

    `timings` holds the seconds spent in each stage of the last stream: "load", "audio",
    "keyframes", "interpolation" and "decode".
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        parts: dict[str, nn.Module],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config = checkpoint.config
        self.checkpoint = checkpoint
        self.config: ModelConfig = config
        self.device = device
        self.dtype = dtype
        self.keyframe_unet = cast(VideoUNet, parts["keyframe_unet"])
        self.interpolation_unet = cast(VideoUNet, parts["interpolation_unet"])
        self.guide: VideoUNet | None = None  # loaded by the first stream that is guided by it
        vae = cast(Any, parts["vae"])
        self.codec = LatentCodec(vae, config.latent_scale, config.vae_patch_size)
        self.encoders = {name: parts[name] for name in encoder_names(config) if name in parts}
        self.timings: dict[str, float] = {}

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint | Path | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        hear: bool = True,
    ) -> KeyFacePipeline:
        """Load a model.

        Args:
            checkpoint: an opened checkpoint, its folder, a model's name, or None for the default
                model (see `checkpoint.resolve_model`).
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            dtype: of the UNets and the VAE: "auto", "float32", "bfloat16" or "float16". The audio
                encoders stay in float32.
            hear: load the audio encoders too; without them every stream needs `features`.

        Raises:
            WeightsError: the folder or a file in it is missing or damaged.
            DeviceError: the device is not there or has too little memory.
        """
        started = time.perf_counter()
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.open(resolve_model(checkpoint))
        where = resolve_device(device)
        precision = resolve_dtype(dtype, where)
        names = needed_components(checkpoint.config, guide=False)
        if not hear:
            names = tuple(name for name in names if name not in AUDIO_ENCODERS)
        parts = _load(checkpoint, names, where, precision)
        pipeline = cls(checkpoint, parts, where, precision)
        pipeline.timings["load"] = time.perf_counter() - started
        return pipeline

    def stream(
        self,
        portrait: NDArray[np.float32],
        waveform: NDArray[np.float32],
        emotion: NDArray[np.float32],
        options: GenerationOptions | None = None,
        progress: Progress | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Make a talking video, frame by frame.

        Args:
            portrait: (3, R, R) in [-1, 1], with R the model's resolution.
            waveform: (S,) mono at 16 kHz in [-1, 1].
            emotion: (N, 2) valence and arousal in [-1, 1] of each video frame, N = ceil(S / 640).
            options: the choices of this run.
            progress: told how far each stage is.
            features: what each encoder hears in the sound, as from `listen`; None is to listen now.

        Returns:
            RGB frames (n, R, R, 3) as soon as they are final, N in all.

        Raises:
            ConfigError: an option is out of its range.
            WeightsError: autoguidance is asked for and the model has no guide.
            DeviceError: memory ran out, here or while frames are made.
            ValueError: an array has another shape.
        """
        R, N = self.config.resolution, math.ceil(len(waveform) / SAMPLES_PER_FRAME)
        for name, array, shape in (
            ("portrait", portrait, (3, R, R)),
            ("waveform", waveform, waveform.shape[:1]),
            ("emotion", emotion, (N, 2)),
        ):
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, not {shape}")
        options = options or GenerationOptions()
        sampling = options.sampling(self.config.sampling)
        self.timings = dict.fromkeys(STAGES, 0.0) | {"load": self.timings.get("load", 0.0)}
        if sampling.autoguidance != 1 and self.guide is None:
            self._load_guide()
        for name in encoder_names(self.config):
            if features is None and name not in self.encoders:
                raise ValueError(f"loaded without {name}: features are needed")
            if features is not None and features[name].shape[:2] != (N, 2):
                raise ValueError(f"features of {name} have shape {tuple(features[name].shape)}")
        run = _Run(self, Timeline(N), options, sampling, progress or _silent, features)
        # copied, so that read-only and reversed arrays serve too
        arrays = (np.array(array, np.float32) for array in (portrait, waveform, emotion))
        return run.frames(*map(torch.from_numpy, arrays))

    def _load_guide(self) -> None:
        name = "interpolation_guide"
        if name not in self.checkpoint.components:
            raise WeightsError(
                f"the model has no {name}: {self.checkpoint.folder}", "use --autoguidance 1"
            )
        started = time.perf_counter()
        loaded = _load(self.checkpoint, (name,), self.device, self.dtype)
        self.guide = cast(VideoUNet, loaded[name])
        self.timings["load"] += time.perf_counter() - started


class _Run:
    """One video in the making: a chain of generators, each pulling from the one before."""

    def __init__(
        self,
        pipeline: KeyFacePipeline,
        plan: Timeline,
        options: GenerationOptions,
        sampling: SamplingConfig,
        progress: Progress,
        features: Mapping[str, Tensor] | None,
    ) -> None:
        config = pipeline.config
        self.features = features
        sigmas = sigmas_for(sampling.schedule, sampling.steps)
        self.pipeline, self.plan, self.options, self.progress = pipeline, plan, options, progress
        self.updates = len(sigmas) - 1
        self.shape = (NUM_FRAMES, config.latent_channels, config.latent_size, config.latent_size)
        self.keyframe_stage = KeyframeStage(
            pipeline.keyframe_unet,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.audio_guidance,
            sampling.identity_guidance,
        )
        self.interpolation_stage = InterpolationStage(
            pipeline.interpolation_unet,
            pipeline.guide,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.autoguidance,
        )

    @torch.inference_mode()
    def frames(
        self, portrait: Tensor, waveform: Tensor, emotion: Tensor
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield finished frames (n, R, R, 3), N in all."""
        left = self.plan.num_frames
        with memory_errors(self.pipeline.device):
            with self._timed("audio"):
                contexts = self._listen(waveform)
            with self._timed("keyframes"):
                identity = self.pipeline.codec.encode(portrait[None].to(self.pipeline.device))
            keyframes = self._keyframes(identity, contexts[0], emotion)
            for merged in merge_segments(self._segments(keyframes, contexts[1])):
                # cut, not rounded, to whole numbers: as published (SPEC 9)
                pixels = (merged[:left] * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
                left -= len(pixels)
                if len(pixels):
                    yield pixels.cpu().numpy()

    def _listen(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the sound -> the context (N, D) of each stage."""
        pipeline, N = self.pipeline, self.plan.num_frames
        self.progress("audio", 0, N)
        features = self.features or encode(pipeline.encoders, waveform)
        contexts = [
            network.project_audio(_side_by_side(features, names, pipeline.device)[None])[0]
            for network, names in (
                (pipeline.keyframe_unet, pipeline.config.keyframe_encoders),
                (pipeline.interpolation_unet, pipeline.config.interpolation_encoders),
            )
        ]
        self.progress("audio", N, N)
        return contexts[0], contexts[1]

    def _keyframes(self, identity: Tensor, context: Tensor, emotion: Tensor) -> Iterator[Tensor]:
        """Yield the scaled latent (C, h, w) of each keyframe; a clip is made at its first."""
        device = self.pipeline.device
        for clip in self.plan.clips():
            heard = torch.tensor(clip.audio)

            def report(update: int, _: Tensor, clip: Clip = clip) -> None:
                done = clip.keyframes.start + len(clip.keyframes) * update // self.updates
                self.progress("keyframes", done, self.plan.num_keyframes)

            with self._timed("keyframes"):
                latents = self.keyframe_stage.sample(
                    identity,
                    context[heard][None],
                    emotion[heard][None].to(device),
                    self._noise("keyframes", [clip.index]),
                    report,
                )
            # slot 0 is the identity's, and slots after the clip's keyframes are padding
            yield from latents[0, 1 : 1 + len(clip.keyframes)]

    def _segments(self, keyframes: Iterator[Tensor], context: Tensor) -> Iterator[Tensor]:
        """Yield the pictures of each segment, (T, 3, R, R) in [0, 1], on the device."""
        N = self.plan.num_frames
        segments = self.plan.segments()
        start = next(keyframes)
        while chunk := list(islice(segments, self.options.chunk)):
            ends = list(islice(keyframes, len(chunk)))
            pairs = torch.stack([torch.stack(pair) for pair in pairwise([start, *ends])])
            start = ends[-1]

            def report(update: int, _: Tensor, chunk: list[Segment] = chunk) -> None:
                frames = KEYFRAME_STEP * len(chunk) * update // self.updates
                self.progress("interpolation", min(chunk[0].first_frame + frames, N), N)

            with self._timed("interpolation"):
                latents = self.interpolation_stage.sample(
                    pairs,
                    context[torch.tensor([segment.audio for segment in chunk])],
                    self._noise("interpolation", [segment.index for segment in chunk]),
                    report,
                )
            for segment, sampled in zip(chunk, latents, strict=True):
                with self._timed("decode"):
                    pictures = self._decode(sampled)
                self.progress("decode", min(segment.first_frame + len(pictures), N), N)
                yield pictures

    def _decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (T, C, h, w) -> pictures (T, 3, R, R) in [0, 1]."""
        codec, R = self.pipeline.codec, self.pipeline.config.resolution
        parts = torch.split(latents, max(1, DECODE_PIXELS // R**2))
        pictures = torch.cat([codec.decode(part) for part in parts])
        return ((pictures + 1) / 2).clamp(0, 1)

    def _noise(self, kind: str, indices: list[int]) -> Tensor:
        """(B, T, C, h, w) on the device."""
        seed = self.options.seed
        noises = [noise_for(kind, index, self.shape, seed) for index in indices]
        return torch.stack(noises).to(self.pipeline.device)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.pipeline.device.type == "cuda":
            torch.cuda.synchronize(self.pipeline.device)
        self.pipeline.timings[stage] += time.perf_counter() - started


def listen(
    checkpoint: Checkpoint, waveform: NDArray[np.float32], device: str = "auto"
) -> dict[str, Tensor]:
    """Encode a recording with a model's audio encoders alone, to be used with many portraits.

    Args:
        checkpoint: the model.
        waveform: (S,) mono at 16 kHz in [-1, 1].
        device: as in `KeyFacePipeline.load`.

    Returns:
        For each encoder (N, 2, D) float32 on the CPU, N = ceil(S / 640) video frames (SPEC 3).

    Raises:
        WeightsError, DeviceError: see `KeyFacePipeline.load`.
    """
    place = resolve_device(device)
    encoders = _load(checkpoint, encoder_names(checkpoint.config), place, torch.float32)
    with memory_errors(place), torch.inference_mode():
        features = encode(encoders, torch.from_numpy(np.array(waveform, np.float32)))
    return {name: tensor.cpu() for name, tensor in features.items()}


def _side_by_side(
    features: Mapping[str, Tensor], names: Sequence[str], device: torch.device
) -> Tensor:
    """(N, 2, A), A the sum of the encoders' widths."""
    return torch.cat([features[name].to(device) for name in names], dim=-1)


def _load(
    checkpoint: Checkpoint, names: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> dict[str, nn.Module]:
    formats = {name: torch.float32 if name in AUDIO_ENCODERS else dtype for name in names}
    needed = sum(checkpoint.count(name) * formats[name].itemsize for name in names)
    require_memory(device, needed, "the model")
    with memory_errors(device):
        return {name: checkpoint.load(name, device=device, dtype=formats[name]) for name in names}


def _silent(stage: str, done: int, total: int) -> None:
    pass
