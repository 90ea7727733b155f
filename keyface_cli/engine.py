"""The networks at work: each brought to its device, timed, and tried again where memory runs out.

`Engine` holds the networks of a model, `Run` what one video asks of them. In which order a run asks
is told by `stream`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from keyface_cli.config import KEYFRAME_STEP, NUM_FRAMES, USUAL_CHUNK, ModelConfig
from keyface_cli.device import memory_errors
from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.memory import Residency, Result
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.speech import (
    AudioFeatures,
    Features,
    Samples,
    audio_features,
    encoded_sound,
)
from keyface_cli.options import GenerationOptions, Progress
from keyface_cli.stages.interpolation import InterpolationStage
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.stages.noise import noise_for
from keyface_cli.stages.timeline import Clip, Segment

if TYPE_CHECKING:
    from keyface_cli.models.portrait_decoder import Portrait, PortraitDecoder, View
    from keyface_cli.models.unet import VideoUNet
    from keyface_cli.stages.monochrome import Tint
    from keyface_cli.stages.motion import Motion

STAGES = ("load", "audio", "keyframes", "interpolation", "decode")
DECODE_PIXELS = 2**19  # decoded at once: 8 pictures of 256 x 256, 2 of 512 x 512


@dataclass
class Engine:
    """The networks of a model, and where they are.

    Args:
        config: what they are.
        device: where they run.
        residency: brings each of them there.
        keyframe_unet: stage one.
        interpolation_unet: stage two.
        codec: pictures to latents and back.
        encoders: of the sound, by name; none where features are given.
        guide: the weaker stage two, where there is one.
        portrait_decoder: puts decoded frames right by the portrait, where there is one.
        chunk: segments that are sampled together where a run does not say.
    """

    config: ModelConfig
    device: torch.device
    residency: Residency
    keyframe_unet: VideoUNet
    interpolation_unet: VideoUNet
    codec: LatentCodec
    encoders: dict[str, nn.Module]
    guide: VideoUNet | None = None
    portrait_decoder: PortraitDecoder | None = None
    chunk: int = USUAL_CHUNK

    def __post_init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._spans: deque[tuple[str, Any, Any]] = deque()  # of a GPU, that may not be over
        self._latents: deque[tuple[Tensor, Tensor]] = deque(maxlen=4)  # of the last portraits
        self.compiled = False  # so that calls of another size would be compiled anew

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent in each stage of the last run."""
        self._settle(wait=True)
        return self._seconds

    def work(self, work: Callable[[], Result], *networks: str) -> Result:
        """Do work that needs networks; see `memory.Residency.attempt`."""
        return self.residency.attempt(networks, work)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that a block takes to those of a stage."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            yield
            self._seconds[stage] += time.perf_counter() - started
            return
        # the GPU notes the times itself, so that nobody waits for it between stages
        begin, end = (cast(Any, torch.cuda.Event)(enable_timing=True) for _ in range(2))
        begin.record(torch.cuda.current_stream(self.device))
        yield
        end.record(torch.cuda.current_stream(self.device))
        self._spans.append((stage, begin, end))
        self._settle(wait=False)

    def _settle(self, *, wait: bool) -> None:
        while self._spans and (wait or self._spans[0][2].query()):
            stage, begin, end = self._spans.popleft()
            end.synchronize()
            self._seconds[stage] += begin.elapsed_time(end) / 1000

    def audio_features(self, waveform: Samples) -> dict[str, AudioFeatures]:
        """Return each encoder's features of a recording, computed when they are asked for."""
        encoded = encoded_sound(self.config, waveform)
        return {
            name: audio_features(name, encoder, encoded, partial(self.residency.attempt, (name,)))
            for name, encoder in self.encoders.items()
        }

    def latent_of(self, portrait: Tensor) -> Tensor:
        """Encode a portrait (3, R, R) as a scaled latent (1, C, h, w); the last few are kept."""
        for known, latent in self._latents:
            if torch.equal(known, portrait):
                return latent
        latent = self.codec.encode(portrait[None].to(self.device))
        self._latents.append((portrait, latent))
        return latent

    @torch.inference_mode()
    def running(self, made: Iterator[Result]) -> Iterator[Result]:
        """Pass on what a stream makes, without gradients.

        Raises:
            DeviceError: memory ran out at the lowest level too.
        """
        with memory_errors(self.device):
            yield from made


@dataclass(frozen=True)
class Inputs:
    """What a video is made of.

    Args:
        portrait: (3, R, R) in [-1, 1].
        waveform: (S,) at 16 kHz in [-1, 1].
        emotion: (N, 2) valence and arousal of each video frame.
        features: of each audio encoder, (N, 2, D); None encodes the waveform.
        motion: (N, M) movements of head, eyes and lids, as `config.motion` names them; None draws
            them from the seed.
        view: what of the portrait is shown, where that is not all of it or has more pixels.
    """

    portrait: Tensor
    waveform: Samples
    emotion: Tensor
    features: Mapping[str, Features] | None
    motion: Tensor | None = None
    view: View | None = None


