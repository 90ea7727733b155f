"""The metrics of one clip: what each sees, and what it says of clips made to have the fault."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clips import moving
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

import cv2

from keyface_cli.emotion import face_model
from keyface_cli.errors import EmotionError, WeightsError
from keyface_cli.evaluation import measures
from keyface_cli.evaluation.measures import Block, Clip, Figures, Measure
from keyface_cli.evaluation.metrics import aesthetic, affect, lipsync, vocalisation
from keyface_cli.evaluation.metrics.face_similarity import FaceEmbedder, FaceSimilarity
from keyface_cli.evaluation.metrics.landmarks import Fan, StoredLandmarks, heat_map_points
from keyface_cli.evaluation.metrics.motion import MotionSmoothness
from keyface_cli.evaluation.metrics.unreferenced import ColourDrift, Flicker, FlowSmoothness, Seams
from keyface_cli.evaluation.networks.faces import fill_gaps, find_face, similarity, smooth

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
POINTS = np.array([(16, 18), (32, 18), (24, 26), (18, 34), (30, 34)], np.float32)


@pytest.fixture(autouse=True)
def one_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find a face at one place, except in frames that are all black."""

    def find(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not frame.any():
            return np.full((5, 2), np.nan, np.float32), np.full(4, np.nan, np.float32)
        return POINTS, np.array([8, 8, 32, 32], np.float32)

    monkeypatch.setattr(measures, "find_face", find)


def clip(frames: np.ndarray, **more: Any) -> Clip:
    size = (frames.shape[2], frames.shape[1])
    return Clip("a", Path("a.mp4"), None, 25.0, len(frames), size, **more)


def run(
    measure: Measure, frames: np.ndarray, truth: np.ndarray | None = None, **more: Any
) -> Figures:
    measure.begin(clip(frames, **more))
    for start in range(0, len(frames), 7):
        part = slice(start, start + 7)
        measure.add(Block(start, frames[part], None if truth is None else truth[part]))
    return measure.end()


def levels(track: np.ndarray, side: int = 16) -> np.ndarray:
    """Even grey frames of the given levels."""
    return np.broadcast_to(track[:, None, None, None], (len(track), side, side, 3)).astype(np.uint8)


# --- without a reference


def test_flicker_counts_what_leaves_and_returns() -> None:
    assert run(Flicker(), levels(np.arange(30) * 3)).values["flicker"] == 0  # a fade is none
    jump = np.full(30, 100)
    jump[10] = 130
    assert run(Flicker(), levels(jump)).values["flicker"] == pytest.approx(30 / 28, rel=1e-3)
    assert "flicker" in run(Flicker(), levels(jump[:2])).reasons


def test_seams_are_breaks_at_segment_borders() -> None:
    t = np.arange(53)
    smooth_fade = levels(100 + 50 * np.sin(t / 9))
    plain = run(Seams(), smooth_fade).values["seams"]
    broken = levels(100 + 50 * np.sin(t / 9) + 12 * (t // 13 % 2))
    assert run(Seams(), broken).values["seams"] > 5 * plain
    assert run(Seams(), levels(t[:10])).reasons["seams"].startswith("shorter than")


def test_colour_drift_is_a_slope_a_minute() -> None:
    t = np.arange(250)
    still = run(ColourDrift(), levels(np.full(250, 120))).values["colour_drift"]
    assert still == pytest.approx(0, abs=1e-6)
    rising = run(ColourDrift(), levels(100 + t * 0.2)).values["colour_drift"]
    light = cv2.cvtColor(
        np.array([[[v / 255] * 3 for v in (100, 150)]], np.float32), cv2.COLOR_RGB2LAB
    )
    per_minute = float(light[0, 1, 0] - light[0, 0, 0]) * 6  # in ten seconds
    assert rising == pytest.approx(per_minute, rel=0.1)
    assert "shorter than 5 s" in run(ColourDrift(), levels(t[:100])).reasons["colour_drift"]


def test_flow_smoothness_knows_even_movement_from_jerks() -> None:
    even = moving(20, side=64)
    jerky = even.copy()
    jerky[1::4] = jerky[0::4]  # a frame that comes late
    smooth_value = run(FlowSmoothness(), even).values["flow_smoothness"]
    assert smooth_value > 0.98
    assert run(FlowSmoothness(), jerky).values["flow_smoothness"] < smooth_value - 0.005


# --- lips against sound


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_lag_is_positive_where_the_mouth_comes_late(late: int) -> None:
    sound = np.random.default_rng(0).normal(size=120)
    lag, r = lipsync.best_lag(np.roll(sound, late), sound, 10)
    assert lag == late
    assert r > 0.9


def test_a_still_mouth_has_no_correlation() -> None:
    lag, r = lipsync.best_lag(np.zeros(50), np.random.default_rng(0).normal(size=50), 5)
    assert lag == 0
    assert np.isnan(r)


def talking(opening: np.ndarray) -> np.ndarray:
    """A striped face whose lower half is moved down by the opening, in pixels."""
    y, x = np.mgrid[:96, :96]
    frames = []
    for down in opening:
        shifted = np.where(y > 62, y - down, y)
        pattern = 120 + 50 * np.sin(shifted / 2.5) + 30 * np.sin(x / 3 + shifted / 5)
        frames.append(np.repeat(pattern[..., None], 3, -1))
    return np.stack(frames).astype(np.uint8)


def test_mouth_opening_follows_the_lower_lip() -> None:
    opening = np.abs(np.sin(np.arange(40) / 4)) * 3
    frames = talking(opening)
    points = np.array([(32, 30), (64, 30), (48, 48), (36, 64), (60, 64)], np.float32)
    mouth = lipsync.MouthOpening()
    found = np.repeat(points[None], 40, 0)
    found[5] = np.nan  # missed once
    mouth.add(frames[:25], found[:25])
    mouth.add(frames[25:], found[25:])
    track = mouth.track()
    assert len(track) == 40
    assert np.corrcoef(track, opening)[0, 1] > 0.9
    with pytest.raises(ValueError, match="no face"):
        lipsync.MouthOpening().track()


def test_loudness_of_frames(tone_wav: Path) -> None:
    loud = lipsync.loudness(tone_wav, 25)
    assert len(loud) == 25
    assert loud == pytest.approx(np.log(0.3 / np.sqrt(2)), abs=0.02)


# --- faces


def test_the_detector_finds_a_drawn_face() -> None:
    portrait = Path(__file__).parents[1] / "examples" / "avatar.png"
    picture = np.asarray(Image.open(portrait).convert("RGB").resize((256, 256)))
    points, box = find_face(picture)
    eyes, nose, corners = points[:2], points[2], points[3:]
    assert eyes[0, 0] < nose[0] < eyes[1, 0]  # the picture's left eye first
    assert eyes[:, 1].max() < nose[1] < corners[:, 1].min()
    assert corners[0, 0] < corners[1, 0]
    assert box[0] < eyes[0, 0]
    assert box[0] + box[2] > eyes[1, 0]
    points, box = find_face(np.zeros((64, 64, 3), np.uint8))
    assert np.isnan(points).all()
    assert np.isnan(box).all()


def test_points_are_filled_and_smoothed() -> None:
    track = np.arange(20.0)[:, None, None].repeat(2, 2)
    gappy = track.copy()
    gappy[[0, 5, 6, 19]] = np.nan
    filled = fill_gaps(gappy)
    assert filled[5:7, 0, 0].tolist() == [5, 6]
    assert (filled[0, 0, 0], filled[19, 0, 0]) == (1, 18)  # the ends hold
    assert smooth(track) == pytest.approx(track)  # symmetric: a line stays a line
    spike = np.zeros((20, 1, 2))
    spike[10] = 13
    assert smooth(spike)[10, 0, 0] == 1
    with pytest.raises(ValueError, match="no face"):
        fill_gaps(np.full((3, 1, 2), np.nan))


def test_similarity_is_found() -> None:
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) * 2
    target = POINTS @ turn.T + (5, -7)
    assert similarity(POINTS, target) == pytest.approx(np.column_stack([turn, (5, -7)]), abs=1e-5)


def test_landmarks_beside_the_videos(tmp_path: Path) -> None:
    stored = np.arange(20 * 68 * 2, dtype=np.float32).reshape(20, 68, 2)
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    where = Clip("a", tmp_path / "a.mp4", None, 25.0, 20, (8, 8))
    block = Block(6, frames, None)
    with pytest.raises(Exception, match=r"a.landmarks.npy: no landmarks that can be read"):
        StoredLandmarks().find(where, block, False)
    np.save(tmp_path / "a.landmarks.npy", stored)
    assert np.array_equal(StoredLandmarks().find(where, block, False), stored[6:10])
    np.save(tmp_path / "a.landmarks.npy", stored[:12])
    with pytest.raises(Exception, match=r"has the shape \(12, 68, 2\), expected \(20, 68, 2\)"):
        StoredLandmarks().find(where, block, False)


class Maps(nn.Module):
    """Heat maps whose peaks lie where the picture is brightest."""

    def forward(self, x: Tensor) -> Tensor:
        small = F.avg_pool2d(x.mean(1, keepdim=True), 4)
        return (small**4).expand(x.shape[0], 68, 64, 64)


def test_fan_points_come_back_in_pixels(tmp_path: Path) -> None:
    torch.jit.script(Maps()).save(str(tmp_path / "fan.pt"))
    frame = np.zeros((1, 48, 48, 3), np.uint8)
    frame[0, 20:22, 30:32] = 255
    found = Fan(tmp_path / "fan.pt").find(clip(frame), Block(0, frame, None), False)
    assert found.shape == (1, 68, 2)
    assert found[0, 5] == pytest.approx((30.5, 20.5), abs=0.8)
    peak = torch.zeros(1, 64, 64)
    peak[0, 10, 40] = 1
    assert heat_map_points(peak)[0] == pytest.approx((40.5 / 64, 10.5 / 64))


# --- face similarity, with a network that averages colours in place of SFace


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> FaceEmbedder:
    onnx = pytest.importorskip("onnx")
    nodes = [onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 112, 112])],
        [value("y", onnx.TensorProto.FLOAT, [1, 3, 1, 1])],
    )
    path = tmp_path_factory.mktemp("weights") / "sface.onnx"
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
        ),
        str(path),
    )
    return FaceEmbedder(path)


