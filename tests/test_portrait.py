"""Reading portraits: orientation, colour modes, sizes, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyface_cli.errors import PortraitError
from keyface_cli.portrait import crop_square, load_portrait, read_picture

RED, BLUE = (220, 30, 40), (20, 60, 210)


def halves(width: int = 64, height: int = 64) -> Image.Image:
    """Return a picture with a red upper and a blue lower half."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (0, height // 2, width, height))
    return picture


def assert_halves(pixels: np.ndarray, tolerance: float = 0.03) -> None:
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.float32
    for rows, colour in ((slice(0, 12), RED), (slice(20, 32), BLUE)):
        expected = np.array(colour)[:, None, None] / 127.5 - 1
        assert np.abs(pixels[:, rows] - expected).max() < tolerance


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.gif"])
def test_any_format(tmp_path: Path, name: str) -> None:
    halves().save(tmp_path / name, quality=95)
    assert_halves(load_portrait(tmp_path / name, 32), tolerance=0.1)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 300), (31, 33), (8, 8), (2000, 3)])
def test_picture_is_cropped_and_never_squashed(size: tuple[int, int]) -> None:
    width, height = size
    square = crop_square(Image.linear_gradient("L").resize(size))
    assert square.size == (min(size),) * 2
    disc = Image.new("RGB", (3 * width, 3 * height))
    disc.paste((255, 255, 255), (width, height, 2 * width, 2 * height))
    assert crop_square(disc).getpixel((min(size) * 3 // 2,) * 2) == (255, 255, 255)


def test_range_and_resize_are_exact(tmp_path: Path) -> None:
    Image.new("RGB", (500, 400), (255, 0, 51)).save(tmp_path / "a.png")
    pixels = load_portrait(tmp_path / "a.png", 32)
    np.testing.assert_allclose(pixels[:, 5, 5], [1.0, -1.0, -0.6], atol=1e-6)


def test_fine_pattern_is_antialiased(tmp_path: Path) -> None:
    checks = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a.png")
    assert np.abs(load_portrait(tmp_path / "a.png", 32)).max() < 0.05


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, None),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_rotation_is_followed(
    tmp_path: Path, orientation: int, turn: Image.Transpose | None
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = halves(80, 64)
    stored = picture if turn is None else picture.transpose(turn)
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_picture(tmp_path / "a.jpg").size == (80, 64)
    assert_halves(load_portrait(tmp_path / "a.jpg", 32), tolerance=0.1)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "L", "LA", "1", "I;16", "I", "F"])
def test_any_colour_mode(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (64, 64), 204)
    picture = grey.convert("RGB").convert("CMYK") if mode == "CMYK" else grey
    if mode in ("I;16", "I", "F"):
        scale, kind = {"I;16": (257, np.uint16), "I": (257, np.int32), "F": (1 / 255, np.float32)}[
            mode
        ]
        picture = Image.fromarray((np.asarray(grey) * np.float64(scale)).astype(kind))
        assert picture.mode == mode
    elif mode != "CMYK":
        picture = Image.new("L", (64, 64), 255 if mode == "1" else 204).convert(mode)
    suffix = "tiff" if mode in ("CMYK", "I", "F") else "png"
    picture.save(tmp_path / f"a.{suffix}")
    pixels = load_portrait(tmp_path / f"a.{suffix}", 32)
    np.testing.assert_allclose(pixels, 1.0 if mode == "1" else 0.6, atol=0.02)


def test_transparency_shows_white(tmp_path: Path) -> None:
    picture = halves().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 64, 32))
    picture.save(tmp_path / "a.png")
    pixels = load_portrait(tmp_path / "a.png", 32)
    np.testing.assert_array_equal(pixels[:, :12], 1.0)
    picture.convert("P").save(tmp_path / "p.gif", transparency=0)
    assert load_portrait(tmp_path / "p.gif", 32).shape == (3, 32, 32)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    assert_halves(load_portrait(tmp_path / "a.gif", 32))


def test_large_jpeg_is_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    halves(2048, 1536).save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").size == (2048, 1536)
    assert read_picture(tmp_path / "a.jpg", 32).size == (256, 192)
    assert_halves(load_portrait(tmp_path / "a.jpg", 32), tolerance=0.1)


def test_tiny_picture_is_enlarged_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert load_portrait(tmp_path / "a.png", 32).shape == (3, 32, 32)
    assert "only 1 pixels across" in caplog.text


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "speech.wav").write_text("RIFF")
    Image.effect_noise((64, 64), 90).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    Image.new("1", (20_000, 5_001)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name, message in {
        "missing.png": "no such portrait file",
        "": "is a folder",
        "empty.png": "the portrait file is empty",
        "text.png": "not a picture that can be read",
        "speech.wav": "not a picture that can be read",
        "cut.png": "damaged picture: ",
        "large.png": "more than 100 million pixels",
        "huge.png": "more than 100 million pixels",
    }.items():
        with pytest.raises(PortraitError, match=message) as caught:
            load_portrait(tmp_path / name, 32)
        assert str(caught.value).startswith(str(tmp_path / name))
    with pytest.raises(PortraitError) as caught:
        load_portrait(tmp_path / "speech.wav", 32)
    assert caught.value.hint == "the portrait comes first, then the audio"


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00broken", quality=95)
    assert_halves(load_portrait(tmp_path / "a.jpg", 32), tolerance=0.1)
