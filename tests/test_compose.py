"""The picture of the result: sizes, the face back in its picture, and the rate of frames."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from keyface_cli.errors import VideoError
from keyface_cli.media.crop import Crop, cut
from keyface_cli.media.framing import parse_size
from keyface_cli.output.compose import PasteBack, Resize, output_size
from keyface_cli.output.framerate import FrameRate

R = 256


def photo(width: int, height: int) -> Image.Image:
    """Return a smooth, colourful picture of no particular thing."""
    noise = np.random.default_rng(3).integers(0, 256, (height // 40, width // 40, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def square_of(picture: Image.Image, crop: Crop) -> NDArray[np.uint8]:
    return np.asarray(cut(picture, crop, R))


@pytest.mark.parametrize("angle", [0.0, 17.0])
def test_outside_the_square_is_the_picture_itself(angle: float) -> None:
    picture, crop = photo(3000, 2000), Crop(1700, 800, 900, angle)
    paste = PasteBack(picture, crop, R, None, even=True)
    assert paste.size == (3000, 2000)
    frame = np.random.default_rng(0).integers(0, 256, (R, R, 3), np.uint8)  # nothing like it
    result, original = paste(frame), np.asarray(picture)
    changed = (result != original).any(axis=-1)
    rows, columns = np.nonzero(changed)
    turn = np.deg2rad(angle)
    x, y = columns + 0.5 - crop.x, rows + 0.5 - crop.y
    across = np.cos(turn) * x + np.sin(turn) * y
    down = np.cos(turn) * y - np.sin(turn) * x
    assert max(np.abs(across).max(), np.abs(down).max()) <= crop.side / 2
    assert changed[800, 1700]
    assert changed.mean() > 0.8 * 900**2 / (3000 * 2000)


@pytest.mark.parametrize("angle", [0.0, 17.0])
def test_the_square_itself_goes_back_without_a_trace(angle: float) -> None:
    picture, crop = photo(900, 700), Crop(420, 330, R, angle)
    paste = PasteBack(picture, crop, R, None, even=True)
    result = paste(square_of(picture, crop)).astype(int)
    assert np.abs(result - np.asarray(picture)).max() <= 3
    assert np.abs(result - np.asarray(picture)).mean() < 0.2


def test_colours_are_matched_and_do_not_drift() -> None:
    """A model that returns its identity frame, a little off in colour, more so as time goes by."""
    picture, crop = photo(600, 500), Crop(300, 250, R)
    paste = PasteBack(picture, crop, R, None, even=True)
    same = square_of(picture, crop).astype(float)
    inside = np.s_[250 - 90 : 250 + 90, 300 - 90 : 300 + 90]
    original = np.asarray(picture)[inside].mean(axis=(0, 1))
    means = []
    for minute in range(5):
        tinted = np.clip(same + np.array([6, -4, 3]) * minute / 2, 0, 255)
        mouth = tinted.copy()
        mouth[150:200, 100:156] = 0  # and what moves is not taken for a change of colour
        for frame in (tinted, mouth):
            result = paste(frame.astype(np.uint8))
            seam = np.abs(result.astype(int) - np.asarray(picture))[250 - 127 : 250 + 127, 175:180]
            assert seam.mean() < 1.5
        means.append(paste(tinted.astype(np.uint8))[inside].mean(axis=(0, 1)))
    assert np.abs(np.array(means) - original).max() < 1.0


@pytest.mark.parametrize("side", [60, 128, 500])
def test_square_of_any_size_is_put_back_in_its_place(side: int) -> None:
    picture = Image.new("RGB", (600, 600), (100, 100, 100))
    crop = Crop(310, 280, side)
    frame = np.full((R, R, 3), 100, np.uint8)
    frame[R // 2 :, R // 2 :] = 220  # a corner in the very middle
    result = PasteBack(picture, crop, R, None, even=True)(frame)
    bright = result[..., 0] > 160
    rows, columns = np.nonzero(bright)
    assert rows.min() == pytest.approx(280, abs=1.5)
    assert columns.min() == pytest.approx(310, abs=1.5)


def test_a_square_that_reaches_past_the_picture() -> None:
    picture = photo(400, 200)
    paste = PasteBack(picture, Crop(200, 100, 400), R, None, even=True)
    assert paste(square_of(picture, Crop(200, 100, 400))).shape == (200, 400, 3)


@pytest.mark.parametrize(
    ("picture", "box", "even", "size"),
    [
        ((3000, 2000), None, True, (3000, 2000)),
        ((3001, 2003), None, True, (3000, 2002)),
        ((3001, 2003), None, False, (3001, 2003)),
        ((8000, 4000), None, True, (3840, 1920)),
        ((4000, 4000), None, True, (2880, 2880)),
        ((3000, 2000), (1280, 1280), True, (1280, 852)),
        ((512, 512), (1024, 768), True, (768, 768)),
        ((16, 16), None, True, (16, 16)),
    ],
)
def test_sizes_keep_the_shape(
    picture: tuple[int, int], box: tuple[int, int] | None, even: bool, size: tuple[int, int]
) -> None:
    assert output_size(picture, box, even)[:2] == size


@pytest.mark.parametrize("picture", [(1, 1), (15, 300), (20_000, 10), (20_000, 40)])
def test_sizes_that_no_video_has(picture: tuple[int, int]) -> None:
    with pytest.raises(VideoError, match="would be a video of"):
        output_size(picture, None, even=True)


def test_sizes_are_read() -> None:
    assert parse_size("720") == (720, 720)
    assert parse_size("1280X720") == (1280, 720)
    for bad in ("", "big", "0", "5000", "8", "12x", "1280x9000", "-5"):
        with pytest.raises(VideoError, match="size"):
            parse_size(bad)


def test_resize_is_nothing_where_the_size_is_right() -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    assert Resize((64, 64))(frame) is frame
    assert Resize((128, 128))(frame).shape == (128, 128, 3)


def moving(count: int) -> NDArray[np.uint8]:
    """Frames of a soft bright bar that moves two pixels a frame."""
    frames = []
    for index in range(count):
        picture = Image.new("RGB", (96, 64), (40, 40, 40))
        picture.paste((220, 220, 220), (10 + 2 * index, 0, 26 + 2 * index, 64))
        frames.append(np.asarray(picture.filter(ImageFilter.GaussianBlur(2))))
    return np.stack(frames)


def centre(frame: NDArray[np.uint8]) -> float:
    weight = frame[32, :, 0].astype(float) - 40
    return float((weight * np.arange(96)).sum() / weight.sum())


@pytest.mark.parametrize("fps", [24, 25, 30, 50, 60])
@pytest.mark.parametrize("count", [1, 2, 13, 27])
def test_rate_keeps_the_duration(fps: int, count: int) -> None:
    rate = FrameRate(fps, count)
    frames = moving(count)
    made = list(rate.convert(0, count, frames))
    assert len(made) == rate.count
    assert abs(len(made) / fps - count / 25) <= 0.5 / fps or len(made) == 1
    if fps == 25:
        assert np.array_equal(made, frames)


@pytest.mark.parametrize("fps", [24, 30, 50, 60])
def test_frames_between_move_on_evenly(fps: int) -> None:
    rate, frames = FrameRate(fps, 27), moving(27)
    made = list(rate.convert(0, 27, frames))
    for index, frame in enumerate(made):
        position = min(25 * index / fps, 26)
        assert centre(frame) == pytest.approx(17.5 + 2 * position, abs=0.5)
        # the bar is as bright and narrow as before: moved, not faded
        assert frame[32, :, 0].max() > 200


@pytest.mark.parametrize("fps", [24, 25, 30, 50, 60])
@pytest.mark.parametrize("piece", [1, 5, 13])
def test_pieces_of_a_video_are_those_of_the_whole(fps: int, piece: int) -> None:
    rate, frames = FrameRate(fps, 27), moving(27)
    whole = list(rate.convert(0, 27, frames))
    parts: list[NDArray[np.uint8]] = []
    for first in range(0, 27, piece):
        stop = min(first + piece, 27)
        parts += rate.convert(first, stop, frames[max(0, first - rate.looks_back) : stop])
    assert np.array_equal(parts, whole)
