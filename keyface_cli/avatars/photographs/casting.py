"""Puppets drawn at random: one, two or three people's photographs become a new person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.avatars.photographs import looks, mesh, shapes
from keyface_cli.avatars.photographs.eyeballs import uncover
from keyface_cli.avatars.photographs.mesh import Points
from keyface_cli.avatars.photographs.people import SIZE, Person, read_people
from keyface_cli.avatars.photographs.puppet import Glasses, Puppet, warp
from keyface_cli.errors import KeyFaceError

# how the model's pictures are framed: eyes to mouth, and the middle between them, of the side
FACE_SIZE, FACE_MIDDLE = 0.262, 0.558
HELD_OUT = tuple(f"neutral-{number}" for number in range(121, 131))
"""People of the London set who are for measuring only, and averaged into nobody."""
UNUSED = "composite-"  # averages that somebody else made, perhaps of people who are held out


@dataclass(frozen=True)
class Cast:
    """Those who can be drawn.

    Args:
        people: whose photographs.
        triangles: of the mesh of all of them.
        outer: the points around a mean face, (m, 3), and that mean face's landmarks.
        mean: (478, 3).
        smile: the mean smile, (478, 3), for those who do not smile.
    """

    people: list[Person]
    triangles: NDArray[Any]
    outer: Points
    mean: Points
    smile: Points


def read_cast(folder: Path, held_out: bool = False) -> Cast:
    """Read a folder of photographs, see `people`.

    Args:
        folder: of the photographs.
        held_out: only the people who are for measuring; otherwise all others.

    Raises:
        KeyFaceError: the folder is not as it should be, or has nobody of that side.
    """
    everyone = read_people(folder)
    mean = np.mean([person.points for person in everyone], axis=0).astype(np.float32)
    outer = mesh.outer_points(mean, SIZE)
    triangles = mesh.triangulate(np.concatenate([mean, outer]))
    smiles = [person.smile for person in everyone if person.smile is not None]
    smile = np.mean(smiles, axis=0) if smiles else _plain_smile(mean)
    chosen = [
        person
        for person in everyone
        if (person.name in HELD_OUT) == held_out and not person.name.startswith(UNUSED)
    ]
    if not chosen:
        raise KeyFaceError(f"{folder} has nobody who is {'held out' if held_out else 'not'}")
    return Cast(chosen, triangles, outer, mean, smile.astype(np.float32))


def _plain_smile(points: Points) -> Points:
    """Corners out and up, where nobody smiles."""
    S = mesh.eye_distance(points)
    moved = np.zeros_like(points)
    for corner, side in ((61, -1), (291, 1)):
        away = np.linalg.norm(points[:, :2] - points[corner, :2], axis=1) / (0.35 * S)
        near = np.exp(-(away**2))
        moved[:, 0] += side * 0.14 * S * near
        moved[:, 1] -= 0.12 * S * near
    return moved


def draw_puppet(cast: Cast, rng: np.random.Generator, *, plain: bool = False) -> Puppet:
    """Draw a person, and how they look.

    Args:
        cast: whom of.
        rng: the source of chance.
        plain: one person as photographed, framed exactly: nothing else is drawn.
    """
    count = 1 if plain else 1 + int(rng.choice(3, p=[0.4, 0.4, 0.2]))
    chosen = rng.choice(len(cast.people), min(count, len(cast.people)), replace=False)
    someone = [cast.people[i] for i in chosen]
    share = rng.dirichlet(np.full(len(someone), 2.0)) if len(someone) > 1 else np.ones(1)
    share = np.sort(share)[::-1]
    picture, cover, points = _blend(cast, someone, share)
    smiles = [person.smile for person in someone if person.smile is not None]
    if not smiles and not plain:
        others = [person.smile for person in cast.people if person.smile is not None]
        smiles = [others[int(rng.integers(len(others)))]] if others else []
    smile = np.mean(smiles, axis=0) if smiles else cast.smile
    teeth = next((person.teeth for person in someone if person.teeth is not None), None)
    if teeth is None and not plain and rng.random() < 0.6:
        rows = [person.teeth for person in cast.people if person.teeth is not None]
        teeth = rows[int(rng.integers(len(rows)))] if rows else None
    ready = np.clip(picture, 0, 255).astype(np.float32)
    behind, glasses = looks.background(ready, cover), None
    colours = np.eye(3, 4, dtype=np.float32)
    if not plain:
        ready = looks.restyle(ready, cover, points[: mesh.LANDMARKS], rng)
        if rng.random() < 0.6:
            behind = looks.other_background(SIZE, rng)
        before = ready
        ready = looks.light(ready, points, rng)
        seed = int(rng.integers(2**31))
        ready = looks.expose(ready, np.random.default_rng(seed))
        behind = looks.expose(behind, np.random.default_rng(seed))
        colours = _change_of_colours(before, ready, points)
        if rng.random() < 0.2:
            glasses = _draw_glasses(rng)
        points, smile, ready, cover, behind = _lean(points, smile, ready, cover, behind, rng)
    return Puppet(
        picture=ready.astype(np.uint8),
        cover=cover,
        points=mesh.flattened(points),
        triangles=cast.triangles,
        fields=shapes.fields(mesh.flattened(points), smile),
        background=behind.astype(np.uint8),
        eyeballs=uncover(ready.astype(np.uint8), points),
        teeth=teeth,
        crop=_frame(points, rng, plain),
        glasses=glasses,
        colours=colours,
        arch=(float(rng.uniform(0.32, 0.39)), float(rng.uniform(0.27, 0.32))),
    )


def _mesh_of(cast: Cast, person: Person) -> Points:
    """A person's landmarks, and the points around them laid as around the mean face."""
    matrix, _ = cv2.estimateAffinePartial2D(
        np.ascontiguousarray(cast.mean[:, :2]), np.ascontiguousarray(person.points[:, :2])
    )
    flat = cast.outer[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    around = np.concatenate([flat, cast.outer[:, 2:]], 1)
    result: Points = np.concatenate([person.points, around]).astype(np.float32)
    return result


def _blend(
    cast: Cast, someone: Sequence[Person], share: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], Points]:
    """Average faces landmark by landmark; hair and what is around are the first one's."""
    points = [_mesh_of(cast, person) for person in someone]
    first = someone[0].picture().astype(np.float32)
    cover = someone[0].cover().astype(np.float32) / 255
    if len(someone) == 1:
        return first, cover, points[0]
    mean = np.sum([s * p for s, p in zip(share, points, strict=True)], axis=0)
    triangles = np.concatenate([cast.triangles, _lids_and_lips()])
    faces = [
        warp(person.picture(), p, mean, triangles)
        for person, p in zip(someone, points, strict=True)
    ]
    cover = warp(someone[0].cover(), points[0], mean, triangles).astype(np.float32) / 255
    mixed = np.sum([s * f.astype(np.float32) for s, f in zip(share, faces, strict=True)], axis=0)
    oval = mean[list(mesh.OVAL), :2]
    middle = oval.mean(0)
    within: NDArray[Any] = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(within, [(middle + (oval - middle) * 0.86).astype(np.int32)], 1.0)
    within = cv2.GaussianBlur(within, (0, 0), 0.16 * mesh.eye_distance(mean))[..., None]
    own = faces[0].astype(np.float32)
    # the others' light and skin are brought to those of the first
    gain = own[within[..., 0] > 0.5].mean(0) / mixed[within[..., 0] > 0.5].mean(0)
    return own + within * (mixed * gain - own), cover, mean.astype(np.float32)


