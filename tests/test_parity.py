"""Equality with the published modules, on recorded cases.

The directory is $KEYFACE_PARITY_DIR, else ../shared/parity beside the checkout where that exists,
else the copy in tests/data/parity. Sizes come from its manifest alone, so that a set of other
sizes is a test as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keyface_cli.checkpoints.convert import beats_config, wavlm_config
from keyface_cli.checkpoints.renaming import (
    rename_beats,
    rename_unet,
    rename_vae,
    rename_wavlm,
    split,
)
from keyface_cli.config import ModelConfig, UNetConfig
from keyface_cli.diffusion.sampler import ays_sigmas
from keyface_cli.models.beats import BEATs, fbank
from keyface_cli.models.codec import LatentCodec
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.speech import encode, wav2vec2_features, wavlm_features
from keyface_cli.models.unet import VideoUNet
from keyface_cli.models.vae import VideoVAE
from keyface_cli.models.wav2vec2 import Wav2Vec2, WavLM
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.training.clips import Clips
from keyface_cli.training.diffusion import UNetTraining
from keyface_cli.training.losses import latent_loss
from keyface_cli.training.options import DiffusionOptions, TrainOptions

pytestmark = pytest.mark.usefixtures("no_gradients")

LATENT_SCALE = ModelConfig().latent_scale  # the manifest names it in words only
ONE_PASS = 1e-4  # greatest difference after one pass of a network
SAMPLED = 1e-3  # after all updates of a sampling
LOSS, GRADIENT = 1e-5, 1e-4  # relative


@dataclass(frozen=True)
class ParitySet:
    """A directory of the manifest's format."""

    folder: Path
    manifest: dict[str, Any]
    cases: dict[str, Tensor]

    def weights(self, name: str) -> dict[str, Tensor]:
        return {k: v.float() for k, v in load_file(self.folder / name).items()}

    @property
    def frames(self) -> int:
        return int(self.manifest["num_frames_sampling"])


def parity_folder() -> Path:
    named = os.environ.get("KEYFACE_PARITY_DIR")
    if named is not None:
        return Path(named)
    checkout = Path(__file__).parents[1]
    beside = checkout.parent / "shared" / "parity"
    return beside if beside.is_dir() else checkout / "tests" / "data" / "parity"


def open_set(folder: Path) -> ParitySet:
    if not (folder / "manifest.json").is_file():
        pytest.fail(f"no parity set: {folder}")
    manifest = json.loads((folder / "manifest.json").read_text())
    return ParitySet(folder, manifest, load_file(folder / manifest["files"]["cases"]))


@pytest.fixture(scope="module")
def parity() -> ParitySet:
    return open_set(parity_folder())


@pytest.fixture(scope="module")
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def unet_config(parity: ParitySet, stage: str) -> UNetConfig:
    sizes = parity.manifest[f"unet_config_{stage}"]
    multipliers = sizes["channel_mult"]
    missing = (sizes["out_channels"], *parity.manifest["latent_hw"])
    return UNetConfig(
        in_channels=sizes["in_channels"],
        out_channels=sizes["out_channels"],
        block_out_channels=tuple(sizes["model_channels"] * m for m in multipliers),
        attention_levels=tuple(
            2**n in sizes["attention_resolutions"] for n in range(len(multipliers))
        ),
        layers_per_block=sizes["num_res_blocks"],
        attention_head_dim=sizes["num_head_channels"],
        context_dim=sizes["context_dim"],
        audio_dim=parity.manifest["audio_linear_in"],
        emotion_dim=sizes["adm_in_channels"] // 2,
        missing_frame_shape=missing if stage == "interpolation" else None,
    )


def build_unet(parity: ParitySet, stage: str, weights: dict[str, Tensor]) -> VideoUNet:
    config = unet_config(parity, stage)
    unet = VideoUNet(**dataclasses.asdict(config))
    tensors = rename_unet(split(weights)["unet"], unet, config.layers_per_block)
    unet.load_state_dict(tensors)
    return unet.eval()


@pytest.fixture(scope="module")
def keyframe_unet(parity: ParitySet) -> VideoUNet:
    return build_unet(parity, "keyframe", parity.weights("keyframe_weights.safetensors"))


def interpolation_weights(parity: ParitySet) -> dict[str, Tensor]:
    shared = parity.weights("keyframe_weights.safetensors")
    model = {name: tensor for name, tensor in shared.items() if name.startswith("model.")}
    return model | parity.weights("interpolation_weights_overlay.safetensors")