class Run:
    """One video's work on an engine.

    What is sampled depends on its place in the video, its noise too, and on nothing that was
    sampled before: a run that begins in the middle gives the same bits.

    Args:
        engine: the networks.
        inputs: the portrait, the sound and the emotion.
        options: the choices of this run.
        progress: told how far each stage is.
    """

    def __init__(
        self, engine: Engine, inputs: Inputs, options: GenerationOptions, progress: Progress
    ) -> None:
        config, sampling = engine.config, options.sampling(engine.config)
        sigmas = sigmas_for(sampling.schedule, sampling.steps, sampling.sigma_min)
        self.engine, self.inputs, self.progress = engine, inputs, progress
        self.num_frames = len(inputs.emotion)
        self.chunk = options.chunk or engine.chunk
        self._seed, self._updates = options.seed, len(sigmas) - 1
        self._liveliness, self._half_vae = sampling.liveliness, sampling.half_vae
        self._keyframe_stage = KeyframeStage(
            engine.keyframe_unet,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.audio_guidance,
            sampling.identity_guidance,
            sampling.emotion_guidance,
            sampling.guidance_interval,
        )
        self._interpolation_stage = InterpolationStage(
            engine.interpolation_unet,
            engine.guide,
            config.latent_scale,
            config.parameterization,
            sigmas,
            sampling.autoguidance,
            sampling.guidance_interval,
        )
        self._encoded = (
            {} if inputs.features is not None else engine.audio_features(inputs.waveform)
        )

    def audio_context(self, stage: str, frames: Sequence[int]) -> Tensor:
        """Project the audio features of some frames for a network.

        Args:
            stage: "keyframes" or "interpolation".
            frames: n frames of the sound.

        Returns:
            (n, D) on the device.
        """
        engine, config, N = self.engine, self.engine.config, self.num_frames
        if stage == "keyframes":
            unet, network, names = engine.keyframe_unet, "keyframe_unet", config.keyframe_encoders
        else:
            unet, network = engine.interpolation_unet, "interpolation_unet"
            names = config.interpolation_encoders
        with engine.timed("audio"):
            features = self.inputs.features
            if features is None:
                found = [self._encoded[name].frames(frames) for name in names]
                until = min(N, max(one.encoded_until for one in self._encoded.values()))
            else:
                found, until = [features[name][torch.tensor(frames)] for name in names], N
            joined = torch.cat([one.to(engine.device) for one in found], dim=-1)
            context = engine.work(partial(unet.project_audio, joined[None]), network)[0]
        self.progress("audio", until, N)
        return context

    def follow(self, emotion: Tensor) -> None:
        """Go on with another curve, (N, 2); what is known of sound and portrait stays."""
        self.inputs = replace(self.inputs, emotion=emotion)

    @cached_property
    def identity(self) -> Tensor:
        """The scaled latent (1, C, h, w) of the portrait: the identity frame."""
        with self.engine.timed("keyframes"):
            return self.engine.work(partial(self.engine.latent_of, self.inputs.portrait), "vae")

    def sample_keyframes(self, clip: Clip, context: Tensor, of: int) -> Tensor:
        """Sample the keyframes of a clip.

        Args:
            clip: which.
            context: `audio_context` of its slots, (T, D).
            of: how many keyframes the video has.

        Returns:
            Scaled latents (K, C, h, w), one for each of `clip.keyframes`.
        """
        identity = self.identity

        def report(update: int, _: Tensor) -> None:
            done = clip.keyframes.start + len(clip.keyframes) * update // self._updates
            self.progress("keyframes", done, of)

        def sample() -> Tensor:
            return self._keyframe_stage.sample(
                identity,
                context[None],
                self.inputs.emotion[torch.tensor(clip.audio)][None],
                self._noise("keyframes", [clip.index]),
                report,
                batched=self.engine.residency.level == "high",
            )[0]

        with self.engine.timed("keyframes"):
            # slot 0 is the identity's, and slots after the clip's keyframes are padding
            return self.engine.work(sample, "keyframe_unet")[1 : 1 + len(clip.keyframes)]

    def sample_segments(
        self, segments: Sequence[Segment], keyframes: Tensor, context: Tensor
    ) -> Tensor:
        """Sample all frames of neighbouring segments.

        Args:
            segments: B of them.
            keyframes: scaled latents at both ends of each, (B, 2, C, h, w).
            context: `audio_context` of their frames, (B, T, D).

        Returns:
            Scaled latents (B, T, C, h, w).
        """
        guided = self._interpolation_stage.autoguidance != 1 and self.engine.guide is not None
        networks = ("interpolation_unet", "interpolation_guide")[: 1 + guided]
        with self.engine.timed("interpolation"):
            work = partial(self._sample_segments, segments, keyframes, context)
            return self.engine.work(work, *networks)

    def decode(self, latents: Tensor, first_frame: int) -> Tensor:
        """Decode neighbouring frames.

        Args:
            latents: scaled, (T, C, h, w).
            first_frame: where the first of them stands in the video: head, eyes and lids move
                with the time.

        Returns:
            Pictures (T, 3, R, R) in [0, 1]; (T, 3, S, S) of a view.
        """
        networks = ("vae",) if self.engine.portrait_decoder is None else ("vae", "portrait_decoder")
        with self.engine.timed("decode"):
            return self.engine.work(partial(self._decode, latents, first_frame), *networks)

    def _sample_segments(
        self, segments: Sequence[Segment], keyframes: Tensor, context: Tensor
    ) -> Tensor:
        if self.engine.residency.one_by_one and len(segments) > 1:
            one_by_one = zip(segments, keyframes, context, strict=True)
            return torch.cat(
                [
                    self._sample_segments([s], pair[None], tokens[None])
                    for s, pair, tokens in one_by_one
                ]
            )

        def report(update: int, _: Tensor) -> None:
            frames = KEYFRAME_STEP * len(segments) * update // self._updates
            done = min(segments[0].first_frame + frames, self.num_frames)
            self.progress("interpolation", done, self.num_frames)

        noise = self._noise("interpolation", [segment.index for segment in segments])
        if self.engine.compiled and self.engine.residency.level != "low":
            # a last chunk that is short is filled up: another size would be compiled for minutes
            missing = self.chunk - len(segments)
            keyframes, context, noise = (
                torch.cat([t, t[-1:].expand(missing, *t.shape[1:])])
                for t in (keyframes, context, noise)
            )
        sampled = self._interpolation_stage.sample(keyframes, context, noise, report)
        return sampled[: len(segments)]

    def _decode(self, latents: Tensor, first_frame: int) -> Tensor:
        codec, decoder = self.engine.codec, self.engine.portrait_decoder
        view = self.inputs.view
        side = self.engine.config.resolution if view is None else view.picture.shape[-1]
        low = self.engine.residency.level == "low"
        at_once = 1 if low else max(1, DECODE_PIXELS // side**2)
        pictures = torch.empty(len(latents), 3, side, side, device=latents.device)
        # of one size, as far as that goes: a short last part hardly takes less time
        for part in torch.arange(len(latents)).tensor_split(-(-len(latents) // at_once)):
            places = slice(int(part[0]), int(part[-1]) + 1)
            with self._in_half():
                decoded = codec.decode(latents[places])
            if decoder is not None:
                moved = self._motion_of(
                    range(first_frame + places.start, first_frame + places.stop)
                )
                decoded = decoder(decoded, self._portrait, moved)
            decoded = ((decoded + 1) / 2).clamp_(0, 1)
            if decoder is not None and self._tint is not None:
                decoded = self._tint(decoded)
            pictures[places] = decoded
        return pictures

    def _in_half(self) -> torch.autocast:
        """Compute in the UNets' number format what is kept in another; norms stay in float32."""
        dtype = next(self.engine.keyframe_unet.parameters()).dtype
        half = self._half_vae and dtype != torch.float32
        return torch.autocast(self.engine.device.type, dtype if half else None, enabled=half)

    def _motion_of(self, frames: range) -> Tensor:
        """(n, M) on the device; the last frame's past the end."""
        if self.inputs.motion is None:
            drawn = torch.from_numpy(self._motion.frames(frames.start, frames.stop))
        else:
            drawn = self.inputs.motion[torch.tensor(frames).clamp(max=self.num_frames - 1)]
        return drawn.to(self.engine.device)

    @cached_property
    def _motion(self) -> Motion:
        from keyface_cli.stages.motion import Motion  # of models with a portrait decoder

        waveform, N = self.inputs.waveform, self.num_frames
        return Motion(waveform, N, self._seed, self._liveliness)

    @cached_property
    def _portrait(self) -> Portrait:
        """What the portrait decoder keeps; it and the VAE are on the device by now."""
        engine, portrait = self.engine, self.inputs.portrait
        assert engine.portrait_decoder is not None
        decoded = engine.codec.decode(engine.latent_of(portrait))
        prepared = engine.portrait_decoder.prepare(portrait[None].to(engine.device), decoded)
        view = self.inputs.view
        if view is None:
            return prepared
        return prepared._replace(view=view._replace(picture=view.picture.to(engine.device)))

    @cached_property
    def _tint(self) -> Tint | None:
        from keyface_cli.stages.monochrome import Tint  # of models with a portrait decoder

        portrait, view = self.inputs.portrait, self.inputs.view
        shown = portrait if view is None else view.picture[0]
        return Tint.of(shown.to(self.engine.device))

    def _noise(self, kind: str, indices: list[int]) -> Tensor:
        """(B, T, C, h, w) on the device."""
        config = self.engine.config
        shape = (NUM_FRAMES, config.latent_channels, config.latent_size, config.latent_size)
        noises = [noise_for(kind, index, shape, self._seed) for index in indices]
        return torch.stack(noises).to(self.engine.device)
