"""What a training starts from: random weights, another stage's network, or a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from keyface_cli.checkpoints.checkpoint import MANIFEST, Checkpoint, build
from keyface_cli.checkpoints.tensorfiles import open_tensors
from keyface_cli.config import ModelConfig
from keyface_cli.errors import ConfigError, WeightsError
from keyface_cli.models.unet import VideoUNet
from keyface_cli.training import run

# the parts of a VideoUNet along time; the published training left them as Stable Video Diffusion's
TEMPORAL = {
    "temporal_res_block",
    "temporal_transformer_blocks",
    "time_mixer",
    "time_pos_embed",
}


def freeze_temporal_layers(network: nn.Module) -> None:
    """Freeze the temporal layers, as published."""
    for name, parameter in network.named_parameters():
        if not TEMPORAL.isdisjoint(name.split(".")):
            parameter.requires_grad_(False)


@torch.no_grad()
def transfer(theirs: Mapping[str, Tensor], target: nn.Module) -> None:
    """Let a network start from what another stage's, or Stable Video Diffusion's, has learned.

    Everything that both have is copied. The interpolation network sees one channel more, the mask,
    which starts at zero, and has no emotion, whose columns are left out. A keyframe network that
    starts from an interpolation network has no emotion at first.

    Args:
        theirs: the tensors of the network to start from, by name.
        target: changed in place.

    Raises:
        WeightsError: a tensor of the same name has another shape.
    """
    for name, mine in target.state_dict().items():
        other = theirs.get(name)
        if other is None:
            continue
        if other.shape == mine.shape:
            mine.copy_(other)
        elif name == "add_embedding.linear_1.weight":
            mine.zero_()
            shared = min(mine.shape[1], other.shape[1])
            mine[:, -shared:] = other[:, -shared:]
        elif name == "conv_in.weight":
            mine.zero_()
            shared = min(mine.shape[1], other.shape[1])
            mine[:, :shared] = other[:, :shared]
        else:
            raise WeightsError(f"the networks differ in shape: {name}")


def begin(
    network: VideoUNet,
    component: str,
    config: ModelConfig,
    folder: Path,
    start_from: str | Path | None,
    *,
    resume: bool,
) -> None:
    """Fill a new network, and give its run the other networks of the model that it starts from.

    Args:
        network: changed in place.
        component: its name in a checkpoint folder.
        config: of the model that is trained.
        folder: the run.
        start_from: None leaves the network random. The name of a component is that network of the
            run. A folder is a trained model of the same architecture: its network of this stage,
            and where it has none of the other stage; what the run has not is copied from it. Or it
            is Stable Video Diffusion's, with `unet` and `vae`: what the published model started
            from.
        resume: the network will be filled from the run's state, so nothing is done.

    Raises:
        ConfigError: the run, or the model to start from, is of another architecture.
        WeightsError: the model holds neither network, or a file of it is damaged.
    """
    run.check(folder, config)
    if resume or start_from is None:
        return
    if isinstance(start_from, str):
        transfer(run.load_trained(folder, start_from, config).state_dict(), network)
        return
    if is_base(start_from):
        _begin_from_base(network, folder, start_from, config)
        return
    checkpoint = Checkpoint.open(start_from)
    if not run.same_networks(checkpoint.config, config):
        raise ConfigError(
            f"the model to start from is of another architecture: {start_from}",
            "leave out --preset: the run then takes the architecture of --from",
        )
    stage_unet = "keyframe_unet" if component == "keyframe_unet" else "interpolation_unet"
    names = dict.fromkeys((stage_unet, "interpolation_unet", "keyframe_unet"))
    held = next((name for name in names if name in checkpoint.components), None)
    if held is None:
        raise WeightsError(f"the model to start from has no UNet: {start_from}")
    loaded = checkpoint.load(held, dtype=torch.float32)
    transfer(loaded.state_dict(), network)
    run.adopt(folder, checkpoint, config)


def is_base(folder: Path) -> bool:
    """Whether a folder is Stable Video Diffusion's, as diffusers stores it."""
    return not (folder / MANIFEST).is_file() and (folder / "unet" / "config.json").is_file()


def _begin_from_base(network: VideoUNet, folder: Path, base: Path, config: ModelConfig) -> None:
    """Take the UNet, without its embeddings of frame rate and motion, and the VAE."""
    stem = "diffusion_pytorch_model"
    half = (base / "unet" / f"{stem}.fp16.safetensors").is_file()
    with open_tensors(base / "unet", f"{stem}.fp16" if half else stem) as reader:
        dropped = "add_embedding.linear_1.weight"  # its input is another one here
        names = reader.names - {dropped}
        unexpected = names - set(network.state_dict())
        if unexpected:
            raise WeightsError(
                f"the model to start from is of another architecture: {base}",
                f"unexpected tensor: {min(unexpected)}",
            )
        transfer({name: reader.get(name).float() for name in names}, network)
    if not (folder / "vae").is_dir():
        vae = cast(Any, build("vae", config))
        half = (base / "vae" / f"{stem}.fp16.safetensors").is_file()
        with open_tensors(base / "vae", f"{stem}.fp16" if half else stem) as reader:
            if {n: tuple(t.shape) for n, t in vae.state_dict().items()} != {
                name: reader.shape(name) for name in reader.names
            }:
                raise WeightsError(f"the VAE is of another architecture: {base / 'vae'}")
            vae.load_state_dict({name: reader.get(name).float() for name in reader.names})
        run.save(folder, "vae", vae, config, {"from": "Stable Video Diffusion"})