@pytest.fixture(scope="module")
def interpolation_unet(parity: ParitySet) -> VideoUNet:
    return build_unet(parity, "interpolation", interpolation_weights(parity))


@pytest.fixture(scope="module")
def interpolation_guide(parity: ParitySet) -> VideoUNet:
    overlay = parity.weights("interpolation_bad_weights_overlay.safetensors")
    return build_unet(parity, "interpolation", interpolation_weights(parity) | overlay)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, what
    error = (found.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"{what}: {error:.2e}"


def test_a_keyframe_unet(parity: ParitySet, keyframe_unet: VideoUNet) -> None:
    cases, (B, T) = parity.cases, parity.manifest["unet_case_BT"]
    given = Conditioning(cases["a.crossattn"], cases["a.concat"][:, None], torch.zeros(B, T, 2))
    assert keyframe_unet.emotion_sinusoid is not None
    # the case records random numbers in the place of the sinusoids of valence and arousal
    with keyframe_unet.emotion_sinusoid.register_forward_hook(lambda *_: cases["a.vector"]):
        found = keyframe_unet(
            cases["a.x"].unflatten(0, (B, T)), cases["a.c_noise"].view(B, T), given
        )
    assert_close(found.flatten(0, 1), cases["a.out"], ONE_PASS, "a.out")


def test_b_interpolation_unet(parity: ParitySet, interpolation_unet: VideoUNet) -> None:
    cases, (B, T) = parity.cases, parity.manifest["unet_case_BT"]
    given = Conditioning(cases["b.crossattn"], cases["b.concat"].unflatten(1, (2, -1)))
    found = interpolation_unet(
        cases["b.x"].unflatten(0, (B, T)), cases["b.c_noise"].view(B, T), given
    )
    assert_close(found.flatten(0, 1), cases["b.out"], ONE_PASS, "b.out")


def test_c_keyframe_conditioning(parity: ParitySet, keyframe_unet: VideoUNet) -> None:
    cases = parity.cases
    audio = keyframe_unet.project_audio(cases["c.audio"])
    assert_close(audio, cases["c.cond_crossattn"], ONE_PASS, "c.cond_crossattn")
    assert keyframe_unet.emotion_sinusoid is not None
    emotion = torch.stack([cases["c.valence"], cases["c.arousal"]], dim=-1)
    sinusoids = keyframe_unet.emotion_sinusoid(emotion.flatten()).view(parity.frames, -1)
    assert_close(sinusoids, cases["c.cond_vector"], ONE_PASS, "c.cond_vector")


def test_c_keyframe_sampling(parity: ParitySet, keyframe_unet: VideoUNet) -> None:
    cases, guidance = parity.cases, parity.manifest["guidance"]
    stage = KeyframeStage(
        keyframe_unet,
        latent_scale=LATENT_SCALE,
        parameterization="v",
        sigmas=ays_sigmas(guidance["num_steps"]),
        audio_guidance=guidance["audio_ratio"],
        identity_guidance=guidance["ref_ratio"],
    )
    updates: list[Tensor] = []
    found = stage.sample(
        cases["c.portrait_latent"],
        keyframe_unet.project_audio(cases["c.audio"]),
        torch.stack([cases["c.valence"], cases["c.arousal"]], dim=-1),
        cases["c.noise"].unflatten(0, (-1, parity.frames)),
        callback=lambda _, x: updates.append(x),
    )
    assert len(updates) == guidance["euler_updates"]
    for step, expected in zip(steps_of(parity, "c.steps"), cases["c.steps"], strict=True):
        # early latents are hundreds in size: hold the error against it
        scale = max(1.0, float(expected.std()))
        assert_close(updates[step - 1][0], expected, SAMPLED * scale, f"c.steps {step}")
    assert_close(found.flatten(0, 1), cases["c.out"], SAMPLED, "c.out")


def test_d_interpolation_sampling(
    parity: ParitySet, interpolation_unet: VideoUNet, interpolation_guide: VideoUNet
) -> None:
    cases, guidance = parity.cases, parity.manifest["guidance"]
    stage = InterpolationStage(
        interpolation_unet,
        interpolation_guide,
        latent_scale=LATENT_SCALE,
        parameterization="v",
        sigmas=ays_sigmas(guidance["num_steps"]),
        autoguidance=guidance["karras_scale"],
    )
    keyframes = cases["d.keyframe_latents"]
    audio = interpolation_unet.project_audio(cases["d.audio"])
    assert_close(audio, cases["d.cond_crossattn"], ONE_PASS, "d.cond_crossattn")
    updates: list[Tensor] = []
    found = stage.sample(
        torch.stack([keyframes[:-1], keyframes[1:]], dim=1),
        audio,
        cases["d.noise"].unflatten(0, (-1, parity.frames)),
        callback=lambda _, x: updates.append(x),
    )
    assert len(updates) == guidance["euler_updates"]
    recorded = [name for name in cases if name.startswith("d.step")]
    assert recorded
    for name in recorded:
        (step,) = steps_of(parity, name)
        assert_close(updates[step - 1].flatten(0, 1), cases[name], SAMPLED, name)
    assert_close(found.flatten(0, 1), cases["d.out"], SAMPLED, "d.out")


def test_merge(parity: ParitySet) -> None:
    found = torch.cat(list(merge_segments(parity.cases["merge.segments"])))
    assert_close(found, parity.cases["merge.out"], 1e-6, "merge.out")
    assert torch.equal((parity.cases["merge.out"] * 255).byte(), parity.cases["merge.uint8"])
    np.testing.assert_array_equal((found * 255).byte(), parity.cases["merge.uint8"])


def build_codec(parity: ParitySet) -> LatentCodec:
    sizes = parity.manifest["vae_config"]
    levels = len(sizes["ch_mult"])
    vae = VideoVAE(
        block_out_channels=[sizes["ch"] * m for m in sizes["ch_mult"]],
        down_block_types=["DownEncoderBlock2D"] * levels,
        layers_per_block=sizes["num_res_blocks"],
        latent_channels=sizes["z_channels"],
    ).eval()
    official = split(parity.weights(parity.manifest["files"]["vae"]))["vae"]
    vae.load_state_dict(rename_vae(official, vae, levels))
    return LatentCodec(vae, LATENT_SCALE)


def test_e_vae(parity: ParitySet) -> None:
    cases, codec = parity.cases, build_codec(parity)
    posterior = codec.vae.encode(cases["e.pixels"])
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    assert_close(moments, cases["e.moments"], ONE_PASS, "e.moments")
    assert_close(codec.encode(cases["e.pixels"]), cases["e.latent"], ONE_PASS, "e.latent")
    decoded = codec.decode(cases["e.latent"])
    assert_close(decoded, cases["e.decoded_1"], ONE_PASS, "e.decoded_1")
    together = codec.decode(cases["e.latent"], frames_per_call=len(cases["e.latent"]))
    assert_close(together, cases["e.decoded_3"], ONE_PASS, "e.decoded_3")


def build_wavlm(parity: ParitySet) -> WavLM:
    config = wavlm_config(parity.manifest["wavlm_cfg"], parity.folder)
    wavlm = WavLM(**config).eval()
    wavlm.load_state_dict(rename_wavlm(parity.weights(parity.manifest["files"]["wavlm"]), wavlm))
    return wavlm


def build_beats(parity: ParitySet) -> BEATs:
    beats = BEATs(**beats_config(parity.manifest["beats_cfg"], parity.folder)).eval()
    beats.load_state_dict(rename_beats(parity.weights("beats_weights.safetensors"), beats))
    return beats


def build_wav2vec2(parity: ParitySet) -> Wav2Vec2:
    wav2vec2 = Wav2Vec2(**parity.manifest["wav2vec2_config"]).eval()
    wav2vec2.load_state_dict(parity.weights("wav2vec2_weights.safetensors"))
    return wav2vec2


@pytest.mark.parametrize("case", ["f0", "f1"])
def test_f_audio_encoders(parity: ParitySet, case: str) -> None:
    cases = parity.cases
    encoders = {
        "wavlm": build_wavlm(parity),
        "beats": build_beats(parity),
        "wav2vec2": build_wav2vec2(parity),
    }
    wave = cases[f"{case}.wave"]
    found = {
        "wavlm": wavlm_features(encoders["wavlm"], wave[None])[0],
        "beats": encoders["beats"](wave[None])[0],
        "wav2vec2": wav2vec2_features(encoders["wav2vec2"], wave[None])[0],
    }
    N = int(cases[f"{case}.n_frames"])
    encoded = encode(encoders, wave)
    for name, features in found.items():
        assert_close(features, cases[f"{case}.{name}"], ONE_PASS, f"{case}.{name}")
        assert_close(encoded[name], cases[f"{case}.{name}"][:N], ONE_PASS, f"{case} {name}")


@pytest.mark.parametrize("case", ["f0", "f1"])
def test_f_fbank(parity: ParitySet, case: str) -> None:
    wave = parity.cases[f"{case}.wave"]
    padded = nn.functional.pad(wave, (0, -len(wave) % 1280))
    assert_close(fbank(padded[None])[0], parity.cases[f"{case}.fbank"], ONE_PASS, "fbank")


def said(parity: ParitySet, tensor: str, pattern: str) -> str:
    """What the manifest says of a recorded tensor, in words."""
    found = re.search(pattern, parity.manifest["tensors"][tensor]["what"])
    assert found, f"the manifest does not say {pattern} of {tensor}"
    return found[1]


def steps_of(parity: ParitySet, tensor: str) -> list[int]:
    """The updates, counted from 1, after which latents were recorded."""
    return [int(n) for n in re.findall(r"\d+", said(parity, tensor, r"steps? ([\d, and]+)"))]


def test_h_training_loss(parity: ParitySet) -> None:
    found = [re.fullmatch(r"h\.(.*)\.total", name) for name in parity.cases]
    names = [match[1] for match in found if match]
    assert names
    for case in names:
        lower_half = float(said(parity, f"h.{case}.l2_per_frame", r"lambda_lower=([\d.]+\d)"))
        pixel = float(said(parity, f"h.{case}.total", r"weight_pixel=([\d.]+\d)"))
        check_training_loss(parity, case, lower_half, pixel)


def check_training_loss(parity: ParitySet, case: str, lower_half: float, pixel: float) -> None:
    """Compare the losses and gradients of one recorded case."""
    cases = {name[2:]: t for name, t in parity.cases.items() if name.startswith("h.")}
    # a network of its own: gradients are left in it
    network = build_unet(parity, "keyframe", parity.weights("keyframe_weights.safetensors"))
    options = DiffusionOptions(
        lower_half=lower_half, pixel=pixel, drop_identity=0.0, drop_audio=0.0
    )
    config = ModelConfig(latent_scale=LATENT_SCALE)
    codec = build_codec(parity).requires_grad_(False) if pixel else None
    training = UNetTraining("keyframes", config, None, options, TrainOptions(), codec)  # type: ignore[arg-type]
    emotion = torch.stack([cases["valence"], cases["arousal"]], dim=-1)
    clips = Clips(cases["latents"].transpose(1, 2), cases["audio"], emotion)
    torch.testing.assert_close(clips.latents[:, 0], cases["cond_frames"])
    if pixel:
        pictures = cases["original_frames"].permute(0, 2, 3, 1)
        clips = clips._replace(pictures=pictures, frame=cases["pixel_frame"])
    sigma, noise = cases["sigma"], cases["noise"].transpose(1, 2)
    with torch.enable_grad():
        denoised, _ = training.denoised(network, clips, sigma, noise, torch.Generator())
        values = training.score(denoised, clips, sigma)
        values["loss"].backward()  # type: ignore[no-untyped-call]

    rows = latent_loss(denoised, clips.latents, sigma, lower_half=lower_half).flatten()
    torch.testing.assert_close(rows, cases[f"{case}.l2_per_frame"], rtol=LOSS, atol=0)
    torch.testing.assert_close(values["loss"], cases[f"{case}.total"], rtol=LOSS, atol=0)
    if pixel:
        torch.testing.assert_close(values["pixel"], cases[f"{case}.pixel_l2"], rtol=LOSS, atol=0)
    found = network.add_embedding.linear_1.bias.grad
    expected = cases[f"{case}.grad_label_emb_bias"]
    assert float((found - expected).norm() / expected.norm()) <= GRADIENT
    norm = network.conv_out.weight.grad
    assert norm is not None
    recorded = cases[f"{case}.grad_out_conv_norm"]
    torch.testing.assert_close(norm.norm(), recorded, rtol=GRADIENT, atol=0)


def test_sigmas(parity: ParitySet) -> None:
    recorded = {name: t for name, t in parity.cases.items() if name.startswith("sigmas.")}
    assert recorded
    for name, expected in recorded.items():
        found = ays_sigmas(int(name.removeprefix("sigmas.")))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_named_directory_has_to_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEYFACE_PARITY_DIR", str(tmp_path / "absent"))
    with pytest.raises(pytest.fail.Exception, match=r"no parity set: .*absent"):
        open_set(parity_folder())
