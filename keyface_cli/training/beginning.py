"""What a training starts from: random weights, another stage's network, or a trained model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from keyface_cli.checkpoint import Checkpoint
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
    """Train all but the layers along time, as published (SPEC 12)."""
    for name, parameter in network.named_parameters():
        if not TEMPORAL.isdisjoint(name.split(".")):
            parameter.requires_grad_(False)


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module) -> None:
    """Let one stage's network start from what the other's has learned.

    Everything that both have is copied. The interpolation network sees one channel more, the mask,
    which starts at zero, and hears no emotion, whose columns are left out. A keyframe network that
    starts from an interpolation network hears no emotion at first.
    """
    theirs = source.state_dict()
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
            and where it has none of the other stage; what the run has not is copied from it.
        resume: the network will be filled from the run's state, so nothing is done.

    Raises:
        ConfigError: the run, or the model to start from, is of another architecture.
        WeightsError: the model holds neither network, or a file of it is damaged.
    """
    run.check(folder, config)
    if resume or start_from is None:
        return
    if isinstance(start_from, str):
        transfer(run.load_trained(folder, start_from, config), network)
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
    transfer(loaded, network)
    run.adopt(folder, checkpoint, config)
