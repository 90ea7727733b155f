"""All metrics by name: which are computed, and which are absent and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyface_cli.emotion.face_model import FaceModel
from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.measures import Column, Measure
from keyface_cli.evaluation.metrics.aesthetic import AestheticQuality
from keyface_cli.evaluation.metrics.affect import Affect
from keyface_cli.evaluation.metrics.distribution import (
    FVD_FRAMES,
    FrechetInceptionDistance,
    FrechetVideoDistance,
)
from keyface_cli.evaluation.metrics.face_similarity import FaceEmbedder, FaceSimilarity
from keyface_cli.evaluation.metrics.fidelity import Fidelity, PerceptualDistance
from keyface_cli.evaluation.metrics.landmarks import choose_landmarker
from keyface_cli.evaluation.metrics.lipscore import LipScore
from keyface_cli.evaluation.metrics.lipsync import LipSync
from keyface_cli.evaluation.metrics.motion import MotionSmoothness
from keyface_cli.evaluation.metrics.unreferenced import ColourDrift, Flicker, FlowSmoothness, Seams
from keyface_cli.evaluation.metrics.vocalisation import (
    VocalisationAccuracy,
    VocalisationClassifier,
)
from keyface_cli.evaluation.networks.weights import BY_NAME, check_hash, find_weights, fingerprint


@dataclass(frozen=True)
class Settings:
    """What is measured and how.

    Args:
        metrics: names of METRICS, in the order of the table's columns.
        weights: network -> file, as the user named them.
        folder: where the others are looked for.
        device: where to compute.
        fvd_frames: in a window.
        fvd_stride: between them.
        landmarks: "mtcnn", "files" or a FAN TorchScript file.
        check_hashes: refuse files that are not the published ones.
    """

    metrics: tuple[str, ...]
    weights: Mapping[str, Path] = field(default_factory=dict)
    folder: Path = Path()
    device: str = "cpu"
    fvd_frames: int = FVD_FRAMES
    fvd_stride: int = 1
    landmarks: str = "mtcnn"
    check_hashes: bool = True


@dataclass(frozen=True)
class Absent:
    """A metric that cannot be computed here."""

    metric: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Entry:
    """A metric: what it is called, the networks it needs, and how it is made of their files."""

    what: str
    needs: tuple[str, ...]
    make: Callable[[Settings, dict[str, Path]], Measure]


METRICS: dict[str, Entry] = {
    "fid": Entry(
        "FID", ("inception",), lambda s, f: FrechetInceptionDistance(f["inception"], s.device)
    ),
    "fvd": Entry(
        "FVD",
        ("i3d",),
        lambda s, f: FrechetVideoDistance(f["i3d"], s.fvd_frames, s.fvd_stride, s.device),
    ),
    "lipscore": Entry(
        "LipScore",
        ("lipreader",),
        lambda s, f: LipScore(f["lipreader"], choose_landmarker(s.landmarks, s.device), s.device),
    ),
    "lpips-alex": Entry(
        "LPIPS with AlexNet",
        ("alex",),
        lambda s, f: PerceptualDistance("alex", f["alex"], s.device),
    ),
    "lpips-vgg": Entry(
        "LPIPS with VGG", ("vgg",), lambda s, f: PerceptualDistance("vgg", f["vgg"], s.device)
    ),
    "fidelity": Entry("PSNR and SSIM", (), lambda s, f: Fidelity(s.device)),
    "aesthetic": Entry(
        "aesthetic quality",
        ("clip", "aesthetic"),
        lambda s, f: AestheticQuality(f["clip"], f["aesthetic"], s.device),
    ),
    "motion": Entry(
        "motion smoothness (VBench)", ("amt",), lambda s, f: MotionSmoothness(f["amt"], s.device)
    ),
    "flow": Entry("smoothness by optical flow", (), lambda s, f: FlowSmoothness()),
    "emotion": Entry(
        "valence, arousal and emotion", ("emotion",), lambda s, f: Affect(FaceModel(f["emotion"]))
    ),
    "nsv": Entry(
        "NSV accuracy",
        ("nsv",),
        lambda s, f: VocalisationAccuracy(VocalisationClassifier(f["nsv"], s.device)),
    ),
    "face-similarity": Entry(
        "face similarity over time",
        ("sface",),
        lambda s, f: FaceSimilarity(FaceEmbedder(f["sface"])),
    ),
    "sync": Entry("lip-to-sound correlation", (), lambda s, f: LipSync()),
    "flicker": Entry("flicker", (), lambda s, f: Flicker()),
    "seams": Entry("seams", (), lambda s, f: Seams()),
    "drift": Entry("colour drift", (), lambda s, f: ColourDrift()),
}


def build_measures(settings: Settings) -> tuple[list[Measure], list[Absent], dict[str, Any]]:
    """Make the metrics that were asked for.

    Returns:
        Those that can be computed, those that cannot, and for each network the file and hash.

    Raises:
        WeightsError: a file that was found is damaged or another network.
    """
    measures: list[Measure] = []
    absent: list[Absent] = []
    used: dict[str, Any] = {}
    for name in settings.metrics:
        entry = METRICS[name]
        found = {one: find_weights(one, settings.weights, settings.folder) for one in entry.needs}
        files = {network: path for network, path in found.items() if path is not None}
        missing = next((network for network in found if network not in files), None)
        if missing is not None:
            absent.append(_absent(name, missing))
            continue
        for network, path in files.items():
            if settings.check_hashes:
                check_hash(network, path)
            used[network] = {"file": path.name, "sha256": fingerprint(path)}
        measures.append(entry.make(settings, files))
    return measures, absent, used


def choose_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics that an option names; all where it names none.

    Raises:
        KeyFaceError: a name is unknown.
    """
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in METRICS:
            raise KeyFaceError(f"unknown metric: {name}", f"use {', '.join(METRICS)}")
    return tuple(name for name in METRICS if not wanted or name in wanted)


def all_columns(measures: Sequence[Measure]) -> list[Column]:
    """Return the columns of metrics, in order, each once."""
    return list({c.key: c for m in measures for c in m.columns}.values())


def _absent(metric: str, network: str) -> Absent:
    weights = BY_NAME[network]
    return Absent(
        metric,
        f"{METRICS[metric].what} needs {weights.what}",
        f"{weights.hint}; or --weights {network}=FILE",
    )
