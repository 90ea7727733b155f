"""Read a portrait as the square picture that the VAE encodes: oriented, opaque, never squashed."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from keyface_cli.errors import PortraitError

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000  # to decode, 0.4 GB with alpha; a large JPEG is decoded at a reduced size
BACKGROUND = (255, 255, 255)  # what shows through a transparent picture
_SOUNDS = {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"}


def load_portrait(path: Path, size: int) -> NDArray[np.float32]:
    """Read a picture, turn it upright and crop its centre to a square.

    Args:
        path: any picture that Pillow can read; of an animation the first frame.
        size: pixels of each side of the result.

    Returns:
        (3, size, size) RGB in [-1, 1].

    Raises:
        PortraitError: the file is missing, empty, too large, damaged or no picture.
    """
    square = crop_square(read_picture(path, size))
    if square.width < size / 2:
        logger.warning(
            "%s: only %d pixels across, the model draws %d: the result will look soft",
            path,
            square.width,
            size,
        )
    resized = square.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1.0)


def read_picture(path: Path, size: int | None = None) -> Image.Image:
    """Read a whole picture as upright, opaque 8-bit RGB.

    Args:
        path: as for `load_portrait`.
        size: pixels of the short side that suffice: a large JPEG is decoded at a reduced size
            of at least twice that. None: the full size.

    Raises:
        PortraitError: as for `load_portrait`.
    """
    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            with Image.open(path) as image:
                return _decode(path, image, size)
    except PortraitError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except UnidentifiedImageError:
        swapped = path.suffix.lower() in _SOUNDS
        raise PortraitError(
            f"{path}: not a picture that can be read",
            "the portrait comes first, then the audio" if swapped else "PNG, JPEG and WebP work",
        ) from None
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        raise PortraitError(f"{path}: damaged picture: {error or type(error).__name__}") from error


def crop_square(image: Image.Image) -> Image.Image:
    """Return the largest square in the middle of a picture."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise PortraitError(f"{path}: is a folder, not a picture")
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise PortraitError(f"{path}: no such portrait file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PortraitError(f"{path}: cannot be read: {reason}") from error
    if size == 0:
        raise PortraitError(f"{path}: the portrait file is empty (0 bytes)")


def _too_large(path: Path) -> PortraitError:
    return PortraitError(
        f"{path}: more than {MAX_PIXELS // 1_000_000} million pixels", "make a smaller copy of it"
    )


def _decode(path: Path, image: Image.Image, size: int | None) -> Image.Image:
    if size is not None:
        image.draft(None, (2 * size, 2 * size))  # a JPEG is then decoded at 1/2, 1/4 or 1/8
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path)
    image.load()
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the picture itself is good
        logger.debug("EXIF data ignored: %s", error)
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, BACKGROUND)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey: Pillow's own conversion would cut off at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    peak = float(values.max(initial=0.0))
    white = next((top for top in (1.0, 255.0, 65535.0) if peak <= top), peak)
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "I" and white == 1.0:
        white = 255.0
    return Image.fromarray(np.clip(values / white * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8))
