"""All metrics by name: which are computed, and which are absent and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.measures import Column, Measure
from keyface_cli.evaluation.networks.weights import BY_NAME, check_hash, find_weights, fingerprint

FVD_FRAMES = 16


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


def _fid(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.distribution import FrechetInceptionDistance

    return FrechetInceptionDistance(w["inception"], s.device)


def _fvd(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.distribution import FrechetVideoDistance

    return FrechetVideoDistance(w["i3d"], s.fvd_frames, s.fvd_stride, s.device)


def _lipscore(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.landmarks import choose_landmarker
    from keyface_cli.evaluation.metrics.lipscore import LipScore

    return LipScore(w["lipreader"], choose_landmarker(s.landmarks, s.device), s.device)


def _lpips(trunk: Any) -> Callable[[Settings, dict[str, Path]], Measure]:
    def make(s: Settings, w: dict[str, Path]) -> Measure:
        from keyface_cli.evaluation.metrics.fidelity import PerceptualDistance

        return PerceptualDistance(trunk, w[trunk], s.device)

    return make


def _fidelity(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.fidelity import Fidelity

    return Fidelity(s.device)


def _aesthetic(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.aesthetic import AestheticQuality

    return AestheticQuality(w["clip"], w["aesthetic"], s.device)


def _motion(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.motion import MotionSmoothness

    return MotionSmoothness(w["amt"], s.device)


def _emotion(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.emotion.face_model import FaceModel
    from keyface_cli.evaluation.metrics.affect import Affect

    return Affect(FaceModel(w["emotion"]))


def _face_similarity(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.face_similarity import FaceEmbedder, FaceSimilarity

    return FaceSimilarity(FaceEmbedder(w["sface"]))


def _nsv(s: Settings, w: dict[str, Path]) -> Measure:
    from keyface_cli.evaluation.metrics.vocalisation import (
        VocalisationAccuracy,
        VocalisationClassifier,
    )

    return VocalisationAccuracy(VocalisationClassifier(w["nsv"], s.device))


def _unreferenced(name: str) -> Callable[[Settings, dict[str, Path]], Measure]:
    def make(s: Settings, w: dict[str, Path]) -> Measure:
        from keyface_cli.evaluation.metrics import lipsync, unreferenced

        makers: dict[str, Callable[[], Measure]] = {
            "sync": lipsync.LipSync,
            "flow": unreferenced.FlowSmoothness,
            "flicker": unreferenced.Flicker,
            "seams": unreferenced.Seams,
            "drift": unreferenced.ColourDrift,
        }
        return makers[name]()

    return make


METRICS: dict[str, Entry] = {
    "fid": Entry("FID", ("inception",), _fid),
    "fvd": Entry("FVD", ("i3d",), _fvd),
    "lipscore": Entry("LipScore", ("lipreader",), _lipscore),
    "lpips-alex": Entry("LPIPS with AlexNet", ("alex",), _lpips("alex")),
    "lpips-vgg": Entry("LPIPS with VGG", ("vgg",), _lpips("vgg")),
    "fidelity": Entry("PSNR and SSIM", (), _fidelity),
    "aesthetic": Entry("aesthetic quality", ("clip", "aesthetic"), _aesthetic),
    "motion": Entry("motion smoothness (VBench)", ("amt",), _motion),
    "flow": Entry("smoothness by optical flow", (), _unreferenced("flow")),
    "emotion": Entry("valence, arousal and emotion", ("emotion",), _emotion),
    "nsv": Entry("NSV accuracy", ("nsv",), _nsv),
    "face-similarity": Entry("face similarity over time", ("sface",), _face_similarity),
    "sync": Entry("lip-to-sound correlation", (), _unreferenced("sync")),
    "flicker": Entry("flicker", (), _unreferenced("flicker")),
    "seams": Entry("seams", (), _unreferenced("seams")),
    "drift": Entry("colour drift", (), _unreferenced("drift")),
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
        files: dict[str, Path] = {}
        missing = []
        for network in entry.needs:
            path = find_weights(network, settings.weights, settings.folder)
            if path is None:
                missing.append(network)
            else:
                files[network] = path
        if missing:
            absent += [_absent(name, network) for network in missing[:1]]
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
