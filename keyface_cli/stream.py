"""Sound, portrait and emotion become frames: the whole method, as a stream.

    sound    -> tokens of the audio encoders -> each stage's audio context
    portrait -> identity latent
    clip     -> keyframe latents      (stage one, when the next segment needs them)
    segments -> latents of all frames (stage two, a chunk at a time) -> pictures -> merged frames
    portrait -> its fine detail, for every picture

Nothing grows with the length of the sound: it is read and heard a window at a time, and features,
latents and pictures are dropped as they go. What a clip, a segment or a chunk is depends on its
place in the video alone, its noise too, so that a stream which begins in the middle gives the same
bits as one that comes by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES, ModelConfig, SamplingConfig
from keyface_cli.device import memory_errors
from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.errors import ConfigError
from keyface_cli.memory import Residency, Result
from keyface_cli.models.speech import Features, Hearing, Samples, hearing
from keyface_cli.models.unet import VideoUNet
from keyface_cli.models.vae import LatentCodec
from keyface_cli.stages.detail import PortraitDetail
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.stages.noise import noise_for
from keyface_cli.stages.timeline import Clip, Segment, Timeline

STAGES = ("load", "audio", "keyframes", "interpolation", "decode")
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


class KeyframeStore(Protocol):
    """Where the keyframes of a video are kept between runs."""

    def get(self, clip: int) -> Tensor | None:
        """Return what was put for a clip, exactly, or None."""

    def put(self, clip: int, latents: Tensor) -> None:
        """Keep the latents of a clip's keyframes, float32 (K, C, h, w) on the CPU."""


