"""`keyface evaluate videos`: measuring, the report, and what becomes of bad input."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from clips import SIDE, moving, write_video

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.errors import KeyFaceError, WeightsError
from keyface_cli.evaluation import measures, runner, tables
from keyface_cli.evaluation.measures import Block, Clip, Column, Figures, Measure, SetMeasure
from keyface_cli.evaluation.networks.weights import parse_named
from keyface_cli.evaluation.pairing import pair_folders
from keyface_cli.evaluation.registry import Settings, choose_metrics
from keyface_cli.evaluation.report import evaluate_videos
from keyface_cli.evaluation.runner import ClipResult, MethodResult, run_method
from keyface_cli.evaluation.statistics import Estimate, bootstrap_mean, estimate

Main = Callable[..., tuple[int, str, str]]
POINTS = np.array([(16, 18), (32, 18), (24, 26), (18, 34), (30, 34)], np.float32)
PSNR, FID = Column("psnr", "PSNR (dB)", "higher", 2), Column("fid", "FID", "lower", 1)
OFFSET = Column("offset", "Offset_%", "neither", 0)


@pytest.fixture(autouse=True)
def a_face_in_every_frame(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEYFACE_HOME", str(tmp_path / "home"))
    box = np.array([8, 8, 32, 32], np.float32)
    monkeypatch.setattr(measures, "find_face", lambda frame: (POINTS, box))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth/, near/ and far/ with the clips a and b, 30 frames, with sound."""
    folder = tmp_path_factory.mktemp("clips")
    loud = (np.arange(30) % 7 > 3).astype(float)
    generator = np.random.default_rng(0)
    for seed, name in enumerate("ab"):
        truth = moving(seed=seed)
        for method, noise in (("truth", 0), ("near", 4), ("far", 30)):
            frames = np.clip(truth + generator.normal(0, noise, truth.shape), 0, 255)
            write_video(folder / method / f"{name}.mp4", frames.astype(np.uint8), loudness=loud)
    return folder


def arguments(folders: Path, *more: object) -> list[object]:
    return [
        *("evaluate", "videos", "--generated", folders / "near", "--generated", folders / "far"),
        *("--reference", folders / "truth", *more),
    ]


