"""What the networks share: their base class, and a convolution of two of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keyface_cli.errors import WeightsError
from keyface_cli.files import write_text


class Network(nn.Module):
    """A module that knows its arguments, and can compute its blocks twice rather than keep them.

    Args:
        arguments: those of the subclass, as its `locals()` are when it calls this.
    """

    # what config.json holds besides the arguments, so that a library knows its own class by it
    signature: ClassVar[dict[str, str]] = {}

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
        self.gradient_checkpointing = False

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def save_config(self, folder: Path) -> None:
        """Write the arguments to `folder`/config.json, in the form that the libraries read."""
        settings = (self.signature or {"_class_name": type(self).__name__}) | self.config
        text = json.dumps(settings, indent=2, sort_keys=True)
        write_text(folder / "config.json", text + "\n", WeightsError)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only what goes into each block, and compute the block again for its gradients."""
        self.gradient_checkpointing = True

    def run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Call one of this network's blocks."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
        return cast(Tensor, block(*inputs))


class NormedConv(nn.Module):
    """A 1-D convolution over all of a sequence, its weight stored as direction and length.

    There is a length for each place of the kernel, under the names of torch's `weight_norm`, which
    on the meta device imports the compiler.

    Args:
        width: channels in and out.
        kernel: its size; half of it is padded on both sides.
        groups: of channels.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, groups=groups)
        self.bias = conv.bias
        self.parametrizations = nn.ModuleDict({"weight": _Parts(conv.weight.data)})
        self.padding, self.groups = kernel // 2, groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, L), or one more for an even kernel."""
        weight = self.parametrizations["weight"]()
        return F.conv1d(x, weight, self.bias, padding=self.padding, groups=self.groups)


class _Parts(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        length = torch.empty(1, 1, weight.shape[-1]) if weight.is_meta else _length(weight)
        self.original0 = nn.Parameter(length)
        self.original1 = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.original1 * (self.original0 / _length(self.original1))


def _length(weight: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True))