def coloured(colours: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colours[:, None, None], (len(colours), 48, 48, 3)).astype(np.uint8)


def test_face_similarity_over_time(embedder: FaceEmbedder) -> None:
    red, t = np.array([200.0, 40, 40]), np.linspace(0, 1, 300)[:, None]
    same = run(FaceSimilarity(embedder), coloured(red + 0 * t))
    assert same.values["face_similarity"] == pytest.approx(1, abs=1e-6)
    assert same.values["face_similarity_drift"] == pytest.approx(0, abs=1e-6)
    assert same.values["face_similarity_ends"] == pytest.approx(1, abs=1e-6)
    lost = run(FaceSimilarity(embedder), coloured(red * (1 - t) + np.array([40, 40, 200]) * t))
    assert lost.values["face_similarity_drift"] < -1
    a, b = lost.tracks["face_similarity"][0], lost.tracks["face_similarity"][-1]
    assert a > 0.99
    assert b == pytest.approx(0.43, abs=0.05)
    assert lost.values["face_similarity_ends"] < 0.8
    short = run(FaceSimilarity(embedder), coloured(red + 0 * t)[:60])
    assert set(short.reasons) == {"face_similarity_drift", "face_similarity_ends"}
    assert run(FaceSimilarity(embedder), np.zeros((30, 48, 48, 3), np.uint8)).reasons[
        "face_similarity"
    ]
    # RGB, 0 to 255: the order in which OpenCV's own wrapper feeds it
    assert embedder.embed(coloured(red[None])[0], POINTS) == pytest.approx(
        red / np.linalg.norm(red), abs=1e-3
    )


