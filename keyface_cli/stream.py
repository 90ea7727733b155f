"""Sound, portrait and emotion become frames: the whole method, as a stream.

    sound    -> tokens of the audio encoders -> each stage's audio context
    portrait -> identity latent
    clip     -> keyframe latents      (stage one, when the next segment needs them)
    segments -> latents of all frames (stage two, a chunk at a time) -> pictures -> merged frames

Only the waveform's features grow with its length; latents and pictures are dropped as they go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
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
from keyface_cli.models.speech import encode
from keyface_cli.models.unet import VideoUNet
from keyface_cli.models.vae import LatentCodec
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.stages.start import noise_for
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
        options: GenerationOptions,
        progress: Progress,
        timings: dict[str, float],
    ) -> None:
        config, sampling = model.config, options.sampling(model.config.sampling)
        sigmas = sigmas_for(sampling.schedule, sampling.steps)
        self.model, self.plan, self.options = model, plan, options
        self.progress, self.timings = progress, timings
        self.updates = len(sigmas) - 1
        self.shape = (NUM_FRAMES, config.latent_channels, config.latent_size, config.latent_size)
        self.keyframe_stage = KeyframeStage(
            model.keyframe_unet,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.audio_guidance,
            sampling.identity_guidance,
        )
        self.interpolation_stage = InterpolationStage(
            model.interpolation_unet,
            model.guide,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.autoguidance,
        )

    @torch.inference_mode()
    def frames(
        self,
        portrait: Tensor,
        waveform: Tensor,
        emotion: Tensor,
        features: Mapping[str, Tensor] | None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield finished frames (n, R, R, 3), N in all; see `KeyFacePipeline.stream`."""
        left = self.plan.num_frames
        with memory_errors(self.model.device):
            with self._timed("audio"):
                contexts = self._listen(waveform, features)
            with self._timed("keyframes"):
                picture = portrait[None].to(self.model.device)
                identity = self._attempt(partial(self.model.codec.encode, picture), "vae")
            keyframes = self._keyframes(identity, contexts[0], emotion)
            for merged in merge_segments(self._segments(keyframes, contexts[1])):
                # cut, not rounded, to whole numbers: as published (SPEC 9)
                pixels = (merged[:left] * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
                left -= len(pixels)
                if len(pixels):
                    yield pixels.cpu().numpy()

    def _listen(
        self, waveform: Tensor, features: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Encode the sound -> the context (N, D) of each stage."""
        model, N = self.model, self.plan.num_frames
        self.progress("audio", 0, N)
        if features is None:
            features = self._attempt(partial(encode, model.encoders, waveform), *model.encoders)
        contexts = []
        for network, unet, names in (
            ("keyframe_unet", model.keyframe_unet, model.config.keyframe_encoders),
            ("interpolation_unet", model.interpolation_unet, model.config.interpolation_encoders),
        ):
            heard = torch.cat([features[name].to(model.device) for name in names], dim=-1)
            contexts.append(self._attempt(partial(unet.project_audio, heard[None]), network)[0])
        self.progress("audio", N, N)
        return contexts[0], contexts[1]

    def _keyframes(self, identity: Tensor, context: Tensor, emotion: Tensor) -> Iterator[Tensor]:
        """Yield the scaled latent (C, h, w) of each keyframe; a clip is made at its first."""
        for clip in self.plan.clips():
            work = partial(self._sample_clip, clip, identity, context, emotion)
            with self._timed("keyframes"):
                latents = self._attempt(work, "keyframe_unet")
            # slot 0 is the identity's, and slots after the clip's keyframes are padding
            yield from latents[1 : 1 + len(clip.keyframes)]

    def _sample_clip(
        self, clip: Clip, identity: Tensor, context: Tensor, emotion: Tensor
    ) -> Tensor:
        """Sample a clip's slots, (T, C, h, w)."""
        heard = torch.tensor(clip.audio)

        def report(update: int, _: Tensor) -> None:
            done = clip.keyframes.start + len(clip.keyframes) * update // self.updates
            self.progress("keyframes", done, self.plan.num_keyframes)

        return self.keyframe_stage.sample(
            identity,
            context[heard][None],
            emotion[heard][None].to(self.model.device),
            self._noise("keyframes", [clip.index]),
            report,
            batched=self.model.residency.level == "high",
        )[0]

    def _segments(self, keyframes: Iterator[Tensor], context: Tensor) -> Iterator[Tensor]:
        """Yield the pictures of each segment, (T, 3, R, R) in [0, 1], on the device."""
        N = self.plan.num_frames
        guided = self.interpolation_stage.autoguidance != 1
        networks = ("interpolation_unet", "interpolation_guide")[: 1 + guided]
        segments = self.plan.segments()
        start = next(keyframes)
        while chunk := list(islice(segments, self.options.chunk)):
            ends = list(islice(keyframes, len(chunk)))
            pairs = torch.stack([torch.stack(pair) for pair in pairwise([start, *ends])])
            start = ends[-1]
            with self._timed("interpolation"):
                work = partial(self._sample_chunk, chunk, pairs, context)
                latents = self._attempt(work, *networks)
            for segment, sampled in zip(chunk, latents, strict=True):
                shown = sampled[: N - segment.first_frame]  # the last one may reach past the end
                with self._timed("decode"):
                    pictures = self._attempt(partial(self._decode, shown), "vae")
                self.progress("decode", min(segment.first_frame + len(pictures), N), N)
                yield pictures

    def _sample_chunk(self, chunk: list[Segment], pairs: Tensor, context: Tensor) -> Tensor:
        """Sample all frames of segments, (B, T, C, h, w), from their keyframes (B, 2, C, h, w)."""
        if self.model.residency.level == "low" and len(chunk) > 1:
            one_by_one = zip(chunk, pairs, strict=True)
            return torch.cat(
                [self._sample_chunk([s], pair[None], context) for s, pair in one_by_one]
            )
        N = self.plan.num_frames

        def report(update: int, _: Tensor) -> None:
            frames = KEYFRAME_STEP * len(chunk) * update // self.updates
            self.progress("interpolation", min(chunk[0].first_frame + frames, N), N)

        return self.interpolation_stage.sample(
            pairs,
            context[torch.tensor([segment.audio for segment in chunk])],
            self._noise("interpolation", [segment.index for segment in chunk]),
            report,
        )

    def _decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (T, C, h, w) -> pictures (T, 3, R, R) in [0, 1]."""
        codec, R = self.model.codec, self.model.config.resolution
        at_once = 1 if self.model.residency.level == "low" else max(1, DECODE_PIXELS // R**2)
        parts = torch.split(latents, at_once)
        pictures = torch.cat([codec.decode(part) for part in parts])
        return ((pictures + 1) / 2).clamp(0, 1)

    def _attempt(self, work: Callable[[], Result], *networks: str) -> Result:
        return self.model.residency.attempt(networks, work)

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