def _lids_and_lips() -> NDArray[Any]:
    """Triangles that close the mesh's holes, as they lie in a face at rest."""
    closed = []
    for eye in mesh.EYES:
        around = [*eye.upper, *eye.lower[-2:0:-1]]
        closed += [(eye.iris, a, b) for a, b in zip(around, [*around[1:], around[0]], strict=True)]
    for (a, c), (b, d) in zip(
        zip(mesh.UPPER_INNER, mesh.LOWER_INNER, strict=True),
        list(zip(mesh.UPPER_INNER, mesh.LOWER_INNER, strict=True))[1:],
        strict=False,
    ):
        closed += [(a, b, c), (b, c, d)]
    return np.array(closed, np.int32)


def _lean(
    points: Points,
    smile: Points,
    ready: NDArray[Any],
    cover: NDArray[Any],
    behind: NDArray[Any],
    rng: np.random.Generator,
) -> tuple[Points, Points, NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Lean the head in the photograph by a few degrees, as nobody holds it straight."""
    angle = float(np.clip(rng.normal(0, 2.5), -7, 7))
    middle = tuple(map(float, points[list(mesh.OVAL), :2].mean(0)))
    matrix = cv2.getRotationMatrix2D(middle, angle, 1.0)

    def lean(picture: NDArray[Any]) -> NDArray[Any]:
        turned: NDArray[Any] = cv2.warpAffine(
            picture, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        return turned

    moved, smiling = points.copy(), smile.copy()
    moved[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    smiling[:, :2] = smile[:, :2] @ matrix[:, :2].T
    return moved, smiling, lean(ready), lean(cover), behind


def _frame(points: Points, rng: np.random.Generator, plain: bool) -> tuple[float, float, float]:
    """The square that pictures show: the model's framing, a little off as detectors are."""
    eyes = (points[mesh.EYES[0].iris, :2] + points[mesh.EYES[1].iris, :2]) / 2
    mouth = mesh.mouth_centre(points)
    side = float(np.linalg.norm(mouth - eyes)) / FACE_SIZE
    x, y = ((eyes + mouth) / 2).tolist()
    if not plain:
        side *= float(rng.uniform(0.93, 1.10))
        x, y = (
            x + side * float(rng.uniform(-0.02, 0.02)),
            y + side * float(rng.uniform(-0.02, 0.02)),
        )
    return x - side / 2, y - FACE_MIDDLE * side, side


def _change_of_colours(before: NDArray[Any], after: NDArray[Any], points: Points) -> NDArray[Any]:
    """The affine map of colours, (3, 4), that comes nearest to what was done to a face."""
    hull = cv2.convexHull(np.round(points[list(mesh.OVAL), :2]).astype(np.int32))
    face = np.zeros(before.shape[:2], np.uint8)
    cv2.fillPoly(face, [hull], 1)
    rows = before[face > 0][::7]
    # a little of the plain answer keeps what a face's few colours cannot tell
    given = np.concatenate([np.c_[rows, np.ones(len(rows))], np.eye(4) * [300, 300, 300, 30]])
    grey = after[face > 0][::7]
    gain = grey.mean() / rows.mean()
    chroma = np.std(grey - grey.mean(1, keepdims=True)) / np.std(rows - rows.mean(1, keepdims=True))
    plain = gain * (np.full((3, 3), (1 - min(1.0, chroma)) / 3) + np.eye(3) * min(1.0, chroma))
    wanted = np.concatenate([grey, np.r_[plain * 300, np.zeros((1, 3))]])
    found, *_ = np.linalg.lstsq(given, wanted, rcond=None)
    result: NDArray[Any] = found.T.astype(np.float32)
    return result


def _draw_glasses(rng: np.random.Generator) -> Glasses:
    half = (float(rng.uniform(0.33, 0.42)), float(rng.uniform(0.22, 0.34)))
    if rng.random() < 0.3:
        half = (half[0] * 0.9, half[0] * 0.86)
    colour = rng.uniform(8, 70, 3) if rng.random() < 0.8 else rng.uniform(90, 190, 3)
    r, g, b = colour.tolist()
    return Glasses(
        half,
        float(rng.uniform(2.0, 4.5)),
        (r, g, b),
        float(rng.uniform(0.02, 0.055)),
        float(rng.uniform(0, 0.15)),
    )
