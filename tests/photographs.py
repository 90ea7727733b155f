"""Photographs for tests: the example portrait, which is nobody's face, as several people."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
PORTRAIT = ROOT / "examples" / "portrait.jpg"


def landmarks() -> NDArray[np.float32]:
    """(478, 3) of the example portrait, in its pixels."""
    points: NDArray[np.float32] = np.load(
        Path(__file__).parent / "data/faces/portrait_landmarks.npy"
    )
    return points


def make_photographs(folder: Path) -> Path:
    """Write photographs of two people, one of them smiling too, one who is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, points = cv2.imread(str(PORTRAIT)), landmarks()
    smile = points.copy()
    smile[[61, 76, 62, 78], 0] -= 9
    smile[[291, 306, 292, 308], 0] += 9
    smile[[61, 76, 62, 78, 291, 306, 292, 308], 1] -= 8
    rows, stored = [], []
    for file, kind, person, where, gap in (
        ("a.jpg", "neutral", "001", points, 0.0),
        ("a_smiling.jpg", "smiling", "001", smile, 0.0),
        ("b.jpg", "canada", "002", points, 0.01),
        ("c.jpg", "neutral", "125", points, 0.0),
        ("open.jpg", "canada", "003", points, 0.3),
    ):
        shade = {"b.jpg": 0.8, "c.jpg": 0.6}.get(file, 1.0)
        cv2.imwrite(str(folder / file), (picture * shade).astype(np.uint8))
        rows.append((file, kind, person, gap))
        stored.append(where)
    with (folder / "faces.csv").open("w", newline="", encoding="utf-8") as file_:
        writer = csv.writer(file_)
        writer.writerow(("file", "set", "person", "mouth_gap_in_eye_distances"))
        writer.writerows(rows)
    np.savez(folder / "landmarks.npz", names=[row[0] for row in rows], points=np.stack(stored))
    return folder