def test_face_similarity_needs_its_file(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    for name, words in (("x.onnx", "not an ONNX network"), ("y.onnx", "file not found")):
        with pytest.raises(WeightsError, match=words):
            FaceEmbedder(tmp_path / name)


# --- emotion


def test_agreement_of_tracks() -> None:
    wanted = np.sin(np.arange(50) / 5)
    assert affect.agreement(wanted, wanted) == {
        "rmse": 0,
        "ccc": pytest.approx(1),
        "pearson": pytest.approx(1),
        "sign": 1,
    }
    half = affect.agreement(0.5 * wanted + 0.2, wanted)
    x, y = 0.5 * wanted + 0.2, wanted
    cov = np.cov(x, y, bias=True)
    expected = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (x.mean() - y.mean()) ** 2)
    assert half["ccc"] == pytest.approx(expected)
    assert half["pearson"] == pytest.approx(1)
    assert set(affect.agreement(wanted, np.zeros(50))) == {"rmse", "ccc"}
    assert affect.agreement(-wanted, wanted)["sign"] == 0


class Scripted:
    """Reads the answer from the picture: valence from red, arousal from green, class from blue."""

    def read(self, face: np.ndarray) -> np.ndarray:
        r, g, b = face.reshape(-1, 3).mean(0)
        scores = np.zeros(10)
        scores[int(b) // 32] = 1
        scores[8:] = r / 127.5 - 1, g / 127.5 - 1
        return scores


def test_emotion_against_curve_and_video(tmp_path: Path) -> None:
    curve = tmp_path / "a.csv"
    curve.write_text("time,valence,arousal\n0,-1,0.5\n2,1,0.5\n")
    t = np.linspace(0, 1, 51)
    frames = coloured(np.stack([255 * t, 0 * t + 191, 0 * t + 40], 1))
    frames[10] = 0  # no face
    reader: Any = Scripted()
    seen = run(affect.Affect(reader), frames, emotion=curve)
    assert seen.values["valence_ccc"] > 0.999
    assert seen.values["arousal_rmse"] < 0.01
    assert "arousal_pearson" in seen.reasons  # it stands still
    assert "emotion_accuracy" in seen.reasons
    curve.write_text("time,valence,arousal,ease\n0,-1,0.5,hold\n1,0,0.5,\n2,1,0.5,\n")
    held = run(affect.Affect(reader), frames, emotion=curve)
    assert held.values["valence_ccc"] < 0.9  # the frames of the first second rise already
    truth = frames.copy()
    truth[:20, ..., 2] = 200  # another class in 20 frames, one of which has no face
    pair = run(affect.Affect(reader), frames, truth)
    assert pair.values["emotion_accuracy"] == pytest.approx(31 / 50)
    assert (
        "neither a curve nor a reference"
        in run(affect.Affect(reader), frames).reasons["valence_ccc"]
    )


def test_the_emotion_network_is_fed_a_normalised_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = coloured(np.array([[255.0, 0, 127.5]]))[0]
    seen: list[np.ndarray] = []

    def run_onnx(session: object, path: Path, value: np.ndarray) -> list[np.ndarray]:
        seen.append(value)
        return [np.zeros((1, 10), np.float32)]

    monkeypatch.setattr(face_model, "open_onnx", lambda path, what: None)
    monkeypatch.setattr(face_model, "run_onnx", run_onnx)
    network = face_model.FaceModel(tmp_path / "x.onnx")
    affect.read_face(network, frame, np.array([4, 4, 30, 30], np.float32))
    assert seen[0].shape == (1, 3, 224, 224)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (127 / 255 - 0.406) / 0.225]
    assert seen[0].mean((0, 2, 3)) == pytest.approx(expected, abs=1e-3)
    assert np.isnan(affect.read_face(network, frame, np.full(4, np.nan, np.float32))).all()
    monkeypatch.undo()
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(EmotionError, match="not EmotiEffLib's"):
        face_model.FaceModel(tmp_path / "x.onnx")


