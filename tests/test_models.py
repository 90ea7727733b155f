"""The networks: their conditions, their blocks, saving, framing of sound, and published names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counting import core_parameters
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.checkpoints.renaming import rename_beats, rename_wavlm, split
from keyface_cli.checkpoints.writing import save_component, write_manifest
from keyface_cli.config import UNetConfig
from keyface_cli.errors import WeightsError
from keyface_cli.models import speech
from keyface_cli.models.beats import BEATs, fbank, stretch
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.unet import VideoUNet
from keyface_cli.models.vae import Posterior, VideoVAE
from keyface_cli.models.wav2vec2 import Wav2Vec2, WavLM
from keyface_cli.presets import PRESETS

KEYFRAMES = PRESETS["tiny"].keyframe_unet
INTERPOLATION = PRESETS["tiny"].interpolation_unet
T = 5  # the networks take any number of frames


def build(config: UNetConfig, seed: int = 0) -> VideoUNet:
    torch.manual_seed(seed)
    unet = VideoUNet(**dataclasses.asdict(config)).eval()
    for name, parameter in unet.named_parameters():
        if name.endswith(("mix_factor", "missing_frame")):  # constant at first
            nn.init.normal_(parameter)
    return unet


def conditions(config: UNetConfig, B: int = 2, seed: int = 1) -> Conditioning:
    torch.manual_seed(seed)
    return Conditioning(
        audio=torch.randn(B, T, config.context_dim),
        latents=torch.randn(B, 2 if config.missing_frame_shape else 1, config.out_channels, 8, 8),
        emotion=torch.rand(B, T, 2) * 2 - 1 if config.emotion_dim else None,
    )


def noisy(B: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(B, T, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


LEVEL = torch.tensor([-1.0, 0.5])  # c_noise


# conditions


def test_conditions_can_be_withheld_and_joined() -> None:
    given = conditions(KEYFRAMES)
    deaf, blind = given.without_audio(), given.without_identity()
    assert not deaf.audio.any()
    assert deaf.latents is given.latents
    assert not blind.latents.any()
    assert blind.audio is given.audio
    joined = Conditioning.cat([given, deaf])
    assert torch.equal(joined.audio, torch.cat([given.audio, deaf.audio]))
    assert joined.emotion is not None
    assert joined.emotion.shape == (4, T, 2)
    assert Conditioning.cat([conditions(INTERPOLATION)] * 2).emotion is None


@torch.no_grad()
def test_audio_of_a_frame_is_the_mean_of_its_tokens_projected() -> None:
    unet = build(KEYFRAMES)
    features = torch.randn(2, T, 2, KEYFRAMES.audio_dim)
    found = unet.project_audio(features)
    torch.testing.assert_close(found, unet.audio_projection(features.mean(2)))
    torch.testing.assert_close(found, unet.project_audio(features.flip(2)))


# the video UNet


@pytest.mark.parametrize("config", [KEYFRAMES, INTERPOLATION], ids=["keyframes", "interpolation"])
@torch.no_grad()
def test_every_condition_changes_the_output_and_clips_are_apart(config: UNetConfig) -> None:
    unet, given = build(config), conditions(config)
    whole = unet(noisy(), LEVEL, given)
    assert whole.shape == (2, T, 4, 8, 8)

    changed = conditions(config, seed=7)
    for field in ("audio", "latents", "emotion"):
        value = getattr(changed, field)
        if value is not None:
            value = torch.cat([value[:1], getattr(given, field)[1:]])  # of the first clip alone
            found = unet(noisy(), LEVEL, dataclasses.replace(given, **{field: value}))
            assert (found[0] - whole[0]).abs().max() > 1e-4, field
            torch.testing.assert_close(found[1], whole[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_noise_level_may_be_given_per_frame() -> None:
    unet, given = build(KEYFRAMES), conditions(KEYFRAMES)
    per_clip = unet(noisy(), LEVEL, given)
    per_frame = unet(noisy(), LEVEL[:, None].expand(2, T), given)
    torch.testing.assert_close(per_frame, per_clip)
    other = unet(noisy(), LEVEL + torch.tensor([0.0, 1.0]), given)
    assert (other[1] - per_clip[1]).abs().max() > 1e-4


@torch.no_grad()
def test_each_frame_is_conditioned_on_its_own_audio() -> None:
    # Cross-attention reads a set of tokens; their order is in the embedding of each frame alone.
    unet, given = build(KEYFRAMES), conditions(KEYFRAMES)
    reversed_audio = dataclasses.replace(given, audio=given.audio.flip(1))
    found = unet(noisy(), LEVEL, reversed_audio)
    assert (found - unet(noisy(), LEVEL, given)).abs().max() > 1e-4


@torch.no_grad()
def test_keyframe_network_sees_the_identity_beside_every_frame() -> None:
    channels = build(KEYFRAMES)._condition_channels(conditions(KEYFRAMES), T, torch.float32)
    assert torch.equal(channels, conditions(KEYFRAMES).latents.expand(2, T, 4, 8, 8))


@torch.no_grad()
def test_interpolation_network_sees_keyframes_missing_frames_and_mask() -> None:
    unet, given = build(INTERPOLATION), conditions(INTERPOLATION)
    channels = unet._condition_channels(given, T, torch.float32)
    assert channels.shape == (2, T, 5, 8, 8)
    frames, mask = channels[:, :, :4], channels[:, :, 4]
    assert torch.equal(frames[:, 0], given.latents[:, 0])
    assert torch.equal(frames[:, -1], given.latents[:, 1])
    assert unet.missing_frame is not None
    assert torch.equal(frames[:, 1:-1], unet.missing_frame.expand(2, T - 2, 4, 8, 8))
    assert mask.amin((2, 3)).tolist() == mask.amax((2, 3)).tolist() == [[1, 0, 0, 0, 1]] * 2


@torch.no_grad()
def test_a_guess_of_every_frame_joins_the_missing_ones() -> None:
    unet, given = build(INTERPOLATION), conditions(INTERPOLATION)
    guess = torch.randn(2, T, 4, 8, 8)
    plain = unet._condition_channels(given, T, torch.float32)
    guessed = unet._condition_channels(dataclasses.replace(given, anchor=guess), T, torch.float32)
    torch.testing.assert_close(guessed[:, 1:-1, :4], plain[:, 1:-1, :4] + guess[:, 1:-1])
    assert torch.equal(guessed[:, [0, -1]], plain[:, [0, -1]])
    assert torch.equal(guessed[:, :, 4], plain[:, :, 4])


@torch.no_grad()
def test_emotion_has_to_be_given_to_a_network_that_takes_it() -> None:
    given = dataclasses.replace(conditions(KEYFRAMES), emotion=None)
    with pytest.raises(ValueError, match="emotion is missing"):
        build(KEYFRAMES)(noisy(), LEVEL, given)


@torch.no_grad()
def test_blocks_equal_the_library_s_own() -> None:
    unet = build(KEYFRAMES)
    context = torch.randn(2, T, KEYFRAMES.context_dim)
    frames = torch.zeros(2, T)  # all are frames of a video, in diffusers' words
    embedding = torch.randn(2 * T, 128)
    resnet, transformer = unet.down_blocks[0].resnets[0], unet.down_blocks[0].attentions[0]
    library = (
        SpatioTemporalResBlock(32, 32, 128, eps=1e-5),
        TransformerSpatioTemporalModel(2, 16, 32, cross_attention_dim=KEYFRAMES.context_dim),
    )
    for block, theirs in zip((resnet, transformer), library, strict=True):
        theirs.eval().load_state_dict(block.state_dict())
    x = torch.randn(2 * T, 32, 8, 8)
    torch.testing.assert_close(
        resnet(x, embedding, T), library[0](x, embedding, frames), atol=1e-5, rtol=1e-5
    )
    per_frame = context[:, None].expand(2, T, T, -1).flatten(0, 1)
    theirs = library[1](x, per_frame, frames).sample
    torch.testing.assert_close(transformer(x, context), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [KEYFRAMES, INTERPOLATION])
def test_every_tensor_is_used_by_the_module_that_holds_it(config: UNetConfig) -> None:
    """Hooks that stream a network through a small GPU bring a module's tensors to it."""
    unet = build(config)
    called = set()
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    unet(noisy(), torch.zeros(2), conditions(config))
    unet.project_audio(torch.zeros(1, 14, 2, config.audio_dim))
    holders = {name for name, module in unet.named_modules() if module._parameters}
    assert holders <= called


