"""FID and FVD: the Frechet distance, what the networks are fed, and how frames are sampled."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip
from keyface_cli.evaluation.metrics.distribution import (
    FeatureStore,
    FrechetInceptionDistance,
    FrechetVideoDistance,
)
from keyface_cli.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, gaussian_of
from keyface_cli.evaluation.networks import inception
from keyface_cli.evaluation.networks.faces import FaceFinder


def statistics(x: np.ndarray) -> FeatureStatistics:
    """The statistics of features that come in uneven blocks."""
    result = FeatureStatistics(x.shape[1])
    for block in np.split(x, [1, max(1, len(x) // 3)]):
        result.add(block)
    return result


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(statistics(a).gaussian(), statistics(b).gaussian())


def reference_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The definition in float64 by scipy; rank-deficient roots through the samples themselves."""
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    if min(len(a), len(b)) > a.shape[1]:
        root = np.trace(scipy.linalg.sqrtm(s @ t)).real
    else:
        p, q = a - a.mean(0), b - b.mean(0)
        scale = math.sqrt((len(a) - 1) * (len(b) - 1))
        root = scipy.linalg.svdvals(p @ q.T).sum() / scale
    return float(mean + np.trace(s) + np.trace(t) - 2 * root)


def features(count: int, size: int, seed: int, rank: int | None = None) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(rank or size, size)) / math.sqrt(size)
    return generator.normal(size=(count, rank or size)) @ mix + generator.normal(size=size) + 30


@pytest.mark.parametrize(
    ("count", "size", "rank"),
    [(400, 32, None), (200, 64, None), (40, 64, None), (3, 64, None), (300, 48, 7), (2, 5, 1)],
)
def test_distance_equals_the_definition(count: int, size: int, rank: int | None) -> None:
    a, b = features(count, size, 1, rank), features(count + 5, size, 2, rank)
    if rank and count > size:  # scipy's root of a singular product is not exact: known by hand
        c = a @ np.linalg.qr(np.random.default_rng(3).normal(size=(size, size)))[0]
        assert distance(a, c) == pytest.approx(rank_deficient(a, c), rel=1e-6)
        return
    assert distance(a, b) == pytest.approx(reference_distance(a, b), rel=1e-6)
    direct = frechet_distance(gaussian_of(a), gaussian_of(b))
    assert direct == pytest.approx(reference_distance(a, b), rel=1e-6)


def rank_deficient(a: np.ndarray, b: np.ndarray) -> float:
    """The same from the samples, whatever the rank."""
    p, q = a - a.mean(0), b - b.mean(0)
    root = scipy.linalg.svdvals(p @ q.T).sum() / (len(a) - 1)
    spread = ((p**2).sum() + (q**2).sum()) / (len(a) - 1)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * root)


def test_distance_of_known_gaussians() -> None:
    x = np.random.default_rng(0).normal(size=(500, 6))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    # standard normal against a shift of 3 and a scale of 2 in one axis: 9 + (2 - 1)^2
    y = x * (2, 1, 1, 1, 1, 1) + (0, 3, 0, 0, 0, 0)
    assert distance(x, y) == pytest.approx(10.0, rel=1e-9)


def test_distance_of_a_set_with_itself_is_0_and_grows_with_noise() -> None:
    x = features(120, 64, 4)
    assert distance(x, x) == pytest.approx(0, abs=1e-9 * (x**2).sum() / 120)
    noise = np.random.default_rng(5).normal(size=x.shape)
    grown = [distance(x, x + level * noise) for level in (0.1, 0.3, 1.0)]
    assert 0 < grown[0] < grown[1] < grown[2]


def test_statistics_of_large_means_keep_their_digits() -> None:
    x = np.random.default_rng(1).normal(size=(900, 5)) + 1e6
    ours = statistics(x).gaussian()
    assert ours.covariance == pytest.approx(np.cov(x, rowvar=False), rel=1e-6, abs=1e-6)
    assert ours.mean == pytest.approx(x.mean(0), rel=1e-12)
    with pytest.raises(ValueError, match="1 features have no covariance"):
        statistics(x[:1]).gaussian()


def test_store_counts_clips_by_weight() -> None:
    store = FeatureStore(4)
    clips = [features(count, 4, count).astype(np.float32) for count in (5, 1, 8)]
    for clip in clips:
        store.append(clip)
        store.close_clip()
    repeated = np.concatenate([clips[0], clips[0], clips[2]]).astype(np.float64)
    ours = store.gaussian(np.array([2.0, 0.0, 1.0]))
    assert ours.count == 18
    assert ours.covariance == pytest.approx(np.cov(repeated, rowvar=False), rel=1e-9)
    everything = store.gaussian()
    assert everything.mean == pytest.approx(np.concatenate(clips).astype(float).mean(0))


