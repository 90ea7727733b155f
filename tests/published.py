"""The published files, made of the parity data: DeepSpeed's names, what only training needed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_parity import LATENT_SCALE, ParitySet, interpolation_weights, unet_config
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from keyface_cli.checkpoints.checkpoint import build
from keyface_cli.checkpoints.renaming import rename_vae, split
from keyface_cli.config import ModelConfig, to_dict
from keyface_cli.presets import PRESETS

State = dict[str, Tensor]

LPIPS = {f"loss_fn.lpips.lin{i}.model.1.weight": torch.rand(1, 8, 1, 1) for i in range(5)}
UNUSED_ENCODER = {"conditioner.embedders.0.encoder.encoder.conv_in.weight": torch.rand(8, 3, 3, 3)}


class LossScaler:
    """An object of a training framework, as DeepSpeed leaves beside the tensors."""


LossScaler.__module__ = "deepspeed.runtime.fp16.loss_scaler"


def deepspeed(path: Path, tensors: State, **more: Any) -> None:
    """Write a `.pt` file as DeepSpeed does."""
    module = {f"_forward_module.{name}": t.half() for name, t in tensors.items()}
    words = LossScaler.__module__.split(".")
    with pytest.MonkeyPatch.context() as patch:  # pickle looks for the class; reading must not
        for i in range(len(words)):
            name = ".".join(words[: i + 1])
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setattr(sys.modules[LossScaler.__module__], "LossScaler", LossScaler, raising=False)
        facts = {"global_steps": 7, "args": argparse.Namespace(a=1)}
        torch.save({"module": module} | facts | more, path)


def model_config(parity: ParitySet) -> ModelConfig:
    """The parity set's model; what the encoders' own files say is left as published."""
    sizes = parity.manifest["vae_config"]
    size = parity.manifest["latent_hw"][0]
    widths = [sizes["ch"] * m for m in sizes["ch_mult"]]
    return dataclasses.replace(
        PRESETS["keyface"],
        preset="parity",
        resolution=size * 2 ** (len(widths) - 1),
        latent_size=size,
        keyframe_unet=unet_config(parity, "keyframe"),
        interpolation_unet=unet_config(parity, "interpolation"),
        vae=PRESETS["keyface"].vae
        | {"block_out_channels": widths, "down_block_types": ["DownEncoderBlock2D"] * len(widths)},
    )


def write_files(parity: ParitySet, folder: Path) -> None:
    """Write every published file of the parity set's model, and its configuration."""
    autoencoder = parity.weights(parity.manifest["files"]["vae"])
    autoencoder = {
        name if name.startswith("first_stage_model.") else f"first_stage_model.{name}": tensor
        for name, tensor in autoencoder.items()
    }
    decoder = {n: t for n, t in autoencoder.items() if ".decoder." in n}
    keyframe = parity.weights("keyframe_weights.safetensors")
    interpolation = interpolation_weights(parity)
    deepspeed(
        folder / "keyframe.pt",
        keyframe | decoder | LPIPS | UNUSED_ENCODER,
        lr_scheduler={"loss_scaler": LossScaler()},
    )
    deepspeed(folder / "interpolation.pt", interpolation | decoder | LPIPS)
    guide = interpolation | parity.weights("interpolation_bad_weights_overlay.safetensors")
    # its own audio projection is not used: as published, it uses that of the other
    projection = {n: t + 1 for n, t in guide.items() if n.startswith("conditioner.")}
    deepspeed(folder / "interpolation_bad.pt", guide | projection)
    deepspeed(folder / "whole_keyframe.pt", keyframe | autoencoder)
    wavlm, beats = parity.manifest["wavlm_cfg"], parity.manifest["beats_cfg"]
    mask = {"mask_emb": torch.rand(wavlm["encoder_embed_dim"])}
    classes = beats["predictor_class"]
    head = {
        "predictor.weight": torch.rand(classes, beats["encoder_embed_dim"]),
        "predictor.bias": torch.rand(classes),
    }
    torch.save(
        {"cfg": wavlm, "model": parity.weights("wavlm_weights.safetensors") | mask},
        folder / "WavLM-Base+.pt",
    )
    torch.save(
        {"cfg": beats, "model": parity.weights("beats_weights.safetensors") | head},
        folder / "BEATs.pt",
    )
    write_wav2vec2(parity, folder / "wav2vec2")
    write_vae(parity, folder / "vae", autoencoder)
    (folder / "config.json").write_text(json.dumps(to_dict(model_config(parity))))


def write_wav2vec2(parity: ParitySet, folder: Path) -> None:
    """Write a folder of facebook/wav2vec2-base-960h's kind, under the names of its age."""
    config = Wav2Vec2Config(**parity.manifest["wav2vec2_config"])
    head = {n: t for n, t in Wav2Vec2ForCTC(config).state_dict().items() if "lm_head" in n}
    weights = parity.weights("wav2vec2_weights.safetensors")
    old = {
        f"wav2vec2.{name}".replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in weights.items()
    }
    config.save_pretrained(folder)
    save_file(old | head, folder / "model.safetensors")


def write_vae(parity: ParitySet, folder: Path, autoencoder: State) -> None:
    """Write a folder of Stable Video Diffusion's VAE: the encoder, and another decoder."""
    config = model_config(parity)
    levels = len(config.vae["block_out_channels"])
    state = rename_vae(split(autoencoder)["vae"], build("vae", config, empty=True), levels)
    other = {n: t + 1 if n.startswith("decoder.") else t for n, t in state.items()}
    folder.mkdir()
    settings = config.vae | {"scaling_factor": LATENT_SCALE, "_class_name": "any"}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(other, folder / "diffusion_pytorch_model.fp16.safetensors")