def test_attention_can_be_computed_another_way() -> None:
    unet, given = build(KEYFRAMES), conditions(KEYFRAMES)
    expected = unet(noisy(), LEVEL, given)
    unet.train_on_cpu()
    torch.testing.assert_close(unet(noisy(), LEVEL, given), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("widths", "attention", "layers"),
    [((32, 64), (True, False), 2), ((32, 32, 64), (False, True, True), 1)],
)
@torch.no_grad()
def test_other_depths_are_possible(
    widths: tuple[int, ...], attention: tuple[bool, ...], layers: int
) -> None:
    config = dataclasses.replace(
        KEYFRAMES, block_out_channels=widths, attention_levels=attention, layers_per_block=layers
    )
    assert build(config)(noisy(), LEVEL, conditions(config)).isfinite().all()


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for saving in (False, True):
        unet = build(KEYFRAMES).train()
        if saving:
            unet.enable_gradient_checkpointing()
        unet(noisy(), LEVEL, conditions(KEYFRAMES)).square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.grad is not None])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(saved, plain, atol=1e-6, rtol=1e-4)


def test_training_in_bfloat16_stays_close() -> None:
    unet, given = build(KEYFRAMES), conditions(KEYFRAMES)
    with torch.no_grad():
        exact = unet(noisy(), LEVEL, given)
    with torch.autocast("cpu", torch.bfloat16):
        found = unet(noisy(), LEVEL, given)
    found.float().square().mean().backward()
    assert unet.conv_in.weight.grad is not None
    assert unet.conv_in.weight.grad.isfinite().all()
    error = (found.float() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.05
    with torch.no_grad():
        pure = unet.to(torch.bfloat16)(noisy(), LEVEL, given)
    assert pure.dtype == torch.bfloat16
    assert (pure.float() - exact).square().mean().sqrt() / exact.std() < 0.05


@torch.no_grad()
def test_training_begins_with_nothing_added() -> None:
    unet = build(KEYFRAMES)
    block = unet.mid_block.resnets[0]
    unet.zero_output_layers()
    assert not unet(noisy(), LEVEL, conditions(KEYFRAMES)).any()
    x = torch.randn(2 * T, 64, 4, 4)
    torch.testing.assert_close(block(x, torch.randn(2 * T, 128), T), x)


@torch.no_grad()
def test_save_and_load_is_the_identity(tmp_path: Path) -> None:
    unet, given = build(INTERPOLATION), conditions(INTERPOLATION)
    save_component(tmp_path, "interpolation_unet", unet)
    beats = tiny_beats()
    save_component(tmp_path, "beats", beats)
    config = dataclasses.replace(PRESETS["tiny"], interpolation_unet=INTERPOLATION)
    write_manifest(tmp_path, dataclasses.replace(config, beats=beats.config))
    checkpoint = Checkpoint.open(tmp_path)
    loaded: Any = checkpoint.load("interpolation_unet")
    assert torch.equal(loaded(noisy(), LEVEL, given), unet(noisy(), LEVEL, given))
    sound = torch.randn(1, 6400)
    assert torch.equal(checkpoint.load("beats")(sound), beats(sound))


@pytest.fixture(scope="module")
def published() -> dict[str, VideoUNet]:
    config = PRESETS["keyface"]
    with torch.device("meta"):
        return {
            "keyframe": VideoUNet(**dataclasses.asdict(config.keyframe_unet)),
            "interpolation": VideoUNet(**dataclasses.asdict(config.interpolation_unet)),
        }


def test_published_networks_have_their_published_size(published: dict[str, VideoUNet]) -> None:
    assert core_parameters(published["keyframe"]) == 1_525_606_122
    assert core_parameters(published["interpolation"]) == 1_524_953_642


# published names


PUBLISHED_BEATS = {  # our names to the published ones, outside the layers and in them
    "patch_norm.": "layer_norm.",
    "patch_projection.": "post_extract_proj.",
    "position_conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "position_conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
    "position_conv.bias": "encoder.pos_conv.0.bias",
    "norm.": "encoder.layer_norm.",
}
PUBLISHED_BEATS_LAYER = {
    ".gate.": ".self_attn.grep_linear.",
    ".gate_scale": ".self_attn.grep_a",
    ".attention_norm.": ".self_attn_layer_norm.",
    ".ffn_norm.": ".final_layer_norm.",
    **{f".{p}_proj.": f".self_attn.{p}_proj." for p in ("q", "k", "v", "out")},
}


def official_beats() -> dict[str, Tensor]:
    """The tensors of `tiny_beats` under their published names."""
    official = {"predictor.weight": torch.ones(3, 3)}
    for name, tensor in tiny_beats().state_dict().items():
        if name.startswith("relative_bias"):
            for layer in range(2):
                table = f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight"
                official[table] = tensor.clone()
        elif name.startswith("layers."):
            for ours, theirs in PUBLISHED_BEATS_LAYER.items():
                name = name.replace(ours, theirs)
            official[f"encoder.{name}"] = tensor
        else:
            ours = next((ours for ours in PUBLISHED_BEATS if name.startswith(ours)), "")
            official[PUBLISHED_BEATS.get(ours, "") + name.removeprefix(ours)] = tensor
    return official


def test_renaming_is_strict_both_ways() -> None:
    beats, official = tiny_beats(), official_beats()
    renamed = rename_beats(official, beats)
    assert renamed.keys() == beats.state_dict().keys()

    with pytest.raises(WeightsError, match=r"unexpected tensor: encoder\.layers\.0\.fc3"):
        rename_beats(official | {"encoder.layers.0.fc3": torch.ones(1)}, beats)
    without = {k: v for k, v in official.items() if k != "encoder.layers.1.fc1.bias"}
    with pytest.raises(WeightsError, match=r"missing tensor: layers\.1\.fc1\.bias"):
        rename_beats(without, beats)
    misshapen = official | {"layer_norm.bias": torch.ones(3)}
    with pytest.raises(WeightsError, match=r"layer_norm\.bias has shape \(3,\), not \(32,\)"):
        rename_beats(misshapen, beats)
    table = "encoder.layers.1.self_attn.relative_attention_bias.weight"
    with pytest.raises(WeightsError, match="tables of relative positions differ"):
        rename_beats(official | {table: official[table] + 1}, beats)


def test_a_published_file_is_sorted_by_network() -> None:
    one = torch.ones(1)
    parts = split(
        {
            "_forward_module.model.diffusion_model.out.0.weight": one,
            "model.learned_mask": one,
            "conditioner.embedders.3.linear.bias": one,
            "first_stage_model.decoder.conv_in.bias": one,
            "loss_fn.lpips.lin0.model.1.weight": one,
            "conditioner.embedders.0.encoder.quant_conv.bias": one,
        }
    )
    assert list(parts["unet"]) == [
        "model.diffusion_model.out.0.weight",
        "model.learned_mask",
        "conditioner.embedders.3.linear.bias",
    ]
    assert list(parts["vae"]) == ["first_stage_model.decoder.conv_in.bias"]
    with pytest.raises(WeightsError, match=r"unexpected tensor: optimizer\.state"):
        split({"optimizer.state": one})


def test_the_mask_of_pre_training_is_left_out_where_there_is_none() -> None:
    wavlm = SimpleNamespace(state_dict=lambda: {"encoder.layer_norm.bias": torch.ones(2)})
    official = {"mask_emb": torch.ones(2), "encoder.layer_norm.bias": torch.zeros(2)}
    assert list(rename_wavlm(official, wavlm)) == ["encoder.layer_norm.bias"]  # type: ignore[arg-type]


# audio encoders


def tiny_beats() -> BEATs:
    torch.manual_seed(3)
    return BEATs(
        embed_dim=32,
        encoder_embed_dim=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_embed_dim=64,
        conv_pos=16,
        conv_pos_groups=4,
        num_buckets=32,
        max_distance=64,
    ).eval()


def tiny_speech(kind: str) -> nn.Module:
    torch.manual_seed(4)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    return {"wavlm": WavLM, "wav2vec2": Wav2Vec2}[kind](**sizes).eval()


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    return {
        "wavlm": tiny_speech("wavlm"),
        "wav2vec2": tiny_speech("wav2vec2"),
        "beats": tiny_beats(),
    }


def sound(samples: int) -> Tensor:
    """A tone that wanders and swells, with a little noise."""
    t = torch.arange(samples) / 16_000
    generator = torch.Generator().manual_seed(5)
    tone = torch.sin(6.28 * (200 + 40 * torch.sin(t)) * t) * (0.3 + 0.2 * torch.sin(2.1 * t))
    return tone + 0.02 * torch.randn(samples, generator=generator)


@pytest.mark.parametrize(
    ("samples", "frames"), [(2, 1), (640, 1), (641, 2), (1920, 3), (3201, 6), (16_000, 25)]
)
@torch.no_grad()
def test_any_length_gives_one_feature_per_video_frame(
    encoders: dict[str, nn.Module], samples: int, frames: int
) -> None:
    found = speech.encode(encoders, sound(samples))
    assert {name: tuple(f.shape) for name, f in found.items()} == dict.fromkeys(
        encoders, (frames, 2, 32)
    )
    assert all(features.isfinite().all() for features in found.values())


class TokenCounter(nn.Module):
    """Stands for WavLM and wav2vec 2.0: numbers its tokens from 1, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, waveforms: Tensor) -> Tensor:
        self.waveforms = waveforms
        count = (waveforms.shape[1] - 400) // 320 + 1
        return torch.arange(1.0, count + 1).view(1, count, 1).expand(len(waveforms), -1, -1)


def test_speech_tokens_are_framed_as_published() -> None:
    model: Any = TokenCounter()
    wavlm = speech.wavlm_features(model, torch.ones(2, 3 * 640))
    assert model.waveforms.shape == (2, 4 * 640)  # an even number of frames
    assert wavlm[1].flatten().tolist() == [1, 1, 2, 3, 4, 5, 6, 7]  # the first is doubled
    wave = torch.randn(2, 3 * 640 - 100) * 5 + 3
    wav2vec2 = speech.wav2vec2_features(model, wave)
    assert wav2vec2[1].flatten().tolist() == [1, 2, 3, 4, 5, 0]  # the last is zero
    # normalised as it is, without the zeros that are added afterwards
    torch.testing.assert_close(model.waveforms[:, : 3 * 640 - 100], speech.normalise(wave))
    assert not model.waveforms[:, 3 * 640 - 100 :].any()
    torch.testing.assert_close(speech.normalise(wave).mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(speech.normalise(wave).std(1), torch.ones(2))


def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "CORE_FRAMES", 40)
    monkeypatch.setattr(speech, "CONTEXT_FRAMES", 20)
    monkeypatch.setattr(speech, "WINDOW_FRAMES", 80)


@pytest.mark.parametrize("frames", [81, 120, 163])
@torch.no_grad()
def test_windows_join_to_what_one_pass_says(
    encoders: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    # Without attention nothing reaches further than the context, and both have to be equal.
    for name, parameter in (p for model in encoders.values() for p in model.named_parameters()):
        if "out_proj" in name:
            monkeypatch.setattr(parameter, "data", torch.zeros_like(parameter))
    waveform = sound(640 * frames - 100)
    whole = speech.encode(encoders, waveform)
    short_windows(monkeypatch)
    windowed = speech.encode(encoders, waveform)
    for name in encoders:
        torch.testing.assert_close(windowed[name], whole[name], atol=1e-3, rtol=1e-3, msg=name)


@torch.no_grad()
def test_windows_change_little_where_attention_reaches_further(
    encoders: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(6)
    waveform = 0.1 * torch.randn(640 * 200, generator=generator)
    whole = speech.encode(encoders, waveform)
    monkeypatch.setattr(speech, "CORE_FRAMES", 80)
    monkeypatch.setattr(speech, "CONTEXT_FRAMES", 40)
    monkeypatch.setattr(speech, "WINDOW_FRAMES", 160)
    windowed = speech.encode(encoders, waveform)
    for name in encoders:
        error = (windowed[name] - whole[name]).square().mean().sqrt() / whole[name].std()
        assert error < 1e-2, name


def test_the_first_norm_is_put_back(
    encoders: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = encoders["wavlm"]
    norm = model.feature_extractor.conv_layers[0].layer_norm
    short_windows(monkeypatch)
    with torch.no_grad():
        speech.encode({"wavlm": model}, sound(640 * 90))
    assert model.feature_extractor.conv_layers[0].layer_norm is norm


def test_beats_trains_in_batches_of_clips() -> None:
    beats = tiny_beats().train()
    waveforms = torch.stack([sound(9600), sound(9600).flip(0)])
    found = beats(waveforms)
    assert found.shape == (2, 16, 2, 32)
    found.square().mean().backward()
    unused = [n for n, p in beats.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    with torch.no_grad():
        torch.testing.assert_close(beats(waveforms[1:]), found[1:].detach(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_beats_tokens_are_eight_per_whole_patch() -> None:
    beats = tiny_beats()
    assert fbank(sound(640 * 6)[None]).shape == (1, 22, 128)
    assert beats.tokens(sound(640 * 6)[None]).shape == (1, 8, 32)
    assert beats.tokens(sound(640 * 10)[None]).shape == (1, 16, 32)
    assert [beats.count_tokens(640 * n) for n in (6, 10, 100)] == [8, 16, 192]
    assert beats.tokens(sound(640 * 100)[None]).shape == (1, 192, 32)
    assert stretch(torch.arange(8.0).view(1, 8, 1), 6).flatten().tolist() == [
        j * 8 // 12 for j in range(12)
    ]


@torch.no_grad()
def test_fbank_of_a_tone_peaks_in_its_band_and_ignores_an_offset() -> None:
    t = torch.arange(16_000) / 16_000
    tone = 0.5 * torch.sin(6.283185 * 1000 * t)[None]
    bands = fbank(tone)
    mel = 1127 * torch.log1p(torch.tensor([20.0, 1000.0, 8000.0]) / 700)
    expected = float((mel[1] - mel[0]) / (mel[2] - mel[0])) * 129 - 1
    assert abs(float(bands[0, 50].argmax()) - expected) < 1
    torch.testing.assert_close(fbank(tone + 0.1)[:, :, 20:], bands[:, :, 20:], atol=0.05, rtol=0)


# the latent codec


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    torch.manual_seed(8)
    config = PRESETS["tiny"]
    vae = VideoVAE(**config.vae).eval()
    return LatentCodec(vae, config.latent_scale, config.vae_patch_size)


@torch.no_grad()
def test_codec_shapes_and_scale(codec: LatentCodec) -> None:
    config = PRESETS["tiny"]
    size = config.resolution
    pixels = torch.rand(2, 3, size, size) * 2 - 1
    latents = codec.encode(pixels)
    assert latents.shape == (2, config.latent_channels, config.latent_size, config.latent_size)
    assert codec.decode(latents).shape == pixels.shape
    other = LatentCodec(codec.vae, 2 * config.latent_scale, config.vae_patch_size)
    torch.testing.assert_close(other.encode(pixels), 2 * latents)
    torch.testing.assert_close(other.decode(2 * latents), codec.decode(latents))


@torch.no_grad()
def test_frames_are_decoded_one_by_one(codec: LatentCodec) -> None:
    latents = torch.randn(3, 4, 8, 8)
    together = codec.decode(latents)
    alone = torch.cat([codec.decode(frame[None]) for frame in latents])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (codec.decode(latents, frames_per_call=3) - together).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("widths", "layers"), [([32], 1), ([32, 64], 1), ([32, 32, 64], 2)])
def test_the_vae_equals_the_library_s_own(widths: list[int], layers: int) -> None:
    sizes: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "layers_per_block": layers,
        "latent_channels": 4,
    }
    torch.manual_seed(8)
    ours, theirs = VideoVAE(**sizes), AutoencoderKLTemporalDecoder(**sizes).eval()
    for name, parameter in ours.named_parameters():
        if name.endswith("mix_factor"):  # constant at first
            nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    posterior = theirs.encode(pixels := torch.randn(2, 3, 16, 16)).latent_dist
    found = ours.encode(pixels)
    torch.testing.assert_close(found.mean, posterior.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.logvar, posterior.logvar, atol=1e-5, rtol=1e-4)
    latents = torch.randn(3, 4, 8, 8)
    for frames in (1, 3):
        expected = theirs.decode(latents, num_frames=frames).sample
        torch.testing.assert_close(ours.decode(latents, frames), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2"])
def test_audio_encoders_equal_the_library_s_own(kind: str, before: bool, norm: str) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_dim": [16] * 7,
        "conv_bias": before,
        "num_conv_pos_embeddings": 17,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": before,
    }
    torch.manual_seed(4)
    if kind == "wavlm":
        ours, theirs = WavLM(**sizes), WavLMModel(WavLMConfig(**sizes)).eval()
    else:
        ours, theirs = Wav2Vec2(**sizes), Wav2Vec2Model(Wav2Vec2Config(**sizes)).eval()
    ours.load_state_dict(theirs.state_dict())
    wave = sound(3 * 16_000)[None]  # long enough for the buckets of far positions
    expected = theirs(wave).last_hidden_state
    torch.testing.assert_close(ours(wave), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2"])
def test_new_audio_encoders_begin_as_the_library_s_do(kind: str) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "conv_bias": True}
    torch.manual_seed(0)
    if kind == "wavlm":
        ours, theirs = WavLM(**sizes), WavLMModel(WavLMConfig(**sizes))
    else:
        ours, theirs = Wav2Vec2(**sizes), Wav2Vec2Model(Wav2Vec2Config(**sizes))
    expected = theirs.state_dict()
    assert expected.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.shape == expected[name].shape
        if tensor.numel() > 5000:
            spread = float(expected[name].std())
            assert float(tensor.std()) == pytest.approx(spread, rel=0.1, abs=1e-6), name


@torch.no_grad()
def test_patches_keep_every_pixel_in_its_square() -> None:
    class Copy(nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Identity()

        def encode(self, x: Tensor) -> Posterior:
            return Posterior(x, x)

        def decode(self, z: Tensor, num_frames: int) -> Tensor:
            return z

    copy: Any = Copy()
    pixels = torch.rand(2, 3, 8, 8)
    codec = LatentCodec(copy, 0.5, 4)
    assert codec.encode(pixels).shape == (2, 48, 2, 2)
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), pixels)
