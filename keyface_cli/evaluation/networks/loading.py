"""Weights that users bring: tensors for a network of ours, or TorchScript with its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keyface_cli.errors import WeightsError


def load_torchscript(path: Path, device: str = "cpu") -> Any:
    """Load a TorchScript file, ready to be called without gradients.

    Such a file is a program: it may call any of torch's operators, and some of those read and
    write files (`torch.from_file`). Only files of a known hash, or named by the user, come here.

    Raises:
        WeightsError: the file is missing, damaged or no TorchScript.
    """
    if not path.is_file():
        raise WeightsError(f"file not found: {path}")
    try:
        network: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(f"not a TorchScript file: {path}", "fetch it again") from error
    return network.eval()


def load_strictly(network: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Load tensors into a network of the same names and shapes; batch counters may be absent.

    Raises:
        WeightsError: a tensor is missing, misshapen or unknown: names the first.
    """
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("_batches_tracked")}
    given = {k: v for k, v in tensors.items() if not k.endswith("_batches_tracked")}
    hint = f"expected: {what}; keyface weights pull metrics fetches the public files"
    for name in wanted:
        if name not in given:
            raise WeightsError(f"{path}: is another network: tensor {name} is missing", hint)
        if given[name].shape != wanted[name].shape:
            shapes = f"{list(given[name].shape)}, expected {list(wanted[name].shape)}"
            raise WeightsError(f"{path}: tensor {name} has the shape {shapes}", hint)
    for name in given:
        if name not in wanted:
            raise WeightsError(f"{path}: is another network: tensor {name} is unknown", hint)
    network.load_state_dict({k: v.float() for k, v in given.items()}, strict=False)