# --- aesthetic quality and motion smoothness


def test_clip_is_fed_as_vbench_does() -> None:
    x = torch.randint(0, 256, (1, 3, 60, 90), generator=torch.Generator().manual_seed(0)).byte()
    ours = aesthetic.prepare(x, 32)
    assert ours.shape == (1, 3, 32, 32)
    resized = F.interpolate(x.float(), (32, 48), mode="bicubic").round().clamp(0, 255)[..., 8:40]
    first = (resized[0, 0] / 255 - 0.48145466) / 0.26862954
    assert torch.allclose(ours[0, 0], first, atol=1e-5)
    smooth_one = F.interpolate(x.float(), (32, 48), mode="bicubic", antialias=True)[..., 8:40]
    assert (resized - smooth_one).abs().mean() > 5


def test_aesthetic_quality_is_the_head_on_unit_features_by_ten(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    head = {"weight": torch.ones(1, 8), "bias": torch.tensor([3.0])}
    save_file(head, tmp_path / "head.safetensors")
    measure = aesthetic.AestheticQuality(tmp_path / "clip", tmp_path / "head.safetensors")
    frames = moving(9)
    value = run(measure, frames).values["aesthetic"]
    pixels = aesthetic.prepare(torch.from_numpy(frames).permute(0, 3, 1, 2), 32)
    with torch.no_grad():
        features = F.normalize(measure._network(pixel_values=pixels).image_embeds, dim=-1)
    assert value == pytest.approx(float((features.sum(1) + 3).mean()) / 10, abs=1e-5)
    with pytest.raises(WeightsError, match="no CLIP that transformers can read"):
        aesthetic.AestheticQuality(tmp_path / "none", tmp_path / "head.safetensors")


class Average(nn.Module):
    """Interpolates by the mean of both pictures."""

    def forward(self, a: Tensor, b: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {"imgt_pred": (1 - t) * a + t * b}


def test_motion_smoothness_predicts_every_second_frame(tmp_path: Path) -> None:
    torch.jit.script(Average()).save(str(tmp_path / "amt.pt"))
    measure = MotionSmoothness(tmp_path / "amt.pt")
    assert run(measure, levels(np.arange(31) * 2)).values["motion_smoothness"] == 1
    late = levels(np.arange(31) // 2 * 4)  # odd frames repeat the one before: 2 levels off
    assert run(measure, late).values["motion_smoothness"] == pytest.approx((255 - 2) / 255)
    half = levels(np.array([100, 100, 101]))  # 100.5 is cut to 100, not rounded
    assert run(measure, half).values["motion_smoothness"] == 1


class Demonstrated(nn.Module):
    """What AMT's own demonstration calls: its options, and a dictionary as its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(1))

    def forward(
        self, a: Tensor, b: Tensor, t: Tensor, scale_factor: float, eval: bool
    ) -> dict[str, Tensor]:
        assert (scale_factor, eval) == (1.0, True)
        return {"imgt_pred": self.share * a + t * b}


def test_the_lines_that_make_the_file_of_amt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AMT itself cannot be fetched by a test; its place is taken by a network of its form."""
    readme = Path(measures.__file__).with_name("README.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    clone, settings = ModuleType("utils.build_utils"), ModuleType("omegaconf")
    clone.build_from_cfg = lambda name: {"AMT-S": Demonstrated}[name]()  # type: ignore[attr-defined]

    class Config:
        @staticmethod
        def load(path: str) -> Any:
            return SimpleNamespace(network=Path(path).stem)

    settings.OmegaConf = Config  # type: ignore[attr-defined]
    for name, module in (("omegaconf", settings), ("utils.build_utils", clone)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "utils", ModuleType("utils"))
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"share": torch.tensor([0.5])}}, "amt-s.pth")
    exec(compile(block, "README.md", "exec"), {})
    measure = MotionSmoothness(tmp_path / "amt-s.pt")
    frames = np.stack([np.full((512, 512, 3), 10 * t, np.uint8) for t in range(3)])
    assert measure.between(frames[0], frames[2]).mean() == 10


# --- non-speech vocalisations


def test_nsv_accuracy_and_confusion() -> None:
    class Fixed:
        def __init__(self) -> None:
            self.labels = ["Laugh", "Cry", "Sigh"]
            self.frames = 4
            self.seen: list[list[int]] = []

        def classify(self, frames: np.ndarray) -> str:
            self.seen.append(frames[:, 0, 0, 0].tolist())
            return str(self.labels[int(frames[0, 0, 0, 0]) % 3])

    fixed: Any = Fixed()
    measure = vocalisation.VocalisationAccuracy(fixed)
    for level, label in ((0, "laugh"), (1, "Cry"), (1, "sigh"), (3, "Laugh")):
        run(measure, levels(level + np.arange(13) * 3), label=label)
    assert fixed.seen[0] == [0, 12, 24, 36]  # evenly over the clip
    assert measure.overall() == {"nsv_accuracy": 0.75}
    facts = measure.protocol()
    assert facts["confusion"] == [[2, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert facts["per_class"] == {"Laugh": 1.0, "Cry": 1.0, "Sigh": 0.0}
    assert (
        run(measure, levels(np.arange(5)), label="yawn")
        .reasons["nsv_accuracy"]
        .startswith("yawn is none of")
    )
    assert run(measure, levels(np.arange(5))).reasons["nsv_accuracy"] == "the clip has no label"
    assert measure.overall(np.array([0, 0, 1, 1, 5, 5.0])) == {"nsv_accuracy": 0.5}
    json.dumps(facts)
