"""Equality with the official LipScore, on recorded cases.

The directory is $KEYFACE_PARITY_LIPSCORE_DIR, else ../shared/parity_lipscore beside the checkout
where that exists, else the copy in tests/data/parity_lipscore. Sizes come from the tensors alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.evaluation.metrics.lipscore import features, frame_scores, mouth_pictures
from keyface_cli.evaluation.networks.faces import fill_gaps
from keyface_cli.evaluation.networks.lipreader import LipReader, load_lipreader, offset_table
from keyface_cli.evaluation.networks.mouthcrops import align, crop_mouth, smooth_landmarks

SIDES = ("pred", "gt")


@dataclass(frozen=True)
class LipScoreSet:
    """A directory of the manifest's format."""

    folder: Path
    manifest: dict[str, Any]
    cases: dict[str, Tensor]
    reader: LipReader

    def tolerance(self, what: str) -> float:
        return float(self.manifest["suggested_tolerance"][what])


def parity_folder() -> Path:
    named = os.environ.get("KEYFACE_PARITY_LIPSCORE_DIR")
    if named is not None:
        return Path(named)
    checkout = Path(__file__).parents[1]
    beside = checkout.parent / "shared" / "parity_lipscore"
    return beside if beside.is_dir() else checkout / "tests" / "data" / "parity_lipscore"


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> LipScoreSet:
    folder = parity_folder()
    if not (folder / "manifest.json").is_file():
        pytest.fail(f"no parity set: {folder}")
    stored = load_file(folder / "encoder_weights.safetensors")
    weights = {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
    path = tmp_path_factory.mktemp("lipreader") / "encoder.safetensors"
    save_file(weights, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    return LipScoreSet(
        folder, manifest, load_file(folder / "cases.safetensors"), load_lipreader(path)
    )


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def error(ours: Any, theirs: Any) -> float:
    a, b = (torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (ours, theirs))
    assert a.shape == b.shape
    return float((a - b).abs().max())


def case_e(parity: LipScoreSet, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) and landmarks (T, 68, 2) of one clip of case e."""
    frames = parity.cases[f"e.{side}.video"].permute(0, 2, 3, 1).numpy()
    return frames, parity.cases[f"e.{side}.landmarks"].numpy()


def test_encoder(parity: LipScoreSet) -> None:
    c, reader = parity.cases, parity.reader
    video = c["a.video"].float()[:, :, None]
    frontend = reader.frontend(video)
    tolerance = parity.tolerance("a.frontend")
    assert (
        error(reader.frontend.stem(video).mean((3, 4)).transpose(1, 2), c["a.stem_mean"])
        < tolerance
    )
    assert error(frontend, c["a.frontend"]) < tolerance
    tolerance = parity.tolerance("a, b features")
    assert error(reader.project(frontend), c["a.embed"]) < tolerance
    table = offset_table(video.shape[1], reader.config.dim)
    assert error(table, c["a.pos_emb"]) < tolerance
    first = reader.encoders[0](reader.project(frontend), table)
    assert error(first, c["a.layer0"]) < tolerance
    assert error(reader(video), c["a.features"]) < tolerance


def test_conformer_beyond_its_kernel(parity: LipScoreSet) -> None:
    ours = parity.reader.conform(parity.cases["b.frontend"])
    assert error(ours, parity.cases["b.features"]) < parity.tolerance("a, b features")


@pytest.mark.parametrize("side", SIDES)
def test_landmarks_and_crops(parity: LipScoreSet, side: str) -> None:
    c = parity.cases
    frames, landmarks = case_e(parity, side)
    tolerance = parity.tolerance("landmarks, affine, mouth_centre")
    filled = fill_gaps(landmarks)
    assert error(filled, c[f"e.{side}.landmarks_filled"]) < tolerance
    assert error(smooth_landmarks(filled), c[f"e.{side}.landmarks_smoothed"]) < tolerance
    alignment = align(landmarks)
    assert error(alignment.affine, c[f"e.{side}.affine"]) < tolerance
    assert error(alignment.centre, c[f"e.{side}.mouth_centre"]) < tolerance
    crop = crop_mouth(frames[6], alignment.affine[6], alignment.centre[6])
    assert error(crop, c[f"e.{side}.crop_sample"]) < parity.tolerance("crop_sample (0..255)")
    pictures = mouth_pictures([frames[:5], frames[5:]], landmarks)[:, 0]
    stored = c[f"e.{side}.input"]
    shown = pictures[::3] if side == "pred" else pictures[6:7]
    assert error(shown, stored) < parity.tolerance("input")


def test_score_end_to_end(parity: LipScoreSet) -> None:
    c = parity.cases
    seen = []
    for side in SIDES:
        frames, landmarks = case_e(parity, side)
        seen.append(features(parity.reader, mouth_pictures([frames], landmarks)))
        assert error(seen[-1], c[f"e.{side}.features"]) < parity.tolerance("e features")
    scores = frame_scores(*seen)
    tolerance = parity.tolerance("per_frame, score, s.score")
    assert error(scores, c["e.per_frame"]) < tolerance
    assert float(scores.mean()) == pytest.approx(float(c["e.score"]), abs=tolerance)
    short = frame_scores(c["a.features"][0, :5], c["a.features"][1, :5])
    both = (float(scores.mean()) + float(short.mean())) / 2  # pairs, not frames, weigh equally
    assert both == pytest.approx(float(c["s.score"]), abs=tolerance)


def test_a_clip_against_itself_is_1(parity: LipScoreSet) -> None:
    frames, landmarks = case_e(parity, "gt")
    seen = features(parity.reader, mouth_pictures([frames], landmarks))
    assert frame_scores(seen, seen).numpy() == pytest.approx(1, abs=1e-6)
