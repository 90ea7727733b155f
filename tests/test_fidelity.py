"""PSNR, SSIM and LPIPS against torchmetrics, and what usually goes wrong with their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("torchmetrics", reason="pip install 'keyface[eval]'")

from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from keyface_cli.checkpoints import lpips
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.measures import Block, Clip, Measure
from keyface_cli.evaluation.metrics.fidelity import Fidelity, PerceptualDistance

CLASSIFIER = {"classifier.6.weight": torch.zeros(1000, 4)}  # of the public files, not needed


def clip(side: int = 64) -> Clip:
    return Clip("a", Path("a"), Path("b"), 25.0, 3, (side, side))


def frames(seed: int, side: int = 64) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (3, side // 8, side // 8, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def score(measure: Measure, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    measure.begin(clip(a.shape[1]))
    measure.add(Block(0, a[:2], b[:2]))
    measure.add(Block(2, a[2:], b[2:]))
    return dict(measure.end().values)


def test_psnr_and_ssim_are_those_of_torchmetrics() -> None:
    a, b = frames(1), frames(2)
    ours = score(Fidelity(), a, b)
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() / 255 for v in (a, b))
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0)(x, y)
    assert ours["ssim"] == pytest.approx(float(ssim), abs=1e-6)
    psnr = [
        float(PeakSignalNoiseRatio(data_range=1.0)(p[None], q[None]))
        for p, q in zip(x, y, strict=True)
    ]
    assert ours["psnr"] == pytest.approx(np.mean(psnr), abs=1e-4)


def test_equal_clips() -> None:
    assert score(Fidelity(), frames(1), frames(1)) == {
        "psnr": 100.0,
        "ssim": pytest.approx(1, abs=1e-5),
    }


@pytest.fixture(params=["alex", "vgg"])
def trunk(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def trunk_file(trunk: lpips.Trunk, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    features = lpips.Lpips(trunk).features
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    tensors = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    save_file({**tensors, **CLASSIFIER}, tmp_path / f"{trunk}.safetensors")
    return tmp_path / f"{trunk}.safetensors"


@pytest.fixture
def theirs(trunk: lpips.Trunk, trunk_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchmetrics' network, over the trunk of our file in torchvision's place."""
    own = lpips.load_lpips(trunk, trunk_file)
    layers = [*own.features, nn.MaxPool2d(2)]

    from torchmetrics.functional.image import lpips as reference

    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: layers)
    return reference._LPIPS(pretrained=True, net=trunk, pnet_rand=False).eval()


def test_lpips_equals_torchmetrics(trunk: lpips.Trunk, trunk_file: Path, theirs: Any) -> None:
    a, b = frames(3), frames(4)
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (a, b))
    with torch.no_grad():
        expected: Tensor = theirs(x, y).flatten()
        ours = lpips.load_lpips(trunk, trunk_file)(x, y)
    assert expected.min() > 1e-3
    assert ours.numpy() == pytest.approx(expected.numpy(), abs=1e-5, rel=1e-5)
    result = score(PerceptualDistance(trunk, trunk_file), a, b)
    assert result == {f"lpips_{trunk}": pytest.approx(float(expected.mean()), abs=1e-5)}
    with torch.no_grad():  # [0, 1] fed by mistake is another number
        assert abs(float(theirs((x + 1) / 2, (y + 1) / 2).mean()) - result[f"lpips_{trunk}"]) > 1e-3


def test_lpips_says_what_it_is(trunk: lpips.Trunk, trunk_file: Path) -> None:
    measure = PerceptualDistance(trunk, trunk_file)
    assert measure.protocol()["trunk"] == trunk
    assert measure.protocol()["version"] == "0.1"
    measure.begin(clip(16))
    measure.add(Block(0, frames(1, 16), frames(1, 16)))
    assert measure.end().reasons == {f"lpips_{trunk}": "smaller than 32 pixels"}


def test_another_trunk_is_refused(trunk: lpips.Trunk, trunk_file: Path) -> None:
    other: lpips.Trunk = "vgg" if trunk == "alex" else "alex"
    with pytest.raises(WeightsError, match=f"is not {other} of ImageNet: "):
        lpips.load_lpips(other, trunk_file)