# --- what Inception is fed


def pictures(h: int = 40, w: int = 64) -> Tensor:
    return torch.randint(0, 256, (2, 3, h, w), generator=torch.Generator().manual_seed(1)).byte()


def test_antialiased_resize_is_that_of_torchmetrics() -> None:
    large = pictures(600, 500)
    ours = inception.prepare(large, "antialias")
    size = (299, 299)
    theirs = F.interpolate(
        large.float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    assert torch.equal(ours, (theirs - 128) / 128)
    plain = (F.interpolate(large.float(), size, mode="bilinear") - 128) / 128
    assert (ours - plain).abs().mean() > 0.05  # antialias off is another number


def test_resize_of_pytorch_fid_has_its_own_range() -> None:
    x = pictures(600, 500)
    theirs = 2 * F.interpolate(x.float() / 255, (299, 299), mode="bilinear") - 1
    assert torch.equal(inception.prepare(x, "pytorch"), theirs)
    white = torch.full((1, 3, 9, 9), 255, dtype=torch.uint8)
    assert float(inception.prepare(white, "pytorch").max()) == pytest.approx(1)
    assert float(inception.prepare(white, "tensorflow").max()) == pytest.approx(127 / 128)


def test_resize_of_tensorflow_starts_at_the_corner() -> None:
    ramp = torch.arange(0, 200, 10, dtype=torch.uint8).expand(1, 3, 20, 20)
    ours = inception.prepare(ramp, "tensorflow")[0, 0, 0] * 128 + 128
    expected = [min(i * 20 / 299, 19) * 10 for i in range(299)]
    assert ours.numpy() == pytest.approx(expected, abs=1e-3)
    exact = pictures(299, 299)
    for resize in ("tensorflow", "antialias", "clean"):  # no size to change: bytes pass
        ours = inception.prepare(exact, resize)
        assert torch.allclose(ours, (exact.float() - 128) / 128, atol=1e-6)


def test_clean_resize_is_bicubic_of_pillow_in_float() -> None:
    x = pictures(700, 330)
    ours = inception.prepare(x, "clean") * 128 + 128
    plane = Image.fromarray(x[1, 2].float().numpy())
    theirs = np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
    assert ours[1, 2].numpy() == pytest.approx(theirs, abs=1e-3)
    assert (ours - ours.round()).abs().max() > 0.1  # kept in float


def test_fid_refuses_what_is_not_bytes() -> None:
    with pytest.raises(ValueError, match="bytes"):
        inception.prepare(torch.rand(1, 3, 8, 8), "antialias")


def test_inception_is_the_fid_variant() -> None:
    with torch.device("meta"):
        network = inception.FidInception()
    # torchvision's inception_v3 without auxiliary head has 23,834,568 for 1000 classes
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * 2049
    assert {"Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.weight"} <= set(network.state_dict())
    assert network.Mixed_6b.branch7x7dbl_2.conv.kernel_size == (7, 1)
    assert network.Conv2d_1a_3x3.bn.eps == 0.001


def test_average_pool_leaves_out_the_padding() -> None:
    assert torch.equal(inception._average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's file with random weights that keep the signal alive."""
    torch.manual_seed(3)
    network = inception.FidInception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def clip(frames: np.ndarray) -> Clip:
    return Clip("a", Path("a"), Path("b"), 25.0, len(frames), (frames.shape[2], frames.shape[1]))


def feed(
    measure: FrechetInceptionDistance | FrechetVideoDistance, a: np.ndarray, b: np.ndarray
) -> None:
    measure.begin(clip(a))
    for start in range(0, len(a), 5):
        part = slice(start, start + 5)
        measure.add(Block(start, a[part], b[part], FaceFinder()))
    assert not measure.end().reasons


def test_fid_of_frames(inception_file: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    noisy = np.clip(truth + generator.normal(0, 40, truth.shape), 0, 255).astype(np.uint8)
    same = FrechetInceptionDistance(inception_file)
    feed(same, truth, truth)
    assert same.overall()["fid"] == pytest.approx(0, abs=1e-5)
    assert same.protocol()["frames"] == 2
    assert "rank-deficient" in same.protocol()["caution"]
    other = FrechetInceptionDistance(inception_file)
    feed(other, noisy, truth)
    assert other.overall()["fid"] > 0.01
    # channel order matters: the network sees RGB
    seen, turned = (other.features(x) for x in (truth, truth[..., ::-1].copy()))
    assert np.abs(seen - turned).max() > 1e-3


def test_other_weights_than_inception_are_refused(tmp_path: Path, inception_file: Path) -> None:
    tensors = torch.load(inception_file, weights_only=True)
    wrong = dict(tensors)
    del wrong["Mixed_6a.branch3x3.conv.weight"]
    save_file(wrong, tmp_path / "missing.safetensors")
    with pytest.raises(WeightsError, match=r"tensor Mixed_6a.branch3x3.conv.weight is missing"):
        inception.load_inception(tmp_path / "missing.safetensors")
    wrong = {**tensors, "fc.weight": torch.zeros(1000, 2048)}
    save_file(wrong, tmp_path / "shape.safetensors")
    with pytest.raises(WeightsError, match=r"fc.weight has the shape \[1000, 2048\], expected"):
        inception.load_inception(tmp_path / "shape.safetensors")
    save_file({**tensors, "AuxLogits.x": torch.zeros(1)}, tmp_path / "extra.safetensors")
    with pytest.raises(WeightsError, match=r"AuxLogits.x is unknown"):
        inception.load_inception(tmp_path / "extra.safetensors")


# --- FVD


class Probe(nn.Module):
    """Stands in for I3D: returns what it was fed and how, as features."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        flags = torch.tensor([float(rescale), float(resize), float(return_features)])
        shape = torch.tensor([float(n) for n in x.shape[1:]])
        frames = x.mean(dim=(3, 4))  # (B, C, T)
        return torch.cat(
            [flags.expand(x.shape[0], 3), shape.expand(x.shape[0], 4), frames.flatten(1)], 1
        )


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "i3d.pt"
    torch.jit.script(Probe()).save(str(path))
    return path


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def test_i3d_is_fed_bytes_in_its_layout(i3d_file: Path) -> None:
    measure = FrechetVideoDistance(i3d_file)
    video = np.zeros((1, 16, 10, 12, 3), np.uint8)
    video[..., 0] = np.arange(16)[:, None, None] * 10  # red rises over time
    video[..., 2] = 255
    seen = measure.features(video)[0]
    assert seen[:3].tolist() == [1, 1, 1]  # rescale, resize, return_features
    assert seen[3:7].tolist() == [3, 16, 10, 12]  # C, T, H, W
    assert seen[7:23] == pytest.approx(np.arange(16) * 10)  # 0..255, not 0..1
    assert seen[-16:].tolist() == [255] * 16


@pytest.mark.parametrize(("stride", "windows"), [(1, [0, 16]), (2, [0])])
def test_windows_are_consecutive_and_the_same_on_both_sides(
    i3d_file: Path, stride: int, windows: list[int]
) -> None:
    measure = FrechetVideoDistance(i3d_file, stride=stride)
    frames = np.arange(45, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    feed(measure, frames, frames + 100)
    for store, offset in ((measure._generated, 0), (measure._reference, 100)):
        seen = store.gaussian() if len(windows) > 1 else None
        assert store.counts == [len(windows)]
        if seen is not None:
            red = seen.mean[7:23]
            assert red == pytest.approx(np.mean(windows) + np.arange(16) * stride + offset)
    assert measure.protocol()["stride"] == stride


def test_clips_that_are_too_short_are_named(i3d_file: Path) -> None:
    measure = FrechetVideoDistance(i3d_file)
    frames = np.zeros((15, 4, 4, 3), np.uint8)
    measure.begin(clip(frames))
    measure.add(Block(0, frames, frames, FaceFinder()))
    assert measure.end().reasons == {"fvd": "shorter than 16 frames"}
    assert measure.overall() == {}
    with pytest.raises(ValueError, match="at least 10 frames, not 6"):
        FrechetVideoDistance(i3d_file, frames=6)


def test_a_file_that_is_no_i3d_is_one_line(tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.script(Other()).save(str(tmp_path / "other.pt"))
    measure = FrechetVideoDistance(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"is not the I3D of StyleGAN-V"):
        measure.features(np.zeros((1, 16, 4, 4, 3), np.uint8))
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        FrechetVideoDistance(tmp_path / "text.pt")
    with pytest.raises(WeightsError, match="file not found"):
        FrechetVideoDistance(tmp_path / "absent.pt")
