"""Read a portrait, whatever holds it, as one upright, opaque 8-bit sRGB picture."""

from __future__ import annotations

import io
import logging
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from keyface_cli.errors import PortraitError
from keyface_cli.files import check_given
from keyface_cli.media.crop import Colour, edge_colour
from keyface_cli.media.ffmpeg import file_url, find_ffmpeg, last_words

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000  # to decode: 0.4 GB with alpha
_SOUNDS = {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"}
_VIDEOS = {".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi"}
_HEIC = {".heic", ".heif", ".hif"}
_FRAME_TIMEOUT_S = 60.0  # for one frame of a video


def read_picture(
    path: Path, background: Colour | None = None, time_s: float | None = None
) -> Image.Image:
    """Read a picture, or a frame of a video, as upright, opaque 8-bit sRGB.

    EXIF rotation is followed, an embedded colour profile is converted, 16-bit and float grey are
    scaled.

    Args:
        path: any picture that Pillow can read (of an animation the first frame), or a video that
            ffmpeg can.
        background: RGB in 0..255 behind what is transparent; None is the colour of the picture's
            own edge.
        time_s: which frame of a video; None is the first.

    Raises:
        PortraitError: the file is missing, empty, too large, damaged or no picture.
        VideoError: it is a video and there is no ffmpeg.
    """
    check_given(path, "a picture", "portrait file", PortraitError)
    if _is_video(path):
        return _to_rgb(_video_frame(path, time_s or 0.0), background)
    if time_s is not None:
        logger.warning("%s: is no video, so --portrait-time does nothing", path)
    with _pillow_errors(path), Image.open(path) as image:
        return _decode(path, image, background)


def as_picture(
    given: str | PathLike[str] | Image.Image | NDArray[np.uint8],
    background: Colour | None = None,
    time_s: float | None = None,
) -> Image.Image:
    """Return a portrait as an RGB picture: a file is read, what is transparent gets a colour.

    Args:
        given: a file, a picture, or an array (H, W, 3) of RGB in 0..255.
        background: as for `read_picture`.
        time_s: as for `read_picture`.

    Raises:
        PortraitError: the file cannot be used, or the array is of another shape or type.
        VideoError: it is a video and there is no ffmpeg.
    """
    if isinstance(given, str | PathLike):
        return read_picture(Path(given), background, time_s)
    if isinstance(given, Image.Image):
        return _to_rgb(_upright(given), background)
    if not isinstance(given, np.ndarray):
        raise PortraitError(f"no portrait: {given!r}", "give a file, a picture or an array")
    if given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8:
        raise PortraitError(
            f"the portrait is an array {given.shape} of {given.dtype}",
            "give one of (H, W, 3) of uint8, RGB",
        )
    return Image.fromarray(given)


def parse_colour(text: str) -> Colour:
    """Return the RGB of a colour as the web writes it: a name, #rrggbb, rgb(r, g, b).

    Raises:
        PortraitError: it is none.
    """
    try:
        return ImageColor.getrgb(text.strip())[:3]
    except ValueError:
        raise PortraitError(f"no such colour: {text}", "write white, or #f0e0d0") from None


@contextmanager
def _pillow_errors(path: Path) -> Iterator[None]:
    """Turn what Pillow raises, which is almost any type on damaged files, into one line."""
    if path.suffix.lower() in _HEIC:
        _learn_heic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            yield
    except PortraitError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except UnidentifiedImageError:
        raise _not_a_picture(path) from None
    except Exception as error:
        raise PortraitError(f"{path}: damaged picture: {error or type(error).__name__}") from error


def _learn_heic() -> None:
    """Let Pillow read HEIC where the package for it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _not_a_picture(path: Path) -> PortraitError:
    suffix = path.suffix.lower()
    hint = "PNG, JPEG, WebP, BMP, TIFF and GIF work, and videos"
    if suffix in _SOUNDS:
        hint = "the portrait comes first, then the audio"
    elif suffix in _HEIC:
        hint = "save it as JPEG, or install pillow-heif, which reads HEIC"
    return PortraitError(f"{path}: not a picture that can be read", hint)


def _too_large(path: Path) -> PortraitError:
    return PortraitError(
        f"{path}: more than {MAX_PIXELS // 1_000_000} million pixels", "make a smaller copy of it"
    )


def _is_video(path: Path) -> bool:
    """Whether a file's name says so, or its first bytes do and its name says nothing."""
    suffix = path.suffix.lower()
    if suffix:
        return suffix in _VIDEOS
    with path.open("rb") as file:
        head = file.read(16)
    return head[4:8] == b"ftyp" or head.startswith(b"\x1a\x45\xdf\xa3")


def _video_frame(path: Path, time_s: float) -> Image.Image:
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-protocol_whitelist", "file,pipe"]
    command += ["-max_pixels", str(MAX_PIXELS), "-ss", f"{time_s:.6f}", "-i", file_url(path)]
    command += ["-map", "0:v:0", "-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "pipe:1"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FRAME_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise PortraitError(f"{path}: its frame could not be decoded in a minute") from None
    except OSError as error:
        raise PortraitError(f"{path}: ffmpeg cannot be run: {error.strerror or error}") from error
    said = done.stderr.decode("utf-8", "replace")
    if done.stdout:
        with _pillow_errors(path), Image.open(io.BytesIO(done.stdout)) as image:
            image.load()
            return image
    if "matches no streams" in said:
        raise PortraitError(f"{path}: holds no picture")
    if done.returncode == 0:
        raise PortraitError(f"{path}: a portrait time of {time_s:g} s is beyond its end")
    raise PortraitError(f"{path}: not a video that can be read: {last_words(said)}")


def _decode(path: Path, image: Image.Image, background: Colour | None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path)
    image.load()
    return _to_rgb(_upright(image), background)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the picture itself is good
        logger.debug("EXIF data ignored: %s", error)
        return image


def _to_rgb(image: Image.Image, background: Colour | None) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = _to_srgb(image, profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    opaque = Image.new("RGB", image.size, background or edge_colour(image, alpha))
    opaque.paste(image, mask=alpha)
    return opaque


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            logger.debug("colour profile ignored: %s", error)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float grey: Pillow's own conversion would cut off at 255."""
    values: NDArray[np.float32] = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = float(values.max(initial=0.0))
    white = next((top for top in (1.0, 255.0, 65535.0) if peak <= top), peak)
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "I" and white == 1.0:
        white = 255.0
    return Image.fromarray(np.clip(values / white * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8))
