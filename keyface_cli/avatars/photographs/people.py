"""Photographs of people with their landmarks, and new people made of them.

A folder holds `faces.csv` (file, set, person, mouth_gap_in_eye_distances), `landmarks.npz` (names,
and points (F, 478, 3) in pixels, MediaPipe's face mesh with irises) and the square pictures. A
person is a picture with closed lips; where the same person is there smiling too, that says how
their face moves in a smile, and gives teeth where they show.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keyface_cli.avatars.photographs import mesh
from keyface_cli.avatars.photographs.mesh import Points
from keyface_cli.avatars.photographs.puppet import Teeth
from keyface_cli.errors import KeyFaceError

CLOSED = 0.035  # lips are closed up to this gap, in eye distances
TEETH_SHOW = 0.06  # a smile that is parted this far shows teeth
SIZE = 512


@dataclass
class Person:
    """One person of a folder of photographs.

    Args:
        name: set and number.
        path: of the picture with closed lips.
        points: its landmarks, (478, 3) in pixels of a picture of `SIZE`.
        smile: how they move in a smile, (478, 3), or None where no smile is there.
        teeth: of the smile, or None.
    """

    name: str
    path: Path
    points: Points
    smile: Points | None = None
    teeth: Teeth | None = None
    _cache: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def picture(self) -> NDArray[Any]:
        """The photograph, (SIZE, SIZE, 3) RGB."""
        if "picture" not in self._cache:
            self._cache["picture"] = read_picture(self.path)
        return self._cache["picture"]

    def cover(self) -> NDArray[Any]:
        """Where the person is, 255, and where the background: (SIZE, SIZE)."""
        if "cover" not in self._cache:
            self._cache["cover"] = find_person(self.picture(), self.points)
        return self._cache["cover"]


def read_picture(path: Path) -> NDArray[Any]:
    """Read a square picture, (SIZE, SIZE, 3) RGB.

    Raises:
        KeyFaceError: it is missing or damaged.
    """
    read = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if read is None:
        raise KeyFaceError(f"cannot read the photograph: {path}", "see its folder's faces.csv")
    if read.shape[:2] != (SIZE, SIZE):
        read = cv2.resize(read, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    picture: NDArray[Any] = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
    return picture


def read_people(folder: Path) -> list[Person]:
    """Read who is in a folder of photographs, in the order of its faces.csv.

    Raises:
        KeyFaceError: a file is missing or not as the module says, or nobody's lips are closed.
    """
    try:
        with (folder / "faces.csv").open(encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table))
        with np.load(folder / "landmarks.npz") as stored:
            places = {str(name): i for i, name in enumerate(stored["names"])}
            points = stored["points"].astype(np.float32)
        gaps = {row["file"]: float(row["mouth_gap_in_eye_distances"]) for row in rows}
        who = {row["file"]: (row["set"], row["person"]) for row in rows}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise KeyFaceError(
            f"not a folder of photographs with landmarks: {folder}: {error}",
            "it needs faces.csv, landmarks.npz and the pictures",
        ) from error
    smiles = {person: file for file, (kind, person) in who.items() if kind == "smiling"}
    people = []
    for file, (kind, person) in who.items():
        if kind == "smiling" or gaps[file] > CLOSED or file not in places:
            continue
        someone = Person(f"{kind}-{person}", folder / file, points[places[file]])
        other = smiles.get(person) if kind == "neutral" else None
        if other is not None and other in places:
            seen = points[places[other]]
            matrix = _steady(seen, someone.points)
            lain = _apply(seen, matrix)
            someone.smile = lain - someone.points
            if gaps[other] > TEETH_SHOW:
                someone.teeth = _cut_teeth(read_picture(folder / other), seen, lain, someone.points)
        people.append(someone)
    if not people:
        raise KeyFaceError(f"no photograph with closed lips in {folder}")
    return people


def _steady(source: Points, target: Points) -> NDArray[Any]:
    """The similarity (2, 3) that lays a face on another by the points that no expression moves."""
    index = list(mesh.STEADY)
    matrix, _ = cv2.estimateAffinePartial2D(
        np.ascontiguousarray(source[index, :2]),
        np.ascontiguousarray(target[index, :2]),
        method=cv2.LMEDS,
    )
    return np.asarray(matrix)


def _apply(points: Points, matrix: NDArray[Any]) -> Points:
    flat = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    result: Points = np.concatenate([flat, points[:, 2:] * scale], 1).astype(np.float32)
    return result


def _cut_teeth(picture: NDArray[Any], seen: Points, lain: Points, rest: Points) -> Teeth | None:
    """Cut the upper teeth out of a smile.

    Args:
        picture: of the smile.
        seen: its landmarks.
        lain: the same, laid on the face at rest.
        rest: the landmarks of the face at rest.
    """
    S = mesh.eye_distance(rest)
    centre = mesh.mouth_centre(rest)
    outline = lain[[*mesh.UPPER_INNER, *mesh.LOWER_INNER[-2:0:-1]], :2]
    low, high = outline.min(0), outline.max(0)
    scale = 3.0  # pixels of the cutting for one of the photograph
    w, h = (np.ceil((high - low) * scale)).astype(int).tolist()
    back = _steady(lain, seen)  # the same similarity, the other way
    place = np.array([[1 / scale, 0, low[0]], [0, 1 / scale, low[1]]])
    full = back[:, :2] @ place[:, :2]
    offset = back[:, :2] @ place[:, 2] + back[:, 2]
    matrix = np.concatenate([full, offset[:, None]], 1)
    cut = cv2.warpAffine(
        picture, matrix, (w, h), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    ).astype(np.float32)
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [np.round((outline - low) * scale).astype(np.int32)], 255)
    mask = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=2)
    value = cut.max(2)
    saturation = 1 - cut.min(2) / np.maximum(value, 1)
    inside = mask > 0
    if inside.sum() < 200:
        return None
    bright = np.percentile(value[inside], 80)
    tooth = inside & (value > 0.55 * bright) & (saturation < 0.48)
    if tooth.sum() < 0.35 * inside.sum():
        return None  # lips only
    opacity = cv2.GaussianBlur(tooth.astype(np.float32), (0, 0), 1.6) * np.clip(
        cv2.GaussianBlur(mask, (0, 0), 2.0).astype(np.float32) / 255 * 1.3 - 0.3, 0, 1
    )
    opacity = np.clip(opacity * 1.6, 0, 1)
    box = np.concatenate([low - centre, high - centre]) / S
    return Teeth(np.dstack([cut, opacity]), tuple(box.tolist()))


def find_person(picture: NDArray[Any], points: Points) -> NDArray[Any]:
    """Part a person from an even background: (SIZE, SIZE) uint8, 255 where the person is.

    The background is what joins the picture's edges above the shoulders and has, nearly, the
    colour that they lead to expect, and what GrabCut finds besides, such as shadows on a wall.
    """
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32)
    chin = int(points[mesh.CHIN, 1])
    S = mesh.eye_distance(points)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE
    edge = np.zeros((SIZE, SIZE), bool)
    edge[:8], edge[:chin, :8], edge[:chin, -8:] = True, True, True
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1)
    expected = np.zeros_like(lab)
    trusted = edge
    for _ in range(3):  # hair at the upper edge is no background
        found, *_ = np.linalg.lstsq(terms[trusted], lab[trusted], rcond=None)
        expected = terms @ found
        off = np.linalg.norm(lab - expected, axis=2)
        trusted = edge & (off < max(10.0, float(np.percentile(off[edge], 60)) * 1.5))
    like = (np.linalg.norm((lab - expected) * (0.6, 1.3, 1.3), axis=2) < 14).astype(np.uint8)
    oval = points[list(mesh.OVAL), :2]
    cv2.fillPoly(like, [np.round(oval).astype(np.int32)], 0)
    centre = int(points[mesh.CHIN, 0])
    cv2.rectangle(like, (centre - int(0.5 * S), chin), (centre + int(0.5 * S), SIZE), 0, -1)
    like = cv2.morphologyEx(like, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(like)
    reached = np.unique(labels[edge & (like > 0)])
    person = np.isin(labels, reached[reached > 0], invert=True).astype(np.uint8)
    person &= _cut_out(picture, points)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(person)
    biggest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    alone = cv2.erode((labels == biggest).astype(np.uint8), np.ones((3, 3), np.uint8))
    soft: NDArray[Any] = cv2.GaussianBlur(alone * 255, (0, 0), 1.4)
    return soft


def _cut_out(picture: NDArray[Any], points: Points) -> NDArray[Any]:
    """1 where GrabCut sees a person, else 0: (SIZE, SIZE)."""
    half = cv2.resize(picture, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    p = points[:, :2] / 2
    oval, chin = p[list(mesh.OVAL)], p[mesh.CHIN]
    middle, S = oval.mean(0), mesh.eye_distance(points) / 2
    mask = np.full(half.shape[:2], cv2.GC_BGD, np.uint8)
    reach = (middle + (oval - middle) * np.array([1.75, 1.7])).astype(np.int32)
    cv2.fillPoly(mask, [reach], cv2.GC_PR_FGD)
    mask[int(chin[1]) :, :] = cv2.GC_PR_FGD
    neck = (int(chin[0] - 0.5 * S), int(chin[1])), (int(chin[0] + 0.5 * S), half.shape[0])
    cv2.rectangle(mask, *neck, cv2.GC_FGD, -1)
    cv2.fillPoly(mask, [(middle + (oval - middle) * 0.98).astype(np.int32)], cv2.GC_FGD)
    cv2.setRNGSeed(0)
    cv2.grabCut(
        half, mask, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK
    )
    seen = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    whole = cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    found: NDArray[Any] = cv2.resize(whole, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    return found
