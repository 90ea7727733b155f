"""Photographs that move: the mesh, what poses do to it, who is drawn, and pairs of pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from photographs import landmarks, make_photographs

from keyface_cli.avatars import rig
from keyface_cli.avatars.heads import draw_head, motion_of, still
from keyface_cli.avatars.photographs import mesh, shapes
from keyface_cli.avatars.photographs.casting import Cast, draw_puppet, read_cast
from keyface_cli.avatars.photographs.people import read_people
from keyface_cli.avatars.photographs.puppet import Puppet, render
from keyface_cli.avatars.portrait_pairs import FACES, write_pairs
from keyface_cli.config import MOTION
from keyface_cli.errors import KeyFaceError

SIZE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def cast(folder: Path) -> Cast:
    return read_cast(folder)


@pytest.fixture(scope="module")
def puppet(cast: Cast) -> Puppet:
    alone = dataclasses.replace(cast, people=cast.people[:1])
    return draw_puppet(alone, np.random.default_rng(0), plain=True)


def pose(**controls: float) -> NDArray[np.float32]:
    values = np.array(rig.REST, np.float32)
    for name, value in controls.items():
        values[rig.INDEX[name]] = value
    return values


def shown(puppet: Puppet, **controls: float) -> NDArray[np.float32]:
    return render(puppet, pose(**controls)[None], SIZE)[0].astype(np.float32)


def box(puppet: Puppet, *points: int, margin: float = 0.0) -> tuple[slice, slice]:
    """The part of a picture around landmarks at rest."""
    left, top, side = puppet.crop
    x, y = ((puppet.points[list(points), :2] - (left, top)) * SIZE / side).T
    rows = slice(int(y.min() - margin), int(np.ceil(y.max() + margin)) + 1)
    return rows, slice(int(x.min() - margin), int(np.ceil(x.max() + margin)) + 1)


def test_the_mesh_leaves_mouth_and_eyes_open_and_covers_the_rest(puppet: Puppet) -> None:
    points, size = puppet.points[:, :2], puppet.picture.shape[0]
    seen = np.zeros((size, size), np.uint8)
    for triangle in puppet.triangles:
        cv2.fillConvexPoly(seen, np.round(points[triangle]).astype(np.int32), 1)
    assert seen.mean() > 0.99
    for eye in mesh.EYES:
        x, y = (points[list(eye.upper), :] + points[list(eye.lower), :]).mean(0) / 2
        assert not seen[int(y), int(x)]
    upper, lower = {*mesh.UPPER_INNER[1:-1]}, {*mesh.LOWER_INNER[1:-1]}
    assert not any(upper & {*map(int, t)} and lower & {*map(int, t)} for t in puppet.triangles)


def test_at_rest_the_photograph_is_itself(puppet: Puppet) -> None:
    left, top, side = puppet.crop
    matrix = np.array([[SIZE / side, 0, -left * SIZE / side], [0, SIZE / side, -top * SIZE / side]])
    expected = cv2.warpAffine(puppet.picture, matrix, (SIZE, SIZE), flags=cv2.INTER_AREA)
    picture = shown(puppet, lid=0.0)
    face = box(puppet, *mesh.OVAL)
    assert np.abs(picture - expected)[face].mean() < 4


def test_a_jaw_opens_a_dark_mouth_and_moves_no_eye(puppet: Puppet) -> None:
    rest, opened = shown(puppet), shown(puppet, jaw=1.0)
    rows, columns = box(puppet, 13, 14, 82, 312)
    inside = slice(rows.start + 3, rows.stop + 6), columns
    assert opened[inside].mean() < rest[inside].mean() - 20
    eyes = box(puppet, *mesh.EYES[0].upper, *mesh.EYES[1].lower, margin=3)
    assert np.abs(opened - rest)[eyes].max() <= 2


def test_teeth_show_only_where_lips_part(puppet: Puppet) -> None:
    mouth = box(puppet, 61, 291, 0, 17)
    closed, parted = shown(puppet, teeth=1.0), shown(puppet, jaw=0.15, teeth=1.0, width=0.4)
    assert np.abs(closed - shown(puppet))[mouth].mean() < 1.0
    assert parted[mouth].max() > closed[mouth].max()


def test_a_blink_covers_the_eye_with_lid(puppet: Puppet) -> None:
    eye = mesh.EYES[0]
    iris = box(puppet, eye.iris, margin=1)
    opened, closed = shown(puppet), shown(puppet, blink=1.0)
    lid = box(puppet, *eye.above)
    skin = opened[lid].mean((0, 1))
    off = [np.abs(picture[iris].mean((0, 1)) - skin).mean() for picture in (opened, closed)]
    assert off[1] < off[0]
    assert np.abs(closed - opened)[box(puppet, 61, 291, 0, 17)].max() <= 2  # the mouth stays


@pytest.mark.parametrize(("control", "axis"), [("yaw", 0), ("pitch", 1)])
def test_a_turn_moves_the_nose_more_than_the_edge(puppet: Puppet, control: str, axis: int) -> None:
    poses = pose(**{control: 1.0})[None]
    (turn,) = shapes.head_turns(poses)
    n = mesh.LANDMARKS
    middle = puppet.points[list(mesh.OVAL)].mean(0)
    middle[2] += 30
    moved = (puppet.points[:n] - middle) @ turn.T + middle - puppet.points[:n]
    edge = moved[list(mesh.OVAL), axis].mean()
    assert moved[mesh.NOSE_TIP, axis] > edge + 3
    assert np.abs(shown(puppet, **{control: 1.0}) - shown(puppet)).mean() > 1


def test_every_control_but_none_changes_the_picture(puppet: Puppet) -> None:
    rest = shown(puppet)
    lips = {"jaw": 0.3}  # what needs parted lips
    for control in rig.CONTROLS:
        value = control.high if control.high > control.rest else control.low
        base = lips if control.name in ("teeth", "tongue") else {}
        changed = shown(puppet, **base, **{control.name: value})
        before = shown(puppet, **base) if base else rest
        assert np.abs(changed - before).max() > 10, control.name


def test_people_are_read_with_smiles(folder: Path) -> None:
    people = read_people(folder)
    assert [person.name for person in people] == ["neutral-001", "canada-002", "neutral-125"]
    smile = people[0].smile
    assert smile is not None
    assert people[1].smile is None
    assert smile[61, 0] < -4
    assert smile[291, 0] > 4
    assert np.abs(smile[list(mesh.STEADY)]).max() < 1


def test_those_who_are_held_out_are_in_no_training(folder: Path) -> None:
    assert {person.name for person in read_cast(folder).people} == {"neutral-001", "canada-002"}
    held_out = read_cast(folder, held_out=True)
    assert {person.name for person in held_out.people} == {"neutral-125"}


@pytest.mark.parametrize("missing", ["faces.csv", "landmarks.npz", "a.jpg"])
def test_a_folder_that_is_not_whole_is_one_line(tmp_path: Path, missing: str) -> None:
    folder = make_photographs(tmp_path / "faces")
    (folder / missing).unlink()
    with pytest.raises(KeyFaceError, match="photograph"):
        [person.picture() for person in read_people(folder)]


def test_the_same_seed_draws_the_same_person(cast: Cast) -> None:
    poses = np.stack([pose(), pose(jaw=0.5, yaw=0.5)])
    one, same, other = (
        render(draw_puppet(cast, np.random.default_rng(seed)), poses, 64) for seed in (5, 5, 6)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (2, 64, 64, 3)


def test_what_is_still_moves_neither_head_nor_lids() -> None:
    poses = torch.rand(3, len(rig.CONTROLS))
    stilled = still(poses)
    for i, control in enumerate(rig.CONTROLS):
        if control.name in MOTION:
            assert (stilled[:, i] == control.rest).all()
        else:
            assert torch.equal(stilled[:, i], poses[:, i])
    assert motion_of(poses).shape == (3, len(MOTION))
    assert not motion_of(stilled).any()


@pytest.mark.parametrize("drawn", [True, False])
def test_pairs_show_one_head_still_and_moved(tmp_path: Path, cast: Cast, drawn: bool) -> None:
    write_pairs(tmp_path / "pairs", 2, 3, 48, None if drawn else cast)
    arrays = {path.stem: np.load(path) for path in (tmp_path / "pairs").glob("*.npy")}
    assert arrays["portraits"].shape == (2, 48, 48, 3)
    assert arrays["stills"].shape == arrays["targets"].shape == (2, FACES, 48, 48, 3)
    motions = arrays["motions"]
    assert motions.shape == (2, FACES, len(MOTION))
    assert (motions[..., 0] >= 0).all()  # lids close, and never open beyond the portrait's
    unmoved = ~motions.any(-1)
    same = (arrays["stills"] == arrays["targets"]).all((2, 3, 4))
    assert (same[unmoved]).all()
    assert not same[~unmoved].any()


def test_a_drawn_head_draws_what_is_asked(cast: Cast) -> None:
    for kind in (None, cast):
        draw = draw_head(torch.Generator().manual_seed(4), 48, kind)
        pictures = draw(torch.from_numpy(np.stack([pose(), pose(jaw=1.0), pose()])))
        assert pictures.shape == (3, 48, 48, 3)
        assert np.array_equal(pictures[0], pictures[2])
        assert not np.array_equal(pictures[0], pictures[1])


def test_the_landmarks_are_those_of_the_example() -> None:
    points = landmarks()
    assert points.shape == (mesh.LANDMARKS, 3)
    assert points[mesh.NOSE_TIP, 1] < points[13, 1] < points[mesh.CHIN, 1]


def test_pairs_that_are_stopped_leave_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("keyface_cli.avatars.portrait_pairs.draw_head", stop)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path / "pairs", 2, 3, 48)
    assert list(tmp_path.iterdir()) == []