def test_table_and_report(main: Main, folders: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    code, out, err = main(*arguments(folders, "-o", report))
    assert code == 0, err
    head, _, *rows = out.splitlines()
    heads, cells = head.strip("| ").split(" | "), [r.strip("| ").split(" | ") for r in rows]
    assert [row[0] for row in cells] == ["reference", "near", "far"]
    psnr = heads.index("PSNR (dB) ↑")
    assert cells[0][psnr] == "-"
    assert cells[1][psnr].startswith("**")  # the better one, and the reference does not compete
    assert not cells[2][psnr].startswith("**")
    flicker = heads.index("Flicker ↓")
    assert float(cells[0][flicker].split()[0]) < float(cells[2][flicker].split()[0])
    # what has no weights is said, with how to get it
    for metric in ("fid", "fvd", "lipscore", "lpips-alex", "aesthetic", "motion", "emotion", "nsv"):
        assert f"absent: {metric}: " in err
    assert "keyface weights pull metrics; or --weights inception=FILE" in err
    facts = json.loads((report / "report.json").read_text())
    assert {one["metric"] for one in facts["absent"]} >= {"fid", "face-similarity"}
    assert facts["packages"]["torch"] != "not installed"
    assert facts["settings"]["fvd_frames"] == 16
    assert "## Absent" in (report / "report.md").read_text()
    assert (report / "table.tex").read_text().startswith(r"\begin{tabular}{lc")
    rows_of_clips = list(csv.DictReader((report / "clips.csv").read_text().splitlines()))
    assert [(r["method"], r["clip"]) for r in rows_of_clips] == [
        (m, c) for m in ("reference", "near", "far") for c in "ab"
    ]
    mean = np.mean([float(r["psnr"]) for r in rows_of_clips if r["method"] == "near"])
    assert cells[1][psnr].startswith(f"**{mean:.2f}**")
    assert "shorter than 5 s" in rows_of_clips[0]["not_scored"]
    for name in ("plots/psnr.png", "plots/time-PSNR.png", "tracks/near/a.csv"):
        assert (report / name).stat().st_size > 0
    assert len(list((report / "worst").glob("far-*.png"))) == 2
    assert not list(report.glob(".*"))
    code, _, err = main(*arguments(folders, "-o", report))
    assert (code, "holds a report already" in err) == (1, True)


def test_json_and_chosen_metrics(main: Main, folders: Path) -> None:
    code, out, _ = main(*arguments(folders, "--metrics", "fidelity,seams", "--json", "-q"))
    assert code == 0
    facts = json.loads(out)
    assert facts["absent"] == []
    near, far = facts["methods"][1:]
    assert near["figures"]["psnr"]["value"] > far["figures"]["psnr"]["value"]
    assert near["figures"]["psnr"]["clips"] == 2
    assert set(near["figures"]) == {"psnr", "ssim", "seams"}


def test_a_clip_against_itself(main: Main, folders: Path) -> None:
    truth = folders / "truth"
    code, out, _ = main(
        *("evaluate", "videos", "--generated", truth, "--method", "same", "--reference", truth),
        *("--metrics", "fidelity", "--json", "--no-reference-row"),
    )
    assert code == 0
    figures = json.loads(out)["methods"][0]["figures"]
    assert figures["psnr"]["value"] == 100
    assert figures["ssim"]["value"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--metrics", "fidelity,beauty"], "unknown metric: beauty"),
        (["--weights", "inception=absent.pt"], "file not found: absent.pt"),
        (["--weights", "resnet=x"], "not NAME=FILE of a known network: resnet=x"),
        (["--metrics", "fid"], "none of the metrics can be computed"),
        (["--reference", "absent"], "absent: no such folder"),
        (["--published", "absent.csv"], "absent.csv: no such file"),
    ],
)
def test_bad_input_is_one_line(main: Main, folders: Path, more: list[str], words: str) -> None:
    code, out, err = main(*arguments(folders, *more))
    assert (code, out) == (1, "")
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert words in error[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.mp4,ours,../../x", "pairs.csv:2: no such name: '../../x'"),
        ("a.mp4,..,x", "pairs.csv:2: no such method: '..'"),
        ("a.mp4,ours,x\nb.mp4,ours,x", "pairs.csv:3: another row's clip is called x as well"),
        ("a.mp4,ours,\nfar/a.mp4,ours,", "pairs.csv:3: another row's clip is called a as well"),
    ],
)
def test_pairs_write_only_their_own_files(
    main: Main, folders: Path, tmp_path: Path, rows: str, words: str
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"generated,method,name\n{rows}\n")
    report = tmp_path / "report"
    code, _, err = main("evaluate", "videos", "--pairs", pairs, "-o", report)
    assert code == 1
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.csv"]


def test_networks_are_loaded_once_for_all_methods(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Count] = []

    def build(settings: Settings) -> tuple[list[Measure], list[object], dict[str, object]]:
        made.append(Count())
        return [made[-1]], [], {}

    monkeypatch.setattr("keyface_cli.evaluation.report.build_measures", build)
    sets = {name: folders / name for name in ("near", "far")}
    found = evaluate_videos(pair_folders(sets, folders / "truth"), Settings(("fid",)))
    assert len(made) == 1
    alone = [
        run_method("m", [clip(folders / name / f"{n}.mp4") for n in "ab"], [Count()])
        for name in sets
    ]
    for result, expected in zip(found.results[1:], alone, strict=True):
        assert result.overall["fid"] == pytest.approx(expected.overall["fid"])


def test_wrong_usage(main: Main, folders: Path) -> None:
    assert main("evaluate", "videos")[0] == 2
    assert main(*arguments(folders, "--method", "one"))[0] == 2
    assert main(*arguments(folders, "--method", "x", "--method", "x"))[0] == 2
    assert main(*arguments(folders, "--pairs", "x.csv"))[0] == 2


