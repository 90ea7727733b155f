"""Configurations: presets that fit together, and strict reading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keyface_cli.config import ModelConfig, SamplingConfig, UNetConfig, from_dict, to_dict
from keyface_cli.errors import ConfigError
from keyface_cli.presets import PRESETS


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> ModelConfig:
    return PRESETS[request.param]


def plain() -> dict[str, Any]:
    """The preset `tiny` as it stands in a file."""
    data = json.loads(json.dumps(to_dict(PRESETS["tiny"])))
    assert isinstance(data, dict)
    return data


def test_presets_are_named(preset: ModelConfig) -> None:
    assert PRESETS[preset.preset] is preset


def test_json_and_back_is_the_identity(preset: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(preset)))) == preset


def test_latents_fit_the_vae(preset: ModelConfig) -> None:
    halvings = len(preset.vae["block_out_channels"]) - 1
    assert preset.latent_size * preset.vae_patch_size * 2**halvings == preset.resolution
    assert preset.vae["latent_channels"] == preset.latent_channels
    picture = 3 * preset.vae_patch_size**2
    assert preset.vae["in_channels"] == preset.vae["out_channels"] == picture


def test_unets_fit_the_latents(preset: ModelConfig) -> None:
    keyframe, interpolation = preset.keyframe_unet, preset.interpolation_unet
    C, size = preset.latent_channels, preset.latent_size
    assert keyframe.out_channels == interpolation.out_channels == C
    assert keyframe.in_channels == 2 * C
    assert interpolation.in_channels == 2 * C + 1  # and the mask
    assert keyframe.missing_frame_shape is None
    assert interpolation.missing_frame_shape == (C, size, size)
    assert keyframe.emotion_dim > 0 == interpolation.emotion_dim
    for unet in (keyframe, interpolation):
        assert len(unet.attention_levels) == len(unet.block_out_channels)
        assert size % 2 ** (len(unet.block_out_channels) - 1) == 0


def test_unets_fit_the_audio_encoders(preset: ModelConfig) -> None:
    widths = {
        "wavlm": preset.wavlm.get("hidden_size"),
        "wav2vec2": preset.wav2vec2.get("hidden_size"),
        "beats": preset.beats.get("encoder_embed_dim"),
    }
    for unet, names in (
        (preset.keyframe_unet, preset.keyframe_encoders),
        (preset.interpolation_unet, preset.interpolation_encoders),
    ):
        assert sum(widths[name] for name in names) == unet.audio_dim


def test_defaults_are_the_published_model() -> None:
    published = PRESETS["keyface"]
    assert published.keyframe_unet == UNetConfig()
    assert published.sampling == SamplingConfig(10, "ays", 5.0, 2.0, 2.0)
    assert published.parameterization == "v"


def test_unknown_key_names_its_neighbour() -> None:
    data = plain()
    data["keyframe_unet"]["contextdim"] = 8
    with pytest.raises(ConfigError, match="model: keyframe_unet: unknown key: contextdim") as error:
        from_dict(ModelConfig, data, "model")
    assert error.value.hint == "did you mean context_dim?"


def test_missing_keys_are_named() -> None:
    data = plain()
    del data["resolution"], data["vae"]
    with pytest.raises(ConfigError, match="configuration: missing key: resolution, vae"):
        from_dict(ModelConfig, data)


def test_a_key_that_came_later_may_be_absent() -> None:
    data = plain()
    data["sampling"]["liveliness"] = 0.5
    assert from_dict(ModelConfig, data).sampling.liveliness == 0.5
    del data["sampling"]["liveliness"]
    data["sampling"]["detail"] = 1.0  # which earlier versions had
    assert from_dict(ModelConfig, data).sampling.liveliness == 0
    del data["sampling"]["steps"]
    with pytest.raises(ConfigError, match=r"sampling: missing key: steps$"):
        from_dict(ModelConfig, data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resolution", "64", "resolution: expected int, found str"),
        ("resolution", True, "resolution: expected int, found bool"),
        ("latent_scale", None, "latent_scale: expected float, found NoneType"),
        ("sampling", 3, "sampling: expected a mapping, found int"),
        ("keyframe_encoders", "wavlm", "keyframe_encoders: expected tuple, found str"),
    ],
)
def test_values_of_another_type(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, plain() | {key: value})


def test_whole_numbers_serve_as_fractions() -> None:
    assert from_dict(ModelConfig, plain() | {"latent_scale": 1}).latent_scale == 1.0
