"""The configurations that have names: the published model, the bundled one and a tiny one."""

from __future__ import annotations

import dataclasses
from typing import Any

from keyface_cli.config import MOTION, ModelConfig, SamplingConfig, UNetConfig

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
