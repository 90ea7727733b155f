"""Reading portraits: formats, orientation, colours, sizes, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from keyface_cli.errors import PortraitError, VideoError
from keyface_cli.media.crop import WHITE
from keyface_cli.media.ffmpeg import find_ffmpeg
from keyface_cli.media.portrait import parse_colour, read_picture

RED, BLUE = (220, 30, 40), (20, 60, 210)


def halves(width: int = 64, height: int = 64) -> Image.Image:
    """Return a picture with a red upper and a blue lower half."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (0, height // 2, width, height))
    return picture


def assert_halves(picture: Image.Image, tolerance: int = 0) -> None:
    pixels = np.asarray(picture, dtype=int)
    height = len(pixels)
    for rows, colour in ((slice(0, height // 2 - 4), RED), (slice(height // 2 + 4, height), BLUE)):
        assert np.abs(pixels[rows] - colour).max() <= tolerance


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.gif", "a.jpg", "a.webp"])
def test_any_format(tmp_path: Path, name: str) -> None:
    halves().save(tmp_path / name, quality=95)
    exact = name in ("a.png", "a.bmp", "a.tiff", "a.gif")
    assert_halves(read_picture(tmp_path / name), tolerance=0 if exact else 8)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
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
    assert_halves(read_picture(tmp_path / "a.jpg"), tolerance=8)


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
    pixels = np.asarray(read_picture(tmp_path / f"a.{suffix}"), dtype=int)
    assert np.abs(pixels - (255 if mode == "1" else 204)).max() <= 2


def test_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # the same, but red is green and green is red
    swapped = plain.replace(b"rXYZ", b"****").replace(b"gXYZ", b"rXYZ").replace(b"****", b"gXYZ")
    for profile, colour in ((plain, RED), (swapped, (30, 220, 40)), (b"no profile", RED)):
        Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png", icc_profile=profile)
        pixels = np.asarray(read_picture(tmp_path / "a.png"), int)
        assert np.abs(pixels - colour).max() <= 3


def test_transparency_shows_the_edge_or_the_colour_asked_for(tmp_path: Path) -> None:
    picture = halves().convert("RGBA")
    picture.paste((0, 0, 0, 0), (16, 8, 48, 28))
    picture.save(tmp_path / "a.png")
    assert_halves(read_picture(tmp_path / "a.png", RED))
    shown = np.asarray(read_picture(tmp_path / "a.png"))
    assert tuple(shown[12, 32]) in (RED, BLUE, tuple((np.add(RED, BLUE) / 2).astype(int)))
    assert tuple(np.asarray(read_picture(tmp_path / "a.png", (1, 2, 3)))[12, 32]) == (1, 2, 3)
    cut_out = Image.new("RGBA", (64, 64))
    cut_out.paste(RED, (20, 20, 40, 40))
    cut_out.save(tmp_path / "b.png")
    assert tuple(np.asarray(read_picture(tmp_path / "b.png"))[0, 0]) == WHITE
    picture.convert("P").save(tmp_path / "p.gif", transparency=0)
    assert read_picture(tmp_path / "p.gif").mode == "RGB"


def test_colours_are_written_as_the_web_does() -> None:
    assert parse_colour("white") == WHITE
    assert parse_colour(" #102030 ") == (16, 32, 48)
    with pytest.raises(PortraitError, match="no such colour: blurple"):
        parse_colour("blurple")


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    assert_halves(read_picture(tmp_path / "a.gif"))


def make_video(path: Path, *options: str) -> Path:
    """Write a second of video that turns from red to blue in its middle."""
    frames = np.zeros((25, 64, 80, 3), np.uint8)
    frames[:13], frames[13:] = RED, BLUE
    command = [find_ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", "80x64", "-r", "25", "-i", "pipe:0", *options, str(path)]
    subprocess.run(command, check=True, input=frames.tobytes())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm"])
def test_a_frame_of_a_video(tmp_path: Path, name: str) -> None:
    path = make_video(tmp_path / name)
    for time_s, colour in ((None, RED), (0.4, RED), (0.6, BLUE)):
        picture = read_picture(path, time_s=time_s)
        assert picture.size == (80, 64)
        assert np.abs(np.asarray(picture, int).mean(axis=(0, 1)) - colour).max() < 12
    with pytest.raises(PortraitError, match=r"a portrait time of 3 s is beyond its end"):
        read_picture(path, time_s=3.0)


def test_video_without_a_name_that_says_so(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4").rename(tmp_path / "a")
    assert read_picture(path).size == (80, 64)


def test_video_needs_ffmpeg_and_a_picture_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves().save(tmp_path / "a.png")
    video = make_video(tmp_path / "a.mp4")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "absent"))
    assert_halves(read_picture(tmp_path / "a.png"))
    with pytest.raises(VideoError, match="ffmpeg was not found"):
        read_picture(video)


def test_time_of_a_picture_is_said_to_do_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halves().save(tmp_path / "a.png")
    assert_halves(read_picture(tmp_path / "a.png", time_s=1.0))
    assert "--portrait-time does nothing" in caplog.text


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "speech.wav").write_text("RIFF")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    (tmp_path / "text.mp4").write_text("hello")
    Image.effect_noise((64, 64), 90).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:2000])
    (tmp_path / "cut.mp4").write_bytes(make_video(tmp_path / "a.mp4").read_bytes()[:400])
    command = [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([*command, str(tmp_path / "sound.mp4")], check=True)
    Image.new("1", (20_000, 5_001)).save(tmp_path / "large.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name, message in {
        "missing.png": "no such portrait file",
        "": "is a folder",
        "empty.png": "the portrait file is empty",
        "text.png": "not a picture that can be read",
        "speech.wav": "not a picture that can be read",
        "phone.heic": "picture",
        "text.mp4": "not a video that can be read",
        "cut.mp4": "not a video that can be read",
        "sound.mp4": "holds no picture",
        "cut.png": "damaged picture: ",
        "large.png": "more than 100 million pixels",
        "huge.png": "more than 100 million pixels",
    }.items():
        with pytest.raises(PortraitError, match=message) as caught:
            read_picture(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(PortraitError) as caught:
        read_picture(tmp_path / "speech.wav")
    assert caught.value.hint == "the portrait comes first, then the audio"


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00broken", quality=95)
    assert_halves(read_picture(tmp_path / "a.jpg"), tolerance=8)
