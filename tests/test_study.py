"""User studies: the pairs, the page in a browser, the votes, and the ratings of them."""

from __future__ import annotations

import csv
import errno
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_browser, requested, serving, wait_for
from clips import moving, write_video

pytest.importorskip("cv2", reason="pip install 'keyface[eval]'")

from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.study import ratings, sidebyside
from keyface_cli.evaluation.study.page import make_page
from keyface_cli.evaluation.study.ratings import Vote, bradley_terry, elo
from keyface_cli.evaluation.study.study import (
    HEADER,
    Study,
    new_study,
    next_trial,
    open_study,
    record,
)
from keyface_cli.media.frames import probe, read_frames

Main = Callable[..., tuple[int, str, str]]
TRUTH = np.array([1.0, 0.4, -0.3, -1.1])


# --- ratings


def simulate(count: int, seed: int) -> np.ndarray:
    """Votes on random pairs of four methods of known strengths: (count, 2) winner, loser."""
    generator = np.random.default_rng(seed)
    pairs = np.array([generator.permutation(4)[:2] for _ in range(count)])
    first = generator.random(count) < 1 / (1 + np.exp(TRUTH[pairs[:, 1]] - TRUTH[pairs[:, 0]]))
    return np.where(first[:, None], pairs, pairs[:, ::-1])


def votes_of(outcomes: np.ndarray, raters: int = 1) -> list[Vote]:
    return [Vote("abcd"[w], "abcd"[x], str(i % raters)) for i, (w, x) in enumerate(outcomes)]


def test_bradley_terry_and_elo_recover_a_known_order() -> None:
    outcomes = simulate(3000, 0)
    wins = np.zeros((4, 4))
    np.add.at(wins, tuple(outcomes.T), 1)
    assert bradley_terry(wins) == pytest.approx(TRUTH, abs=0.15)
    ratings_of = elo(outcomes, 4, shuffles=20)
    assert np.argsort(-ratings_of).tolist() == [0, 1, 2, 3]
    assert ratings_of.mean() == pytest.approx(1000)  # points are only exchanged
    spread = ratings_of[0] - ratings_of[3]
    assert spread == pytest.approx((TRUTH[0] - TRUTH[3]) * 400 / np.log(10), rel=0.2)


def test_bradley_terry_equals_choix() -> None:
    choix = pytest.importorskip("choix")
    outcomes = simulate(400, 1)
    wins = np.zeros((4, 4))
    np.add.at(wins, tuple(outcomes.T), 1)
    theirs = choix.ilsr_pairwise(4, outcomes.tolist(), alpha=1e-4)
    assert bradley_terry(wins) == pytest.approx(theirs - theirs.mean(), abs=2e-3)


@pytest.mark.slow
def test_the_true_strengths_are_inside_the_interval_19_times_of_20() -> None:
    inside, seeds = 0, 60
    for seed in range(seeds):
        votes = votes_of(simulate(300, 100 + seed))
        found = ratings.score(votes, shuffles=1, resamples=150, seed=seed)
        for name, low, high in zip(found.methods, found.low, found.high, strict=True):
            inside += low <= TRUTH["abcd".index(name)] <= high
    assert 0.91 <= inside / (4 * seeds) <= 0.99


def test_one_vote_of_elo_by_hand() -> None:
    assert elo(np.array([[0, 1]]), 2, k=32, start=1500, shuffles=3).tolist() == [1516, 1484]
    after = elo(np.array([[0, 1], [0, 1]]), 2, k=32, start=0, shuffles=2)
    assert after[0] == pytest.approx(16 + 32 * (1 - 1 / (1 + 10 ** (-32 / 400))))


def test_a_method_that_never_lost_stays_finite() -> None:
    found = ratings.score([Vote("a", "b")] * 10, resamples=100)
    assert found.methods == ["a", "b"]
    assert np.isfinite(found.strength).all()
    assert found.wins == [[0, 10], [0, 0]]


