"""LPIPS from files: a trunk of ImageNet that the user brings, linear layers of torchmetrics."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import Tensor

from keyface_cli.checkpoints.unpickle import read_tensors
from keyface_cli.errors import WeightsError
from keyface_cli.models.lpips import Lpips, Trunk


def load_lpips(trunk: Trunk, path: Path) -> Lpips:
    """Read a trunk's ImageNet weights, as `features.N.weight`, and the linear layers'.

    Raises:
        WeightsError: the file is missing or another network, or torchmetrics is not installed.
    """
    network = Lpips(trunk)
    tensors, _ = read_tensors(path)
    expected = {f"features.{name}": t.shape for name, t in network.features.state_dict().items()}
    for name, shape in expected.items():  # the classifier is not needed
        if name not in tensors or tensors[name].shape != shape:
            raise WeightsError(
                f"{path}: is not {trunk} of ImageNet: {name}",
                "the file of torchvision's model is meant, such as vgg16-397923af.pth",
            )
    network.features.load_state_dict(
        {name.removeprefix("features."): tensors[name].float() for name in expected}
    )
    for weight, tensor in zip(network.weights, linear_weights(trunk), strict=True):
        weight.data.copy_(tensor)
    return network.eval().requires_grad_(False)


def linear_weights(trunk: Trunk) -> list[Tensor]:
    """Return the five (1, C, 1, 1) weights of version 0.1 that torchmetrics carries.

    Raises:
        WeightsError: torchmetrics is not installed.
    """
    try:
        folder = resources.files("torchmetrics") / "functional" / "image" / "lpips_models"
    except ModuleNotFoundError as error:
        raise WeightsError("LPIPS needs torchmetrics", "pip install 'keyface[train]'") from error
    with resources.as_file(folder / f"{trunk}.pth") as path:
        tensors, _ = read_tensors(path)
    return [tensors[f"lin{i}.model.1.weight"] for i in range(5)]
