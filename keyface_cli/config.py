"""Every number of an architecture in one place: frozen dataclasses and the three presets.

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

        A folder that names no presets, as those of earlier versions, has those of its architecture.

        Raises:
            ConfigError: the model has no such preset, or the preset is damaged.
        """
        if preset == "exact":
            return self.sampling
        known = PRESETS.get(self.preset)
        named = self.sampling_presets or (known.sampling_presets if known else {})
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


# the seven convolutions that turn 16 kHz into one token every 20 ms, in WavLM and wav2vec 2.0
_SPEECH_STRIDES: dict[str, Any] = {
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "conv_bias": False,
}


def _speech(
    width: int, layers: int, heads: int, ffn: int, conv: list[int], positions: int = 128
) -> dict[str, Any]:
    return _SPEECH_STRIDES | {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "conv_dim": conv,
        "num_conv_pos_embeddings": positions,
        "num_conv_pos_embedding_groups": 16,
    }


def _beats(width: int, layers: int, heads: int, ffn: int, embed: int) -> dict[str, Any]:
    return {
        "input_patch_size": 16,
        "embed_dim": embed,
        "encoder_embed_dim": width,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_embed_dim": ffn,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "num_buckets": 320,
        "max_distance": 800,
    }


def _vae(picture: int, widths: list[int], layers: int, latents: int) -> dict[str, Any]:
    return {
        "in_channels": picture,
        "out_channels": picture,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "layers_per_block": layers,
        "latent_channels": latents,
    }


MOTION = ("blink", "gaze_x", "gaze_y", "yaw", "pitch", "tilt", "shift_x", "shift_y")
"""Movements of lids, eyes and head that no sound foretells."""
_PORTRAIT_DECODER: dict[str, Any] = {
    "widths": [48, 80, 128],
    # the greatest usual value of each of `MOTION`
    "motion_scales": [1.0, 0.8, 0.6, 0.8, 0.6, 0.09, 0.05, 0.04],
}
_MINI_UNET = UNetConfig(
    in_channels=64,
    out_channels=32,
    block_out_channels=(96, 128, 96),
    attention_levels=(False, True, False),
    layers_per_block=1,
    attention_head_dim=32,
    context_dim=128,
    audio_dim=320,
    emotion_dim=32,
)
_TINY_UNET = UNetConfig(
    in_channels=8,
    out_channels=4,
    block_out_channels=(32, 64),
    attention_levels=(True, False),
    layers_per_block=1,
    attention_head_dim=16,
    context_dim=32,
    audio_dim=64,
    emotion_dim=16,
)

# Fewer updates, guided in the middle of the noise levels alone (Kynkäänniemi et al. 2024). Of the
# schedule's eleven levels "fast" takes the 1st, 4th, 7th and 10th, two of them guided; "draft" the
# first, the last and one between, where the sound and the portrait guide, and no second network.
_FASTER: dict[str, dict[str, Any]] = {
    "fast": {"steps": 4, "sigma_min": 0.034, "guidance_interval": [0.5, 20.0], "half_vae": True},
    "draft": {
        "steps": 3,
        "sigma_min": 0.034,
        "guidance_interval": [0.5, 20.0],
        "autoguidance": 1.0,
        "half_vae": True,
    },
}

PRESETS: dict[str, ModelConfig] = {
    # the published architecture: 1.5 B parameters a UNet, weights fetched or converted
    "keyface": ModelConfig(
        sampling_presets=_FASTER,
        vae=_vae(3, [128, 256, 512, 512], 2, 4),
        wavlm=_speech(768, 12, 12, 3072, [512] * 7),
        wav2vec2=_speech(768, 12, 12, 3072, [512] * 7),
        beats=_beats(768, 12, 12, 3072, 512),
    ),
    # 39 M parameters in all, made for two CPU cores; weights/mini is one of these
    "mini": ModelConfig(
        preset="mini",
        resolution=256,
        latent_channels=32,
        latent_size=16,
        latent_scale=1.0,
        vae_patch_size=16,
        vae_dtype="auto",
        parameterization="anchored",
        interpolation_encoders=("wavlm", "beats"),
        keyframe_unet=_MINI_UNET,
        interpolation_unet=dataclasses.replace(
            _MINI_UNET, in_channels=65, emotion_dim=0, missing_frame_shape=(32, 16, 16)
        ),
        sampling=SamplingConfig(
            steps=1,
            audio_guidance=1.4,
            identity_guidance=1.0,
            autoguidance=1.25,
            emotion_guidance=2.0,
            liveliness=1.0,
            silence_steady_sound=True,
        ),
        # one step and no second network as it is: only the keyframes' guidance can be left out
        sampling_presets={"fast": {"audio_guidance": 1.0, "emotion_guidance": 1.0}},
        portrait_decoder=_PORTRAIT_DECODER,
        motion=MOTION,
        vae=_vae(768, [160], 1, 32),
        wavlm=_speech(192, 5, 6, 768, [48, 64, 96, 128, 192, 256, 256], 64),
        beats=_beats(128, 4, 4, 384, 64),
    ),
    # random weights, seconds on a CPU: for tests; the published encoders and guidance, made small
    "tiny": ModelConfig(
        preset="tiny",
        resolution=64,
        latent_size=8,
        vae_patch_size=4,
        vae_dtype="auto",
        keyframe_unet=_TINY_UNET,
        interpolation_unet=dataclasses.replace(
            _TINY_UNET, in_channels=9, emotion_dim=0, missing_frame_shape=(4, 8, 8)
        ),
        sampling=SamplingConfig(steps=2),
        sampling_presets=_FASTER,
        vae=_vae(48, [32, 32], 1, 4),
        wavlm=_speech(32, 2, 2, 64, [32] * 7),
        wav2vec2=_speech(32, 2, 2, 64, [32] * 7),
        beats=_beats(32, 2, 2, 64, 32),
    ),
}
