"""FID and FVD: the Frechet distance, what the networks are fed, and how frames are sampled."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip
from keyface_cli.evaluation.metrics.distribution import (
    FrechetInceptionDistance,
    FrechetVideoDistance,
    prepare,
)
from keyface_cli.evaluation.metrics.frechet import Gaussian, frechet_distance, gaussian_of


def statistics(x: np.ndarray) -> Gaussian:
    """The statistics of features of uneven clips."""
    return gaussian_of(np.split(x, [1, max(1, len(x) // 3)]))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet_distance(statistics(a), statistics(b))


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
    ours = statistics(x)
    assert ours.factor.T @ ours.factor == pytest.approx(np.cov(x, rowvar=False), rel=1e-6, abs=1e-6)
    assert ours.mean == pytest.approx(x.mean(0), rel=1e-12)
    with pytest.raises(ValueError, match="1 features have no covariance"):
        statistics(x[:1])


def test_clips_count_by_weight() -> None:
    clips = [features(count, 4, count).astype(np.float32) for count in (5, 1, 8)]
    repeated = np.concatenate([clips[0], clips[0], clips[2]]).astype(np.float64)
    ours = gaussian_of(clips, [2.0, 0.0, 1.0])
    assert ours.factor.T @ ours.factor == pytest.approx(np.cov(repeated, rowvar=False), rel=1e-9)
    everything = gaussian_of(clips)
    assert everything.mean == pytest.approx(np.concatenate(clips).astype(float).mean(0))


# --- what Inception is fed


def pictures(h: int = 40, w: int = 64) -> Tensor:
    return torch.randint(0, 256, (2, 3, h, w), generator=torch.Generator().manual_seed(1)).byte()


def test_antialiased_resize_is_that_of_torchmetrics() -> None:
    large = pictures(600, 500)
    ours = prepare(large)
    size = (299, 299)
    theirs = F.interpolate(
        large.float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    assert torch.equal(ours, (theirs - 128) / 128)
    plain = (F.interpolate(large.float(), size, mode="bilinear") - 128) / 128
    assert (ours - plain).abs().mean() > 0.05  # antialias off is another number


def test_bytes_of_the_networks_size_pass_unchanged() -> None:
    exact = pictures(299, 299)
    assert torch.allclose(prepare(exact), (exact.float() - 128) / 128, atol=1e-6)


def test_fid_refuses_what_is_not_bytes() -> None:
    with pytest.raises(ValueError, match="bytes"):
        prepare(torch.rand(1, 3, 8, 8))


class Layers(nn.Module):
    """Stands in for the layers of Inception: the mean of each channel in 16 fields."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 4)


class Detector(nn.Module):
    """Stands in for the file, whose own way in is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * float("nan")


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pt"
    torch.jit.script(Detector()).save(str(path))
    return path


def clip(frames: np.ndarray) -> Clip:
    return Clip("a", Path("a"), Path("b"), 25.0, len(frames), (frames.shape[2], frames.shape[1]))


def feed(
    measure: FrechetInceptionDistance | FrechetVideoDistance, a: np.ndarray, b: np.ndarray
) -> None:
    measure.begin(clip(a))
    for start in range(0, len(a), 5):
        part = slice(start, start + 5)
        measure.add(Block(start, a[part], b[part]))
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


def test_other_weights_than_inception_are_refused(tmp_path: Path) -> None:
    torch.jit.script(Layers()).save(str(tmp_path / "other.pt"))
    measure = FrechetInceptionDistance(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="is not the Inception of StyleGAN2-ADA"):
        measure.features(np.zeros((1, 8, 8, 3), np.uint8))


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
        seen = gaussian_of(store.clips) if len(windows) > 1 else None
        assert store.counts == [len(windows)]
        if seen is not None:
            red = seen.mean[7:23]
            assert red == pytest.approx(np.mean(windows) + np.arange(16) * stride + offset)
    assert measure.protocol()["stride"] == stride


def test_clips_that_are_too_short_are_named(i3d_file: Path) -> None:
    measure = FrechetVideoDistance(i3d_file)
    frames = np.zeros((15, 4, 4, 3), np.uint8)
    measure.begin(clip(frames))
    measure.add(Block(0, frames, frames))
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
