"""The perceptual distance: LPIPS by VGG16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from keyface_cli.checkpoints.lpips import linear_weights, load_lpips
from keyface_cli.errors import WeightsError
from keyface_cli.models.lpips import Lpips


def pictures(seed: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=64, mode="bilinear")


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16 as torchvision names it, with random weights and a classifier."""
    torch.manual_seed(0)
    tensors = {f"features.{k}": v for k, v in Lpips("vgg").features.state_dict().items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(tensors | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


def test_the_distance_of_a_picture_to_itself_is_zero_and_gradients_flow(vgg: Path) -> None:
    distance = load_lpips("vgg", vgg)
    a, b = pictures(0), pictures(1).requires_grad_()
    assert distance(a, a).tolist() == [0, 0]
    found = distance(a, b)
    assert found.shape == (2,)
    assert (found > 0).all()
    # each pair for itself
    torch.testing.assert_close(distance(a[1:], b[1:]), found[1:])
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert b.grad is not None
    assert b.grad.abs().sum() > 0


def test_linear_weights_are_those_of_version_0_1() -> None:
    for trunk, widths in (("vgg", (64, 128, 256, 512, 512)), ("alex", (64, 192, 384, 256, 256))):
        weights = linear_weights(trunk)  # type: ignore[arg-type]
        assert [tuple(w.shape) for w in weights] == [(1, n, 1, 1) for n in widths]
        assert all((w >= 0).all() for w in weights)


def test_other_files_are_refused(tmp_path: Path, vgg: Path) -> None:
    with pytest.raises(WeightsError, match="file not found"):
        load_lpips("vgg", tmp_path / "none.pth")
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match=r"is not vgg of ImageNet: features\.0\.weight"):
        load_lpips("vgg", other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\0" * 50)
    with pytest.raises(WeightsError):
        load_lpips("vgg", cut)
