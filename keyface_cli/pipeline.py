"""A loaded model: portrait, sound and emotion in, a stream of frames out (see `stream`)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from keyface_cli.checkpoints.checkpoint import (
    COMPONENTS,
    Checkpoint,
    encoder_names,
    needed_components,
)
from keyface_cli.checkpoints.installed import resolve_model
from keyface_cli.config import (
    NUM_FRAMES,
    SAMPLES_PER_FRAME,
    USUAL_CHUNK,
    ModelConfig,
)
from keyface_cli.device import (
    available_memory,
    memory_errors,
    require_memory,
    resolve_device,
    resolve_dtype,
)
from keyface_cli.engine import STAGES, Engine, Inputs, Run
from keyface_cli.errors import DeviceError, FeaturesError, WeightsError
from keyface_cli.memory import ACTIVATIONS_PER_LATENT, LEVELS, Demand, Residency
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.speech import Features, Samples
from keyface_cli.options import GenerationOptions, InputOptions, KeyframeStore, Progress
from keyface_cli.stages.timeline import Timeline
from keyface_cli.stream import frames, keyframe_pictures

if TYPE_CHECKING:
    from PIL import Image

    from keyface_cli.emotion import EmotionTrack
    from keyface_cli.media.framing import CutOut, View
    from keyface_cli.models.portrait_decoder import PortraitDecoder
    from keyface_cli.models.unet import VideoUNet

logger = logging.getLogger(__name__)

AUDIO_ENCODERS = ("wavlm", "wav2vec2", "beats")


class KeyFacePipeline:
    """A loaded model, made by `load`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        parts: dict[str, nn.Module],
        device: torch.device,
        formats: dict[str, torch.dtype],
        memory: str = "high",
        chunk: int = USUAL_CHUNK,
    ) -> None:
        config = checkpoint.config
        self.checkpoint, self.config = checkpoint, config
        self.dtype = formats["keyframe_unet"]
        self._formats = formats
        self.engine = Engine(
            config,
            device,
            Residency(parts, device, memory),
            cast("VideoUNet", parts["keyframe_unet"]),
            cast("VideoUNet", parts["interpolation_unet"]),
            LatentCodec(cast(Any, parts["vae"]), config.latent_scale, config.vae_patch_size),
            {name: parts[name] for name in encoder_names(config) if name in parts},
            portrait_decoder=cast("PortraitDecoder | None", parts.get("portrait_decoder")),
            chunk=chunk,
        )

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self.engine.device

    @property
    def has_encoders(self) -> bool:
        """Whether it has the audio encoders; without them every stream needs `features`."""
        return bool(self.engine.encoders)

    @property
    def memory(self) -> str:
        """The level of `memory` in use: "high", "balanced" or "low"."""
        return self.engine.residency.level

    @property
    def chunk(self) -> int:
        """Segments that are made together where a run does not say: as many as fit on a GPU."""
        return self.engine.chunk

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of "load", and of each stage of the last stream: see `engine.STAGES`."""
        return self.engine.timings

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint | Path | str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        vae_dtype: str | None = None,
        memory: str = "auto",
        compile: bool = False,
        encoders: bool = True,
    ) -> KeyFacePipeline:
        """Load a model.

        Args:
            checkpoint: an opened checkpoint, its folder, a model's name, or None for the default
                model (see `installed.resolve_model`).
            device: "auto", "cpu", "cuda", "cuda:N" or "mps".
            dtype: of the UNets: "auto", "float32", "bfloat16" or "float16". The audio encoders stay
                in float32.
            vae_dtype: of the VAE, the same words; "auto" is that of the UNets, None what the model
                says (the published one float32).
            memory: "high", "balanced" or "low", see `memory`; "auto" is what fits now. Where memory
                runs out all the same, the next lower one is taken.
            compile: have torch.compile translate the UNets at their first call, which takes minutes
                and makes every further one faster.
            encoders: load the audio encoders too; without them every stream needs `features`.

        Raises:
            WeightsError: the folder or a file in it is missing or damaged.
            DeviceError: the device is not there or has too little memory.
        """
        started = time.perf_counter()
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.open(resolve_model(checkpoint))
        where = resolve_device(device)
        formats = formats_of(checkpoint.config, where, dtype, vae_dtype)
        names = needed_components(checkpoint.config, guide=False)
        if not encoders:
            names = tuple(name for name in names if name not in AUDIO_ENCODERS)
        demand = demand_of(checkpoint, formats)
        free = available_memory(where) if where.type == "cuda" else None  # else the machine's own
        if memory == "auto":
            memory = demand.level_for(free)
        if memory not in LEVELS:
            raise DeviceError(
                f"no such level of memory: {memory}", f"use auto, {', '.join(LEVELS)}"
            )
        # below the highest level each stage fetches its own networks from main memory
        place = where if memory == "high" else torch.device("cpu")
        parts = load_networks(checkpoint, names, place, formats)
        pipeline = cls(checkpoint, parts, where, formats, memory, demand.chunk_for(free, memory))
        if compile:
            pipeline.engine.compiled = True
            pipeline.engine.keyframe_unet.compile(dynamic=False)
            pipeline.engine.interpolation_unet.compile(dynamic=False)
        pipeline.timings["load"] = time.perf_counter() - started
        return pipeline

    def __call__(
        self,
        portrait: str | PathLike[str] | Image.Image | NDArray[np.uint8],
        audio: str | PathLike[str] | Samples,
        *,
        emotion: str | PathLike[str] | EmotionTrack | NDArray[np.float32] = "neutral",
        features: str | PathLike[str] | Mapping[str, Features] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[NDArray[np.uint8]]:
        """Make the face in a portrait speak a recording, frame by frame, at 25 frames a second.

        Args:
            portrait: a file, a picture of Pillow's, or an array (H, W, 3) of RGB in 0..255.
            audio: a file with sound, or a waveform (S,), mono at 16 kHz in [-1, 1].
            emotion: a name, a curve in one line, a file, "auto", a curve, or valence and arousal
                in [-1, 1] of each of the N = ceil(S / 640) video frames, (N, 2).
            features: a file of `keyface embed` for this recording, or as for `stream`.
            progress: told how far each stage is.
            options: of `keyface animate`, by the same names, what decides the frames: the fields of
                `options.InputOptions` (crop, face, start, duration, size and so on, also as
                `keywords.as_options` has them) and of `GenerationOptions` (seed, steps and so on).
                `size` is for a model with a portrait decoder: S is what fits into it, R at least,
                and at most 1024 and what the portrait's square has.

        Returns:
            RGB frames (n, S, S, 3) as soon as they are final, N in all; S is R without `size`.

        Raises:
            KeyFaceError: a file or an option cannot be used.
            TypeError: there is no such option.
            ValueError: an array has another shape or type, or holds NaN.
        """
        from keyface_cli.emotion import check_emotion, estimate_curve
        from keyface_cli.keywords import as_options
        from keyface_cli.media.audio import take_waveform

        if not isinstance(emotion, np.ndarray):
            options["emotion"] = emotion
        if isinstance(features, str | PathLike):
            options["features"] = features
        chosen = InputOptions(**as_options(InputOptions, options))
        track = check_emotion(chosen.emotion, chosen.voice_model)
        cut = self._cut_out(portrait, chosen)
        waveform = take_waveform(audio, chosen.start, chosen.duration)
        if isinstance(emotion, np.ndarray):
            curve = np.clip(chosen.emotion_strength * emotion, -1, 1)
        else:
            track = track or estimate_curve(waveform, chosen.voice_model)
            N = math.ceil(len(waveform) / SAMPLES_PER_FRAME)
            curve = track.scaled(chosen.emotion_strength).sample(N)
        if isinstance(features, str | PathLike):
            features = self._stored_features(audio, chosen, len(curve))
        return self.stream(cut.portrait, waveform, curve, chosen, progress, features, view=cut.view)

    def _cut_out(self, portrait: Any, chosen: InputOptions) -> CutOut:
        from keyface_cli.media.framing import cut_out, parse_size
        from keyface_cli.media.portrait import as_picture, parse_colour

        colour = None if chosen.background is None else parse_colour(chosen.background)
        side = 0 if chosen.size is None else min(parse_size(chosen.size))
        picture = as_picture(portrait, colour, chosen.portrait_time)
        crop = chosen.crop, chosen.face, chosen.require_face
        return cut_out(picture, self.config, *crop, scale=lambda shown: side)

    def _stored_features(
        self, audio: Any, chosen: InputOptions, frames: int
    ) -> Mapping[str, Features]:
        """What a file of `keyface embed` holds, which belongs to a recording that is a file."""
        from keyface_cli.files import file_hash
        from keyface_cli.media.features import load_features, origin

        if chosen.features is None or not isinstance(audio, str | PathLike):
            raise FeaturesError(
                f"{chosen.features}: belongs to a file, the audio is none", "name the audio's file"
            )
        names = encoder_names(self.config)
        sound = file_hash(Path(audio))
        belongs = origin(sound, chosen.start, chosen.duration, self.checkpoint, names)
        return load_features(chosen.features, belongs, frames)

    def stream(
        self,
        portrait: NDArray[np.float32],
        waveform: Samples,
        emotion: NDArray[np.float32],
        options: GenerationOptions | None = None,
        progress: Progress | None = None,
        features: Mapping[str, Features] | None = None,
        *,
        first_frame: int = 0,
        last_frame: int | None = None,
        store: KeyframeStore | None = None,
        motion: NDArray[np.float32] | None = None,
        view: View | None = None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Make a talking video, frame by frame.

        Args:
            portrait: (3, R, R) in [-1, 1], with R the model's resolution.
            waveform: (S,) mono at 16 kHz in [-1, 1], an array or whatever reads slices of one.
            emotion: (N, 2) valence and arousal in [-1, 1] of each video frame, N = ceil(S / 640).
            options: the choices of this run.
            progress: told how far each stage is.
            features: the audio features of each encoder, (N, 2, D), in memory or in a file of
                `keyface embed`; None computes them now.
            first_frame: leave out the frames before this one; those after it are the same bits.
            last_frame: leave out this frame and those after it.
            store: where keyframes are taken from and put to; None makes them anew.
            motion: (N, M) movements of head, eyes and lids, as `config.motion` names them and
                `stages.motion` describes them; None draws them from the seed.
            view: what the frames show, where that is not the portrait as given: see
                `media.framing.cut_out`.

        Returns:
            RGB frames (n, R, R, 3), of a view (n, S, S, 3), as soon as they are final,
            N - `first_frame` in all.

        Raises:
            ConfigError: an option is out of its range.
            WeightsError: autoguidance is asked for and the model has no guide, nor an anchor.
            DeviceError: memory ran out, here or while frames are made.
            ValueError: an array has another shape or type, or holds NaN.
        """
        inputs = self._inputs(portrait, waveform, emotion, features, motion, view)
        if not 0 <= first_frame < max(1, len(emotion)):
            raise ValueError(f"no frame {first_frame} in a video of {len(emotion)}")
        options = options or GenerationOptions()
        if options.sampling(self.config).autoguidance != 1 and self.engine.guide is None:
            self._load_guide()
        run = self._begin(inputs, options, progress)
        plan = Timeline(run.num_frames)
        made = frames(run, plan, first_frame=first_frame, last_frame=last_frame, store=store)
        return self.engine.running(made)

    def keyframes(
        self,
        portrait: NDArray[np.float32],
        waveform: Samples,
        emotion: NDArray[np.float32],
        options: GenerationOptions | None = None,
        progress: Progress | None = None,
        features: Mapping[str, Features] | None = None,
        store: KeyframeStore | None = None,
        view: View | None = None,
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Make the keyframes alone: stage one of `stream`, which takes and raises the same.

        Returns:
            For each keyframe its frame in the video and its picture, RGB (R, R, 3).
        """
        run = self.begin_keyframes(portrait, waveform, emotion, options, progress, features, view)
        return self.engine.running(keyframe_pictures(run, Timeline(run.num_frames), store))

    def begin_keyframes(
        self,
        portrait: NDArray[np.float32],
        waveform: Samples,
        emotion: NDArray[np.float32],
        options: GenerationOptions | None = None,
        progress: Progress | None = None,
        features: Mapping[str, Features] | None = None,
        view: View | None = None,
    ) -> Run:
        """Return what samples the keyframes of `keyframes`, for a caller that chooses the clips."""
        inputs = self._inputs(portrait, waveform, emotion, features, view=view)
        # the guide is of stage two, which does not run
        options = replace(options or GenerationOptions(), autoguidance=1.0)
        return self._begin(inputs, options, progress)

    def _inputs(
        self,
        portrait: NDArray[np.float32],
        waveform: Samples,
        emotion: NDArray[np.float32],
        features: Mapping[str, Features] | None,
        motion: NDArray[np.float32] | None = None,
        view: View | None = None,
    ) -> Inputs:
        """Check the shapes of what was given."""
        R, N = self.config.resolution, math.ceil(len(waveform) / SAMPLES_PER_FRAME)
        if getattr(waveform, "ndim", 1) != 1:
            raise ValueError("waveform has shape (channels, samples), not (samples,)")
        if isinstance(waveform, np.ndarray):
            if waveform.dtype.kind != "f":
                raise ValueError(f"waveform is of {waveform.dtype}, not float32 in [-1, 1]")
            if not np.isfinite(waveform).all():
                raise ValueError("waveform holds NaN or infinity")
        for name, array, shape in (
            ("portrait", portrait, (3, R, R)),
            ("emotion", emotion, (N, 2)),
            ("motion", motion, (N, len(self.config.motion))),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, not {shape}")
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")
        for name in encoder_names(self.config):
            if features is None and name not in self.engine.encoders:
                raise ValueError(f"loaded without {name}: features are needed")
            if features is not None and features[name].shape[:2] != (N, 2):
                raise ValueError(f"features of {name} have shape {tuple(features[name].shape)}")
        # copied, so that read-only and reversed arrays serve too
        picture, curve = (torch.tensor(np.array(a, np.float32)) for a in (portrait, emotion))
        moved = None if motion is None else torch.tensor(np.array(motion, np.float32))
        shown = None
        if view is not None:
            if self.engine.portrait_decoder is None:
                raise ValueError("the model has no portrait decoder: it shows no view")
            from keyface_cli.models import portrait_decoder

            shown = portrait_decoder.View(torch.tensor(view.picture)[None], view.place)
        return Inputs(picture, waveform, curve, features, moved, shown)

    def _begin(self, inputs: Inputs, options: GenerationOptions, progress: Progress | None) -> Run:
        self.engine.timings.update(dict.fromkeys(STAGES[1:], 0.0))
        return Run(self.engine, inputs, options, progress or _silent)

    def _load_guide(self) -> None:
        name = "interpolation_guide"
        if name not in self.checkpoint.components:
            if self.config.parameterization == "anchored":
                return  # the keyframes themselves guide: see `InterpolationStage`
            usual = self.config.sampling.audio_guidance
            raise WeightsError(
                f"the model has no {name}: {self.checkpoint.folder}",
                "use --autoguidance 1: without a guide the keyframes' --audio-guidance makes "
                f"motion stronger, {usual:g} by this model's default",
            )
        started = time.perf_counter()
        place = self.device if self.memory == "high" else torch.device("cpu")
        try:
            loaded = load_networks(self.checkpoint, (name,), place, self._formats)
        except DeviceError:
            # from the next lower level on, networks wait in main memory
            if place.type == "cpu" or not self.engine.residency.step_down():
                raise
            logger.warning("out of memory, continuing with --memory %s", self.memory)
            loaded = load_networks(self.checkpoint, (name,), torch.device("cpu"), self._formats)
        self.engine.guide = cast("VideoUNet", loaded[name])
        self.engine.residency.networks[name] = self.engine.guide
        if self.engine.compiled:
            self.engine.guide.compile(dynamic=False)
        self.timings["load"] += time.perf_counter() - started


def formats_of(
    config: ModelConfig, device: torch.device, dtype: str | torch.dtype, vae_dtype: str | None
) -> dict[str, torch.dtype]:
    """The number format of each network."""
    network = resolve_dtype(dtype, device)
    vae_dtype = vae_dtype or config.vae_dtype
    formats = dict.fromkeys(COMPONENTS, network) | dict.fromkeys(AUDIO_ENCODERS, torch.float32)
    decoding = network if vae_dtype == "auto" else resolve_dtype(vae_dtype, device)
    return formats | {"vae": decoding, "portrait_decoder": decoding}


def demand_of(checkpoint: Checkpoint, formats: Mapping[str, torch.dtype]) -> Demand:
    """Estimate what a model takes on a device, from the number format of each network.

    Raises:
        WeightsError: a file of the model is damaged.
    """
    config = checkpoint.config
    guided = config.sampling.autoguidance != 1
    names = set(needed_components(config, guide=guided)) & set(checkpoint.components)
    sizes = {name: checkpoint.count(name) * formats[name].itemsize for name in names}
    between = sizes["interpolation_unet"] + sizes.get("interpolation_guide", 0)
    latents = NUM_FRAMES * config.latent_channels * config.latent_size**2
    return Demand(
        sum(sizes.values()),
        max(sizes["keyframe_unet"], between),
        latents * formats["keyframe_unet"].itemsize * ACTIVATIONS_PER_LATENT,
        3 + (config.sampling.emotion_guidance != 1),  # branches of the keyframes' guidance
    )


def load_networks(
    checkpoint: Checkpoint,
    names: tuple[str, ...],
    device: torch.device,
    formats: Mapping[str, torch.dtype],
) -> dict[str, nn.Module]:
    """Load networks of a model, each in its number format.

    Raises:
        WeightsError: a file is missing or damaged.
        DeviceError: there is too little memory.
    """
    needed = sum(checkpoint.count(name) * formats[name].itemsize for name in names)
    require_memory(device, needed, "the model")
    with memory_errors(device):
        return {name: checkpoint.load(name, device=device, dtype=formats[name]) for name in names}


def _silent(stage: str, done: int, total: int) -> None:
    pass