def test_agreement_of_raters() -> None:
    same = [Vote("a", "b", r, "1") for r in "xyz"] + [Vote("b", "a", r, "2") for r in "xyz"]
    assert ratings.agreement(same) == pytest.approx(1)
    split = [Vote("a", "b", "x", "1"), Vote("b", "a", "y", "1")] * 2
    split += [Vote("a", "b", "x", "2"), Vote("b", "a", "y", "2")] * 2
    found = ratings.agreement(split)
    assert found is not None
    assert found < 0
    assert ratings.agreement([Vote("a", "b", "x", "1")]) is None


def test_votes_of_inattentive_raters_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    rows = ["rater,pair,winner,loser,check", "x,1,a,b,", "x,c,a,degraded,a", "y,1,b,a,"]
    path.write_text("\n".join([*rows, "y,c,degraded,a,a"]) + "\n")
    assert ratings.read_votes(path) == [Vote("a", "b", "x", "1")]
    for text, words in {
        "winner,rater\n": "needs the columns winner and loser",
        "winner,loser\na,a\n": r"votes.csv:2: a vote needs a winner and another loser",
        "winner,loser\n": "it holds no votes",
        "\n".join([rows[0], "y,1,b,a,", "y,c,degraded,a,a"]): "all raters failed",
    }.items():
        path.write_text(text)
        with pytest.raises(KeyFaceError, match=words):
            ratings.read_votes(path)


