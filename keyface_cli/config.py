"""Every number of an architecture in one place: frozen dataclasses (`presets` has three of them).

The defaults are the published model (KeyFace, arXiv 2503.01715). What may change from run to run
(steps, scales, seed) is `SamplingConfig` and `options.GenerationOptions`, apart from the
architecture.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from keyface_cli.errors import ConfigError

FPS = 25  # of every video that the model makes; its audio features have the same rate
SAMPLE_RATE = 16_000  # Hz, of the sound that the networks take
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640
NUM_FRAMES = 14  # of one clip of keyframes, and of one interpolated segment
KEYFRAME_STEP = NUM_FRAMES - 1  # frames from one keyframe to the next
USUAL_CHUNK = 2  # segments that are made together where memory does not decide
_LATER = {"later": True}  # metadata of a field that models of earlier versions cannot have
_GONE = {"detail"}  # fields that models of earlier versions may still have
MOTION = ("blink", "gaze_x", "gaze_y", "yaw", "pitch", "tilt", "shift_x", "shift_y")
"""Movements of lids, eyes and head that no sound foretells."""


@dataclass(frozen=True)
class UNetConfig:
    """One video UNet (KeyFace, arXiv 2503.01715); the defaults are the published keyframes'.

    `audio_dim` is the width of the raw audio features (both encoders side by side) and
    `context_dim` that of the projected audio which every cross-attention reads. `emotion_dim` is
    the width of the sinusoid of each of valence and arousal, 0 where the network has neither.
    """

    in_channels: int = 8  # noisy latent and identity latent; interpolation adds the frame mask
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    attention_head_dim: int = 64
    context_dim: int = 1024
    audio_dim: int = 1536
    emotion_dim: int = 256
    # (channels, height, width) of the learned latent that stands for the frames to be made;
    # None in the keyframe network
    missing_frame_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class SamplingConfig:
    """The sampling defaults that a checkpoint carries; every one can be overridden in a run."""

    steps: int = 10  # 10 means the eleven sigmas of the AYS table
    schedule: str = "ays"  # or "karras"
    audio_guidance: float = 5.0
    identity_guidance: float = 2.0
    autoguidance: float = 2.0
    emotion_guidance: float = field(default=1.0, metadata=_LATER)
    # of head, eyes and lids, 0 to 1, where there is a portrait decoder (stages/motion.py)
    liveliness: float = field(default=0.0, metadata=_LATER)
    sigma_min: float = field(default=0.002, metadata=_LATER)  # the schedule's last level before 0
    # the least and the greatest noise level at which there is guidance; None is all of them
    guidance_interval: tuple[float, float] | None = field(default=None, metadata=_LATER)
    # decode in the UNets' number format where `vae_dtype` is float32
    half_vae: bool = field(default=False, metadata=_LATER)
    # let the mouth rest in noise, hum and room tone (models/steady_sound.py)
    silence_steady_sound: bool = field(default=False, metadata=_LATER)


@dataclass(frozen=True)
class ModelConfig:
    """A whole model: both stages, the VAE, the audio encoders and the sampling defaults."""

    preset: str = "keyface"
    resolution: int = 512  # pixels, of the square picture that the VAE encodes
    latent_channels: int = 4
    latent_size: int = 64
    latent_scale: float = 0.18215  # VAE latents times this is what is diffused
    # pixels of an s x s square are stacked as channels before the VAE (1: the published VAE)
    vae_patch_size: int = 1
    # number format of the VAE: "float32" as published, or "auto", that of the UNets
    vae_dtype: str = "float32"
    # "v": the published v-prediction. "anchored": the difference to the identity latent (keyframes)
    # or to the blend of both keyframes (interpolation), and a gate (see diffusion/denoiser.py)
    parameterization: str = "v"
    keyframe_encoders: tuple[str, ...] = ("wavlm", "beats")
    interpolation_encoders: tuple[str, ...] = ("wav2vec2", "beats")
    keyframe_unet: UNetConfig = field(default_factory=UNetConfig)
    interpolation_unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            in_channels=9, emotion_dim=0, missing_frame_shape=(4, 64, 64)
        )
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    # what `--preset` names besides "exact", which is `sampling`: the fields of it that differ
    sampling_presets: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=_LATER)
    # keyword arguments of models.portrait_decoder.PortraitDecoder; none where the model has none
    portrait_decoder: dict[str, Any] = field(default_factory=dict, metadata=_LATER)
    # further conditions of the portrait decoder for each frame, in this order, see stages/motion.py
    motion: tuple[str, ...] = field(default=(), metadata=_LATER)
    # keyword arguments of the networks, read by checkpoints/checkpoint.py
    vae: dict[str, Any] = field(default_factory=dict)  # models.vae.VideoVAE
    wavlm: dict[str, Any] = field(default_factory=dict)  # models.wav2vec2.WavLM
    wav2vec2: dict[str, Any] = field(default_factory=dict)  # models.wav2vec2.Wav2Vec2
    beats: dict[str, Any] = field(default_factory=dict)  # models.beats.BEATs

    def sampling_of(self, preset: str) -> SamplingConfig:
        """Return the sampling defaults of "exact", "fast" or "draft".

        Raises:
            ConfigError: the model has no such preset, or the preset is damaged.
        """
        if preset == "exact":
            return self.sampling
        named = self.sampling_presets
        if preset not in named:
            raise ConfigError(
                f"{self.preset} has no preset {preset}", f"it has {', '.join(['exact', *named])}"
            )
        chosen = to_dict(self.sampling) | named[preset]
        return typing.cast(SamplingConfig, from_dict(SamplingConfig, chosen, f"preset {preset}"))

    def unet(self, stage: str) -> UNetConfig:
        """Return what the UNet of "keyframes" or "interpolation" is built from.

        An anchored network gives a gate beside its answer: twice the channels.
        """
        unet = self.keyframe_unet if stage == "keyframes" else self.interpolation_unet
        if self.parameterization == "anchored":
            return dataclasses.replace(unet, out_channels=2 * unet.out_channels)
        return unet


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists and numbers that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(cls: type[Any], data: dict[str, Any], where: str = "configuration") -> Any:
    """Build a configuration dataclass from plain data, strictly.

    Args:
        cls: the dataclass to build.
        data: one entry for each field of `cls`; nested dataclasses as nested dicts. Only
            what models of earlier versions cannot have may be absent: it has its default then.
        where: what is being read, named in errors.

    Raises:
        ConfigError: a key is unknown (its nearest neighbour is named), missing or not a mapping.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    data = {key: value for key, value in data.items() if key not in _GONE}
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise ConfigError(
                f"{where}: unknown key: {key}", f"did you mean {near[0]}?" if near else None
            )
    later = {one.name for one in dataclasses.fields(cls) if one.metadata == _LATER}
    missing = [name for name in hints if name not in data and name not in later]
    if missing:
        raise ConfigError(f"{where}: missing key: {', '.join(missing)}")
    values = {k: _from_plain(hints[k], v, f"{where}: {k}") for k, v in data.items()}
    return cls(**values)


def _from_plain(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, where)
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if hint is float and type(value) is int:
        value = float(value)
    plain = typing.get_origin(hint) or hint
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {plain.__name__}, found {type(value).__name__}")
    return value