@dataclass(frozen=True)
class Inputs:
    """What a stream is made of.

    Args:
        portrait: (3, R, R) in [-1, 1].
        waveform: (S,) at 16 kHz in [-1, 1].
        emotion: (N, 2) valence and arousal of each video frame.
        features: what each encoder hears, (N, 2, D); None is to listen to the waveform.
    """

    portrait: Tensor
    waveform: Samples
    emotion: Tensor
    features: Mapping[str, Features] | None


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
        emotion_guidance: scale of valence and arousal in the keyframes; 1 is none.
        detail: share of the portrait's fine detail that is put back, 0 to 1.
    """

    seed: int = 0
    steps: int | None = None
    audio_guidance: float | None = None
    identity_guidance: float | None = None
    autoguidance: float | None = None
    chunk: int = 2
    emotion_guidance: float | None = None
    detail: float | None = None

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """Fill what is None from a model's defaults.

        Raises:
            ConfigError: a number is out of its range.
        """
        scales = ("audio_guidance", "identity_guidance", "autoguidance", "emotion_guidance")
        names = ("steps", *scales, "detail")
        chosen = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in chosen.items() if value is not None}
        for name, value in {"chunk": self.chunk, **given}.items():
            least = 1 if name in ("steps", "chunk") else 0
            if not least <= value < float("inf"):
                raise ConfigError(f"{name} must be {least} or more: {value}")
        if given.get("detail", 0) > 1:
            raise ConfigError(f"detail must be 1 or less: {self.detail}")
        return replace(defaults, **given)


@dataclass(frozen=True)
class Model:
    """The networks that a stream runs, and where they are.

    Args:
        config: what they are.
        device: where they run.
        residency: brings each of them there.
        keyframe_unet: stage one.
        interpolation_unet: stage two.
        guide: the weaker stage two, where there is one.
        codec: pictures to latents and back.
        encoders: of the sound, by name; none where features are given.
    """

    config: ModelConfig
    device: torch.device
    residency: Residency
    keyframe_unet: VideoUNet
    interpolation_unet: VideoUNet
    guide: VideoUNet | None
    codec: LatentCodec
    encoders: dict[str, nn.Module]


class FrameStream:
    """One video in the making: a chain of generators, each pulling from the one before."""

    def __init__(
        self,
        model: Model,
        plan: Timeline,
        inputs: Inputs,
        options: GenerationOptions,
        progress: Progress,
        timings: dict[str, float],
        store: KeyframeStore | None = None,
    ) -> None:
        config, sampling = model.config, options.sampling(model.config.sampling)
        sigmas = sigmas_for(sampling.schedule, sampling.steps)
        self.model, self.plan, self.inputs, self.options = model, plan, inputs, options
        self.progress, self.timings, self.store = progress, timings, store
        self.updates = len(sigmas) - 1
        self.detail_strength = sampling.detail
        self.shape = (NUM_FRAMES, config.latent_channels, config.latent_size, config.latent_size)
        self.keyframe_stage = KeyframeStage(
            model.keyframe_unet,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.audio_guidance,
            sampling.identity_guidance,
            sampling.emotion_guidance,
        )
        self.interpolation_stage = InterpolationStage(
            model.interpolation_unet,
            model.guide,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.autoguidance,
        )
        self.hearings: dict[str, Hearing] = {}
        if inputs.features is None:
            self.hearings = {
                name: hearing(name, encoder, inputs.waveform, partial(self._attempt_with, name))
                for name, encoder in model.encoders.items()
            }

    @torch.inference_mode()
    def frames(self, first_frame: int = 0) -> Iterator[NDArray[np.uint8]]:
        """Yield the finished frames from `first_frame` on; see `KeyFacePipeline.stream`."""
        # a frame where two segments meet takes a picture of the one before too
        begin = max(0, first_frame - 1) // KEYFRAME_STEP
        position, N = KEYFRAME_STEP * begin, self.plan.num_frames
        with memory_errors(self.model.device):
            self.progress("audio", 0, N)
            for merged in merge_segments(self._segments(begin)):
                # cut, not rounded, to whole numbers: as published (SPEC 9)
                pixels = _to_uint8(merged[: N - position][max(0, first_frame - position) :])
                position += len(merged)
                if len(pixels):
                    yield pixels

    @torch.inference_mode()
    def keyframes(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield where each keyframe stands in the video and its picture (R, R, 3)."""
        with memory_errors(self.model.device):
            self.progress("audio", 0, self.plan.num_frames)
            for index, latent in enumerate(self._keyframes(0)):
                with self._timed("decode"):
                    work = partial(self._decode, latent[None])
                    picture = self._attempt(work, "vae")
                yield KEYFRAME_STEP * index, _to_uint8(picture)[0]

    def _context(self, stage: str, frames: Sequence[int]) -> Tensor:
        """What the network of "keyframes" or "interpolation" hears in some frames, (n, D)."""
        model, N = self.model, self.plan.num_frames
        if stage == "keyframes":
            unet, network = model.keyframe_unet, "keyframe_unet"
            names = model.config.keyframe_encoders
        else:
            unet, network = model.interpolation_unet, "interpolation_unet"
            names = model.config.interpolation_encoders
        with self._timed("audio"):
            features = self.inputs.features
            if features is None:
                heard = [self.hearings[name].frames(frames) for name in names]
                until = min(N, max(one.heard_until for one in self.hearings.values()))
            else:
                heard, until = [features[name][torch.tensor(frames)] for name in names], N
            joined = torch.cat([one.to(model.device) for one in heard], dim=-1)
            context = self._attempt(partial(unet.project_audio, joined[None]), network)[0]
        self.progress("audio", until, N)
        return context

    def _identity(self) -> Tensor:
        """The scaled latent (1, C, h, w) of the portrait."""
        picture = self.inputs.portrait[None].to(self.model.device)
        return self._attempt(partial(self.model.codec.encode, picture), "vae")

    def _keyframes(self, first: int) -> Iterator[Tensor]:
        """Yield the scaled latent (C, h, w) of each keyframe from `first` on, clip by clip."""
        identity = None
        for clip in self.plan.clips():
            if clip.keyframes.stop <= first:
                continue
            latents = None if self.store is None else self.store.get(clip.index)
            if latents is None:
                if identity is None:
                    with self._timed("keyframes"):
                        identity = self._identity()
                context = self._context("keyframes", clip.audio)
                work = partial(self._sample_clip, clip, identity, context)
                with self._timed("keyframes"):
                    # slot 0 is the identity's, and slots after the clip's keyframes are padding
                    latents = self._attempt(work, "keyframe_unet")[1 : 1 + len(clip.keyframes)]
                if self.store is not None:
                    self.store.put(clip.index, latents.cpu())
            else:
                self.progress("keyframes", clip.keyframes.stop, self.plan.num_keyframes)
            yield from latents[max(0, first - clip.keyframes.start) :].to(self.model.device)

    def _sample_clip(self, clip: Clip, identity: Tensor, context: Tensor) -> Tensor:
        """Sample a clip's slots, (T, C, h, w), from what each of them hears, (T, D)."""
        emotion = self.inputs.emotion[torch.tensor(clip.audio)]

        def report(update: int, _: Tensor) -> None:
            done = clip.keyframes.start + len(clip.keyframes) * update // self.updates
            self.progress("keyframes", done, self.plan.num_keyframes)

        return self.keyframe_stage.sample(
            identity,
            context[None],
            emotion[None].to(self.model.device),
            self._noise("keyframes", [clip.index]),
            report,
            batched=self.model.residency.level == "high",
        )[0]

    def _segments(self, begin: int) -> Iterator[Tensor]:
        """Yield the pictures of each segment from `begin` on, (T, 3, R, R) in [0, 1].

        All segments of a chunk are sampled, those before `begin` too.
        """
        N = self.plan.num_frames
        guided = self.interpolation_stage.autoguidance != 1
        networks = ("interpolation_unet", "interpolation_guide")[: 1 + guided]
        first = begin - begin % self.options.chunk
        segments = islice(self.plan.segments(), first, None)
        keyframes = self._keyframes(first)
        start = next(keyframes)
        while chunk := list(islice(segments, self.options.chunk)):
            ends = list(islice(keyframes, len(chunk)))
            pairs = torch.stack([torch.stack(pair) for pair in pairwise([start, *ends])])
            start = ends[-1]
            heard = [frame for segment in chunk for frame in segment.audio]
            context = self._context("interpolation", heard)
            context = context.view(len(chunk), NUM_FRAMES, -1)
            with self._timed("interpolation"):
                work = partial(self._sample_chunk, chunk, pairs, context)
                latents = self._attempt(work, *networks)
            for segment, sampled in zip(chunk, latents, strict=True):
                if segment.index < begin:
                    continue
                shown = sampled[: N - segment.first_frame]  # the last one may reach past the end
                with self._timed("decode"):
                    pictures = self._attempt(partial(self._decode, shown), "vae")
                self.progress("decode", min(segment.first_frame + len(pictures), N), N)
                yield pictures

    def _sample_chunk(self, chunk: list[Segment], pairs: Tensor, context: Tensor) -> Tensor:
        """Sample all frames of segments, (B, T, C, h, w).

        Args:
            chunk: the segments.
            pairs: their keyframes, (B, 2, C, h, w).
            context: what their frames hear, (B, T, D).
        """
        if self.model.residency.level == "low" and len(chunk) > 1:
            one_by_one = zip(chunk, pairs, context, strict=True)
            return torch.cat(
                [self._sample_chunk([s], pair[None], heard[None]) for s, pair, heard in one_by_one]
            )
        N = self.plan.num_frames

        def report(update: int, _: Tensor) -> None:
            frames = KEYFRAME_STEP * len(chunk) * update // self.updates
            self.progress("interpolation", min(chunk[0].first_frame + frames, N), N)

        return self.interpolation_stage.sample(
            pairs,
            context,
            self._noise("interpolation", [segment.index for segment in chunk]),
            report,
        )

    def _decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (T, C, h, w) -> pictures (T, 3, R, R) in [0, 1]."""
        codec, R = self.model.codec, self.model.config.resolution
        at_once = 1 if self.model.residency.level == "low" else max(1, DECODE_PIXELS // R**2)
        decoded = (codec.decode(part) for part in torch.split(latents, at_once))
        if self.detail_strength:
            pictures = torch.cat([self._detail.restore(part) for part in decoded])
        else:
            pictures = torch.cat(list(decoded))
        return ((pictures + 1) / 2).clamp(0, 1)

    @cached_property
    def _detail(self) -> PortraitDetail:
        """What the portrait's latent lost; the VAE is on the device when this is asked for."""
        codec = self.model.codec
        portrait = self.inputs.portrait.to(self.model.device)
        decoded = codec.decode(codec.encode(portrait[None]))[0]
        return PortraitDetail(portrait, decoded, self.detail_strength)

    def _attempt(self, work: Callable[[], Result], *networks: str) -> Result:
        return self.model.residency.attempt(networks, work)

    def _attempt_with(self, network: str, work: Callable[[], Tensor]) -> Tensor:
        return self._attempt(work, network)

    def _noise(self, kind: str, indices: list[int]) -> Tensor:
        """(B, T, C, h, w) on the device."""
        seed = self.options.seed
        noises = [noise_for(kind, index, self.shape, seed) for index in indices]
        return torch.stack(noises).to(self.model.device)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.timings[stage] += time.perf_counter() - started


def _to_uint8(pictures: Tensor) -> NDArray[np.uint8]:
    """(n, 3, R, R) in [0, 1] -> (n, R, R, 3), cut to whole numbers."""
    pixels = (pictures * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return pixels.cpu().numpy()