# --- studies


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three folders with the clips 0 to 3, 5 frames each."""
    folder = tmp_path_factory.mktemp("methods")
    for seed, method in enumerate(("ours", "theirs", "others")):
        for clip in range(4):
            frames = moving(5, seed=10 * seed + clip, side=32)
            write_video(
                folder / method / f"{clip}.mp4", frames, loudness=np.ones(5), lossless=False
            )
    return [folder / name for name in ("ours", "theirs", "others")]


@pytest.fixture
def study(methods: list[Path], tmp_path: Path) -> Study:
    return new_study(methods, tmp_path / "study", pairs=9, checks=1, seed=3)


def test_pairs_are_balanced_and_hide_the_method(study: Study) -> None:
    real = [t for t in study.trials if not t.check]
    assert len(real) == 9
    kinds = Counter(tuple(sorted((t.left, t.right))) for t in real)
    assert set(kinds.values()) == {3}
    for kind in kinds:
        on_left = Counter(t.left for t in real if {t.left, t.right} == set(kind))
        assert abs(on_left[kind[0]] - on_left[kind[1]]) <= 1
    for trial in real:  # the same clip of both methods, under numbers
        assert trial.pair.split("/")[0] in "0123"
        assert trial.left_clip[:4].isdigit()
    check = next(t for t in study.trials if t.check)
    assert {check.left, check.right} == {check.check, "degraded"}
    worse = (
        study.folder
        / "clips"
        / (check.right_clip if check.right == "degraded" else check.left_clip)
    )
    frame = next(read_frames(worse))[0].astype(int)
    better = (
        study.folder
        / "clips"
        / (check.left_clip if check.right == "degraded" else check.right_clip)
    )
    assert np.abs(frame - next(read_frames(better))[0]).mean() > 4
    assert probe(worse).frames == 5


def test_a_study_is_repeatable(methods: list[Path], tmp_path: Path, study: Study) -> None:
    again = new_study(methods, tmp_path / "again", pairs=9, checks=1, seed=3)
    assert again.trials == study.trials
    other = new_study(methods, tmp_path / "other", pairs=9, checks=1, seed=4)
    assert other.trials != study.trials
    with pytest.raises(KeyFaceError, match="exists already"):
        new_study(methods, tmp_path / "again")


def test_clips_need_the_same_sound(methods: list[Path], tmp_path: Path) -> None:
    write_video(tmp_path / "long" / "0.mp4", moving(15, side=32))
    with pytest.raises(KeyFaceError, match=r"0.60 s, but .*: 0.20 s"):
        new_study([methods[0], tmp_path / "long"], tmp_path / "study")
    with pytest.raises(KeyFaceError, match="two or more methods"):
        new_study([methods[0], methods[0]], tmp_path / "study")
    assert not list(tmp_path.glob("*study*"))


def rows(study: Study) -> list[dict[str, str]]:
    return list(csv.DictReader(study.votes.read_text().splitlines()))


def test_votes_are_resumed_and_never_doubled(study: Study) -> None:
    done, trial = next_trial(study, "anna")
    assert done == 0
    assert trial is not None
    record(study, "anna", trial.pair, "right", 3.2)
    record(study, "anna", trial.pair, "left", 1.0)  # a click that was sent twice
    (row,) = rows(study)
    assert tuple(row) == HEADER
    assert (row["winner"], row["loser"], row["seconds"]) == (trial.right, trial.left, "3.20")
    done, following = next_trial(open_study(study.folder), "anna")
    assert done == 1
    assert following is not None
    assert following.pair != trial.pair
    assert next_trial(study, "ben")[0] == 0
    for bad in (("", trial.pair, "left"), ("x", "none", "left"), ("x", trial.pair, "up")):
        with pytest.raises(KeyFaceError, match="not a vote"):
            record(study, *bad, 1.0)


def test_a_vote_that_a_crash_cut_off_is_asked_for_again(study: Study) -> None:
    _, first = next_trial(study, "anna")
    assert first is not None
    record(study, "anna", first.pair, "left", 1.0)
    _, second = next_trial(study, "anna")
    assert second is not None
    record(study, "anna", second.pair, "left", 1.0)
    text = study.votes.read_bytes()
    study.votes.write_bytes(text[: text.rindex(second.pair.encode()) + len(second.pair)])
    assert next_trial(study, "anna") == (1, second)
    record(study, "anna", second.pair, "right", 1.0)
    assert next_trial(study, "anna")[0] == 2
    assert rows(study)[-1]["winner"] == second.right


def test_damaged_studies_are_one_line(study: Study, tmp_path: Path, main: Main) -> None:
    code, _, err = main("study", "serve", tmp_path / "none")
    assert (code, "is no study" in err) == (1, True)
    (study.folder / "clips" / study.trials[0].left_clip).unlink()
    with pytest.raises(KeyFaceError, match="is missing"):
        open_study(study.folder)
    path = study.folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(KeyFaceError, match="unknown format: 99, not 1"):
        open_study(study.folder)
    good = json.loads(path.read_text()) | {"format": 1}
    (study.folder / "clips" / study.trials[0].left_clip).touch()
    for key, value in (("left_clip", 1), ("left_clip", "../study.json"), ("more", "x")):
        trials = [{**good["trials"][0], key: value}, *good["trials"][1:]]
        path.write_text(json.dumps(good | {"trials": trials}))
        with pytest.raises(KeyFaceError, match="is damaged"):
            open_study(study.folder)
    path.write_text("{")
    with pytest.raises(KeyFaceError, match="is damaged"):
        open_study(study.folder)


@pytest.mark.slow
def test_ten_votes_in_a_browser_with_a_reload_and_a_second_rater(study: Study) -> None:
    with serving(make_page(study)) as url, open_browser() as browser:

        def vote(expected: int, key: str) -> None:
            wait_for(browser, f"document.getElementById('bar').value === {expected}")
            wait_for(browser, "!document.getElementById('choose-left').disabled")
            script = f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))"
            browser.execute_script(script)

        browser.get(url)
        wait_for(browser, "!document.getElementById('start').hidden")
        browser.find_element("id", "name").send_keys("anna")
        browser.find_element("css selector", "#start button").click()
        for i in range(5):
            vote(i, ("ArrowLeft", "ArrowRight")[i % 2])
        wait_for(browser, "document.getElementById('bar').value === 5")
        browser.refresh()
        for i in range(5, 9):
            vote(i, "ArrowLeft")
        wait_for(browser, "document.getElementById('bar').value === 9")
        wait_for(browser, "!document.getElementById('choose-right').disabled")
        browser.find_element("id", "choose-right").click()
        wait_for(browser, "!document.getElementById('done').hidden")
        browser.get(f"{url}?rater=ben")
        vote(0, "ArrowRight")
        wait_for(browser, "document.getElementById('bar').value === 1")
        assert all(address.startswith(url) for address in requested(browser))
    anna = [row for row in rows(study) if row["rater"] == "anna"]
    assert [row["side"] for row in anna] == [*["left", "right"] * 2, *["left"] * 5, "right"]
    assert {row["pair"] for row in anna} == {trial.pair for trial in study.trials}
    (ben,) = (row for row in rows(study) if row["rater"] == "ben")
    assert ben["side"] == "right"
    by_pair = {t.pair: {t.left, t.right} for t in study.trials}
    assert all({row["winner"], row["loser"]} == by_pair[row["pair"]] for row in rows(study))


def fetch(url: str, body: Any = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def test_requests_without_the_token_and_bad_votes_are_refused(study: Study) -> None:
    with serving(make_page(study)) as url:
        base = url.rsplit("/", 2)[0]
        pair = study.trials[0].pair
        assert fetch(f"{base}/trial?rater=x") == 403
        assert fetch(f"{base}/wrong/vote", {"rater": "x", "pair": pair, "side": "left"}) == 403
        assert fetch(f"{url}trial?rater=x") == 200
        for body in (
            {"rater": "=cmd()", "pair": pair, "side": "left"},
            {"rater": "x" * 41, "pair": pair, "side": "left"},
            {"rater": "x", "pair": "none", "side": "left"},
            ["vote"],
        ):
            assert fetch(f"{url}vote", body) == 400
        assert fetch(f"{url}study.json") == 404
        assert not study.votes.exists()


def test_a_full_disk_leaves_neither_a_study_nor_a_video(
    methods: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keyface_cli.evaluation.study.study._copy_clips", full)
    with pytest.raises(KeyFaceError, match="new: the disk is full"):
        new_study(methods, tmp_path / "new")
    monkeypatch.setattr(sidebyside, "combined", full)  # after ffmpeg has written the video
    clips = [next(folder.glob("*.mp4")) for folder in methods[:2]]
    with pytest.raises(KeyFaceError, match=r"both\.mp4: the disk is full"):
        sidebyside.compare(clips, ["a", "b"], tmp_path / "both.mp4")
    assert list(tmp_path.iterdir()) == []


def test_score_prints_table_and_plot(main: Main, tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    lines = [f"{'abcd'[w]},{'abcd'[x]},r{i % 7}" for i, (w, x) in enumerate(simulate(300, 5))]
    path.write_text("winner,loser,rater\n" + "\n".join(lines) + "\n")
    code, out, _ = main("study", "score", path, "--plot", tmp_path / "p.png")
    assert code == 0
    assert "300 votes of 7 raters" in out
    assert out.splitlines()[2].startswith("| a | ")
    assert (tmp_path / "p.png").stat().st_size > 0
    facts = json.loads(main("study", "score", path, "--json")[1])
    assert facts["methods"][0]["low"] < facts["methods"][0]["strength"]
    assert sum(map(sum, facts["wins"])) == 300
    assert main("study", "score", tmp_path / "none.csv")[0] == 1


# --- side by side


def test_compare_lays_videos_side_by_side(main: Main, methods: list[Path], tmp_path: Path) -> None:
    side = tmp_path / "side.mp4"
    videos = [folder / "0.mp4" for folder in methods]
    assert main("compare", *videos, "-o", side, "--columns", "2") == (0, f"{side}\n", "")
    info = probe(side)
    assert info.size == (64, 2 * (32 + 28))
    assert info.frames == 5
    frame = next(read_frames(side))[2].astype(int)
    for i, path in enumerate(videos):
        top, left = 28 + i // 2 * 60, i % 2 * 32
        shown = frame[top : top + 32, left : left + 32]
        assert np.abs(shown - next(read_frames(path))[2]).mean() < 25
    assert frame[:28].max() > 150  # the labels
    assert main("compare", *videos, "-o", side)[0] == 1  # not overwritten
    assert main("compare", videos[0], "-o", tmp_path / "x.mp4")[0] == 2
    code, _, err = main("compare", videos[0], tmp_path / "none.mp4", "-o", tmp_path / "x.mp4")
    assert (code, "none.mp4: no such video" in err) == (1, True)
    assert not list(tmp_path.glob(".*"))
