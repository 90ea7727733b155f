"""Portraits without colour: told from others, and never given any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from keyface_cli import KeyFacePipeline
from keyface_cli.stages.monochrome import LUMA, Tint

EXAMPLES = Path(__file__).parent.parent / "examples"
SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])


def photograph() -> Image.Image:
    return Image.open(EXAMPLES / "portrait.jpg").convert("RGB").resize((256, 256))


def sepia(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(ImageOps.grayscale(picture).convert("RGB"), float)
    return Image.fromarray((pixels @ SEPIA.T).clip(0, 255).astype(np.uint8))


def tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1) / 127.5 - 1).float()


@pytest.mark.parametrize("name", ["portrait.jpg", "avatar.png"])
def test_portraits_in_colour_have_no_tint(name: str) -> None:
    picture = Image.open(EXAMPLES / name).convert("RGB").resize((256, 256))
    assert Tint.of(tensor(picture)) is None
    assert Tint.of(tensor(ImageOps.autocontrast(picture))) is None


def test_red_lips_alone_are_colour() -> None:
    grey = ImageOps.grayscale(photograph()).convert("RGB")
    grey.paste((150, 60, 60), (115, 175, 145, 185))
    assert Tint.of(tensor(grey)) is None


def test_grey_stays_grey_and_as_bright() -> None:
    tint = Tint.of(tensor(ImageOps.grayscale(photograph()).convert("RGB")))
    assert tint is not None
    given = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = tint(given)
    assert made.shape == given.shape
    assert (made.amax(1) - made.amin(1)).max() < 0.003
    luma = torch.einsum("tchw,c->thw", given, torch.tensor(LUMA))
    assert (made.mean(1) - luma).abs().max() < 0.01


def test_sepia_stays_sepia_also_as_jpeg(tmp_path: Path) -> None:
    sepia(Image.open(EXAMPLES / "portrait.jpg")).save(tmp_path / "old.jpg", quality=90)
    stored = tensor(Image.open(tmp_path / "old.jpg").resize((256, 256), Image.Resampling.LANCZOS))
    tint = Tint.of(stored)
    assert tint is not None
    again = tint((stored[None] + 1) / 2)[0]
    assert (again - (stored + 1) / 2).abs().mean() < 0.01
    dark = tint(torch.full((1, 3, 1, 1), 0.25))[0, :, 0, 0]
    assert dark[0] > dark[1] > dark[2]  # brown


def test_frames_of_a_grey_portrait_are_grey(lively_checkpoint: Path) -> None:
    pipeline = KeyFacePipeline.load(lively_checkpoint, "cpu", "float32")
    sound = np.zeros(8 * 640, np.float32)

    def made(picture: Image.Image, size: int | None = None) -> NDArray[np.int64]:
        options = {"crop": "none", "steps": 1, "autoguidance": 1.0, "size": size}
        return np.concatenate(list(pipeline(picture, sound, **options))).astype(int)

    grey = ImageOps.grayscale(photograph()).convert("RGB")
    for size in (None, 96):
        assert np.ptp(made(grey, size), axis=-1).max() <= 1
    assert np.ptp(made(photograph()), axis=-1).max() > 50  # which these networks would paint
