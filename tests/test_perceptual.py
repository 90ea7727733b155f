"""The perceptual distances: LPIPS by VGG16, and the features of a network trained here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from keyface_cli.avatars import rig
from keyface_cli.checkpoints.lpips import linear_weights
from keyface_cli.errors import WeightsError
from keyface_cli.models.lpips import Lpips
from keyface_cli.training.options import TrainOptions
from keyface_cli.training.perceptual import PoseFeatures, load_distance, train_features

OPTIONS = TrainOptions(
    updates=2, batch_size=2, learning_rate=1e-3, warmup=1, precision="float32", sample_every=0
)


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
    distance = load_distance(vgg)
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


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Pictures whose brightness is the first control."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "000"
    folder.mkdir(parents=True)
    rigs = rng.uniform(-1, 1, (3, 175, len(rig.NAMES))).astype(np.float16)
    starts = np.array([0, 2, 5])
    times = starts[:, None] + 13 * np.arange(14)
    shown = np.take_along_axis(rigs[..., 0], times, 1).astype(np.float32)
    frames = np.broadcast_to(128 + 100 * shown[..., None, None, None], (3, 14, 64, 64, 3))
    np.save(folder / "keyframes.npy", frames.astype(np.uint8))
    np.save(folder / "keyframe_starts.npy", starts)
    np.save(folder / "rigs.npy", rigs)
    return folder


def test_a_network_trained_on_drawn_avatars_stands_in(shard: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_features([shard], run, OPTIONS) == 2
    distance = load_distance(run / "features.safetensors")
    a, b = pictures(0), pictures(1).requires_grad_()
    assert distance(a, a).tolist() == [0, 0]
    assert (distance(a, b) > 0).all()
    distance(a, b).sum().backward()  # type: ignore[no-untyped-call]
    assert b.grad is not None
    assert b.grad.abs().sum() > 0


def test_pictures_come_with_their_own_rig(shard: Path) -> None:
    from keyface_cli.training.perceptual import FeatureTraining

    pictures, rigs = FeatureTraining([shard], 40).draw(torch.Generator().manual_seed(0))
    brightness = (pictures[:, 0, 0, 0].float() - 128) / 100
    torch.testing.assert_close(brightness, rigs[:, 0], atol=0.011, rtol=0)


def test_pose_features_have_the_size_that_their_file_says() -> None:
    read = PoseFeatures(5)(pictures(0))
    assert read.shape == (2, 5)
    assert [f.shape[-1] for f in PoseFeatures().features(pictures(0))] == [32, 16, 8, 4, 2]


def test_other_files_are_refused(tmp_path: Path, vgg: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_distance(tmp_path / "none.pth")
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsError, match=r"is not vgg of ImageNet: features\.0\.weight"):
        load_distance(other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\0" * 50)
    with pytest.raises(WeightsError):
        load_distance(cut)