def test_weights_of_another_hash_are_refused(main: Main, folders: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "inception.pth"
    wrong.write_bytes(b"something else")
    code, _, err = main(*arguments(folders, "--metrics", "fid", "--weights", f"inception={wrong}"))
    assert code == 1
    assert "is not Inception v3 of 2015-12-05 as TorchScript, for FID: sha256" in err
    code, _, err = main(
        *arguments(folders, "--metrics", "fid", "--weights", f"inception={wrong}", "--any-weights")
    )
    assert code == 1
    assert "not a TorchScript file" in err


def test_a_damaged_clip_is_left_out_and_named(main: Main, folders: Path, tmp_path: Path) -> None:
    near = tmp_path / "near"
    near.mkdir()
    for name in "ab":
        data = bytearray((folders / "near" / f"{name}.mp4").read_bytes())
        if name == "b":
            middle = len(data) * 6 // 10  # inside of a picture: only decoding shows it
            data[middle : middle + 60] = bytes(range(60))
        (near / f"{name}.mp4").write_bytes(data)
    code, out, err = main(
        *("evaluate", "videos", "--generated", near, "--reference", folders / "truth"),
        *("--metrics", "fidelity", "-o", tmp_path / "report"),
    )
    assert code == 1
    assert "error: 1 clips could not be read" in err
    assert "near/b: " in err
    assert out.count("| near |") == 1  # the table is there all the same
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert facts["methods"][1]["figures"]["psnr"]["clips"] == 1


def test_a_video_without_sound_is_not_scored_for_sync(main: Main, tmp_path: Path) -> None:
    write_video(tmp_path / "silent" / "a.mp4", moving())
    code, out, _ = main(
        *("evaluate", "videos", "--generated", tmp_path / "silent", "--json"),
        *("--metrics", "sync,flicker"),
    )
    assert code == 0
    clip = json.loads(out)["clips"][0]
    assert "holds no sound" in clip["not_scored"]["sync_correlation"]
    assert "flicker" in clip["values"]


def test_lipscore_names_its_variant_and_cuts_to_the_shorter(main: Main, tmp_path: Path) -> None:
    weights = Path(__file__).parent / "data" / "parity_lipscore" / "encoder_weights.safetensors"
    write_video(tmp_path / "truth" / "a.mp4", moving(34))
    write_video(tmp_path / "same" / "a.mp4", moving())
    command = [
        *("evaluate", "videos", "--generated", tmp_path / "same", "--json", "-q"),
        *("--reference", tmp_path / "truth", "--weights", f"lipreader={weights}"),
        *("--metrics", "lipscore", "--no-reference-row"),
    ]
    code, out, err = main(*command)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["notes"] == ["same/a: generated clip has 30 frames, its reference 34: cut to 30"]
    score = facts["methods"][0]["figures"]["lipscore_four_points"]["value"]
    assert score == pytest.approx(1, abs=1e-5)
    protocol = facts["protocols"]["same"]["lipscore"]["lipscore_four_points"]
    assert "four-point variant" in protocol["landmarks"]
    _, out, _ = main(*command, "--fps", "30")
    reason = json.loads(out)["clips"][0]["not_scored"]["lipscore_four_points"]
    assert reason == "the lip reader knows 25 frames a second, not 30: --fps 25"


# --- the runner


class Mean(Measure):
    """The mean of all pixels; remembers how much it was shown at once."""

    name: ClassVar[str] = "mean"
    columns = (PSNR,)

    def protocol(self) -> dict[str, Any]:
        return {}

    def begin(self, clip: Clip) -> None:
        self.sums: list[float] = []

    def add(self, block: Block) -> None:
        assert len(block.generated) <= runner.BLOCK
        self.sums += block.generated.mean(axis=(1, 2, 3)).tolist()

    def end(self) -> Figures:
        return Figures({"psnr": float(np.mean(self.sums))}, tracks={"mean": np.array(self.sums)})


class Count(SetMeasure, Mean):
    """The weighted mean of the clips' means."""

    columns = (FID,)

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.clips: list[float] = []

    def end(self) -> Figures:
        self.clips.append(float(np.mean(self.sums)))
        return Figures()

    def overall(self, weights: np.ndarray | None = None) -> dict[str, float]:
        return {"fid": float(np.average(self.clips, weights=weights))}


def clip(path: Path, frames: int = 30) -> Clip:
    return Clip(path.stem, path, None, 25.0, frames, (SIDE, SIDE))


def test_set_figures_are_resampled_by_clip(folders: Path) -> None:
    clips = [clip(folders / "far" / f"{name}.mp4") for name in "ab"]
    result = run_method("m", clips, [Count()])
    means = [moving(seed=s).mean() for s in (0, 1)]
    assert result.overall["fid"] == pytest.approx(np.mean(means), abs=1)
    # two clips drawn twice: a half of the draws hold both, and the others one of them
    expected = abs(means[0] - means[1]) / 2 * math.sqrt(0.5)
    assert result.spread["fid"] == pytest.approx(expected, rel=0.5, abs=0.05)
    found = estimate(result, FID)
    assert found is not None
    assert found.high - found.value == pytest.approx(1.96 * result.spread["fid"])


def test_memory_does_not_grow_with_the_clips(folders: Path) -> None:
    peaks = []
    for count in (2, 12):
        clips = [clip(folders / "near" / f"{'ab'[i % 2]}.mp4") for i in range(count)]
        tracemalloc.start()
        run_method("m", clips, [Mean(), Count()])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --- statistics and tables


def result(name: str, *psnr: float, fid: float | None = None) -> MethodResult:
    clips = [
        ClipResult(str(i), 10, 0.4, {"psnr": v, "offset": 1.0}, {}, Path("a"), None)
        for i, v in enumerate(psnr)
    ]
    overall = {} if fid is None else {"fid": fid}
    return MethodResult(name, clips, overall, dict.fromkeys(overall, 2.0))


def test_intervals_hold_the_true_mean_19_times_of_20() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(150):
        low, high = bootstrap_mean(generator.normal(3, 1, 40))
        held += low <= 3 <= high
    assert 0.88 <= held / 150 <= 0.99
    assert all(math.isnan(x) for x in bootstrap_mean(np.ones(1)))


@pytest.fixture
def table() -> tables.Table:
    rows = [tables.Row("KeyFace", {"fid": Estimate(9.0, math.nan, math.nan, 0)}, published=True)]
    results = [
        result("reference", 99.0, 99.0),
        result("a_1", 20.0, 22.0, fid=30.0),
        result("b", 25.0, fid=29.96),
    ]
    return tables.make_table(results, [PSNR, FID, OFFSET, Column("x", "X", "higher")], rows)


def test_best_is_bold_among_those_who_compete(table: tables.Table) -> None:
    assert [c.key for c in table.columns] == ["psnr", "fid", "offset"]  # nobody has an x
    lines = tables.markdown(table).splitlines()
    assert lines[0] == "| method | PSNR (dB) ↑ | FID ↓ | Offset_% |"
    assert lines[2].startswith("| reference | 99.00 [99.00, 99.00] | - |")
    assert lines[3].startswith("| a_1 | 21.00 [20.00, 22.00] | **30.0** [26.1, 33.9] | 1 [1, 1] |")
    assert lines[4] == "| b | **25.00** | **30.0** [26.0, 33.9] | 1 |"  # equal as printed
    assert lines[5] == "| KeyFace (published) | - | 9.0 | - |"


def test_latex_and_csv(table: tables.Table) -> None:
    text = tables.latex(table)
    assert r"Method & PSNR (dB) $\uparrow$ & FID $\downarrow$ & Offset\_\% \\" in text
    assert r"b & \textbf{25.00} & \textbf{30.0} [26.0, 33.9] & 1 \\" in text
    assert r"a\_1 &" in text
    assert r"KeyFace$^\dagger$ &" in text
    rows = list(csv.DictReader(tables.table_csv(table).splitlines()))
    assert (rows[1]["psnr"], rows[1]["psnr_low"], rows[1]["psnr_clips"]) == ("21", "20", "2")
    assert (rows[3]["fid"], rows[3]["fid_low"], rows[3]["published"]) == ("9", "", "1")


def test_published_figures(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_text("method,FID,psnr\nSadTalker,101.5,\nHallo, 20 ,33\n")
    first, second = tables.read_published(path, [PSNR, FID])
    assert (first.method, first.published, set(first.cells)) == ("SadTalker", True, {"fid"})
    assert second.cells["psnr"].value == 33
    path.write_text("method,beauty\nx,1\n")
    with pytest.raises(KeyFaceError, match="unknown column: beauty"):
        tables.read_published(path, [FID])
    path.write_text("method,fid\nx,low\n")
    with pytest.raises(KeyFaceError, match=r"published.csv:2: fid is not a number: low"):
        tables.read_published(path, [FID])


def test_metrics_keep_the_tables_order() -> None:
    assert choose_metrics(["drift,fid", "fidelity"]) == ("fid", "fidelity", "drift")
    with pytest.raises(WeightsError, match="not NAME=FILE"):
        parse_named(["inception"])
