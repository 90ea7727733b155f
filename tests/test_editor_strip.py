"""The strip under the curve, in a real browser and a tiny model: drawn, overtaken, rendered."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import complaints, open_browser, requested, serving, wait_for
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.credentials.marks import GENERATED, read_mark
from keyface_cli.editor.page import Editor
from keyface_cli.editor.worker import Worker, frames_of
from keyface_cli.emotion import EmotionTrack, load_emotion
from keyface_cli.jobs.job import Job
from keyface_cli.jobs.plan import make_plan, read
from keyface_cli.jobs.runner import ComputeOptions
from keyface_cli.media.audio import load_waveform
from keyface_cli.output.metadata import read_metadata

CURVE = "time,valence,arousal\n0,0,0\n4,0.5,-0.5\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def job(tmp_path: Path, portrait_png: Path) -> Job:
    """Eight seconds: 17 keyframes, two clips."""
    t = np.arange(8 * 16_000) / 16_000
    sound = 0.4 * np.sin(2 * np.pi * 200 * t) * (np.sin(4 * t) > 0)
    soundfile.write(tmp_path / "speech.wav", sound, 16_000)
    (tmp_path / "curve.csv").write_text(CURVE)
    return Job(
        portrait=portrait_png,
        audio=tmp_path / "speech.wav",
        output=tmp_path / "talk.mp4",
        emotion=str(tmp_path / "curve.csv"),
        crop="none",
        steps=1,
    )


@pytest.fixture
def worker(job: Job, tiny_checkpoint: Path) -> Iterator[Worker]:
    plan, checkpoint = make_plan(job), Checkpoint.open(tiny_checkpoint)
    compute = ComputeOptions("cpu", "float32")
    with Worker(plan, read(plan, checkpoint), checkpoint, compute) as worker:
        yield worker


@pytest.fixture
def opened(browser: Chrome, job: Job, worker: Worker, tmp_path: Path) -> Iterator[Chrome]:
    (tmp_path / "page").mkdir()
    sound = tmp_path / "page" / "sound.wav"
    sound.write_bytes(job.audio.read_bytes())
    editor = Editor(tmp_path / "curve.csv", load_waveform(job.audio), sound, worker)
    with serving(editor.page()) as url:
        requested(browser), complaints(browser)
        browser.get(url)
        wait_for(browser, "document.body.dataset.strip === 'still'")
        yield browser
        browser.execute_script("saved = snapshot()")
        assert all(address.startswith(url) for address in requested(browser))
        assert complaints(browser) == []
        browser.get("about:blank")


def pictures(browser: Chrome, name: str = "drawn") -> dict[int, str]:
    """The picture that each keyframe of a strip shows."""
    script = "return [...shots[arguments[0]]].map(([k, s]) => [k, s.dataset.picture])"
    return dict(sorted(browser.execute_script(script, name)))


def edit(browser: Chrome, script: str) -> None:
    browser.execute_script(f"change(() => {{ {script} }})")


def still(browser: Chrome) -> None:
    wait_for(browser, "!framing && !settling && document.body.dataset.strip === 'still'")


def test_strip_follows_what_is_drawn_and_shows_what_animate_makes(
    opened: Chrome, worker: Worker, main: Any, job: Job, tiny_checkpoint: Path
) -> None:
    before = pictures(opened)
    assert list(before) == list(range(17))
    edit(opened, "keys.push({time: 7.5, valence: -1, arousal: 1, ease: 'linear'})")
    still(opened)
    after = pictures(opened)
    # 4 s to 7.5 s: both clips
    assert not set(before.values()) & set(after.values())
    edit(opened, "keys[2].valence = -0.9; keys[2].time = 7.9")
    opened.find_element(By.ID, "undo").click()
    still(opened)
    assert pictures(opened) == after
    opened.find_element(By.ID, "save").click()
    wait_for(opened, "byId('status').textContent === 'saved'")
    code, out, _ = main(
        "animate", job.portrait, job.audio, "-e", job.emotion, "--crop", "none", "--steps", 1,
        "--model", tiny_checkpoint, "--device", "cpu", "--dtype", "float32", "--keyframes-only",
        "-o", job.output.with_name("other.mp4"),
    )  # fmt: skip
    assert code == 0
    for k, path in enumerate(sorted(Path(out.strip()).glob("*.png"))):
        data = worker.picture(after[k])
        assert data is not None
        shown = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(shown, np.asarray(Image.open(path)))
    said = opened.find_element(By.ID, "told").text
    assert re.fullmatch(r"a clip takes [\d.]+ s on cpu, float32", said)
    source = opened.execute_script("return shots.drawn.get(3).img.naturalWidth")
    assert source == worker.inputs.portrait.shape[-1]


def test_only_what_has_changed_is_drawn_again_and_once_a_frame(opened: Chrome) -> None:
    names = ["drawGround", "drawCurves", "placeShots", "labelShots"]
    still(opened)
    opened.execute_script(
        "window.calls = {}; for (const name of arguments[0]) { const own = window[name];"
        " calls[name] = 0; window[name] = (...given) => { calls[name]++; return own(...given); } }",
        names,
    )

    def calls(script: str) -> list[int]:
        opened.execute_script(f"for (const name in calls) calls[name] = 0; {script}")
        still(opened)
        return [opened.execute_script("return calls")[name] for name in names]

    # a row of labels is that of the drawn curve, another that of the saved one
    assert calls("for (let i = 1; i < 30; i++) change(() => { keys[1].valence = i / 40; })") == [
        *(0, 1, 0, 2),
    ]
    assert calls("seek(3)") == [0, 0, 0, 0]
    assert opened.execute_script("return byId('now').style.transform.startsWith('translateX(4')")
    assert calls("select(2, 3)") == [0, 1, 0, 0]
    assert calls("zoom(.9, 3)") == [1, 1, 1, 2]
    assert list(pictures(opened)) == opened.execute_script("return shown")
    assert calls("zoom(1e9, 0)") == [1, 1, 1, 2]
    assert list(pictures(opened)) == list(range(17))


def test_a_change_samples_only_the_clips_that_it_reaches(opened: Chrome, worker: Worker) -> None:
    before = pictures(opened)
    assert worker._strip is not None
    sampled = worker._strip.clips_sampled
    edit(opened, "keys[1].time = 6.5; keys.push({time: 7.9, valence: 1, arousal: 1, ease: 'hold'})")
    edit(opened, "keys.splice(1, 1, {time: 4, valence: .5, arousal: -.5, ease: 'linear'},"
         " {time: 6.3, valence: .5, arousal: -.5, ease: 'linear'})")  # fmt: skip
    still(opened)
    after = pictures(opened)
    assert [k for k in before if before[k] != after[k]] == [13, 14, 15, 16]
    assert worker._strip.clips_sampled <= sampled + 3  # the first edit may have been overtaken


def test_a_newer_edit_overtakes_an_older_one(opened: Chrome, worker: Worker) -> None:
    strip, show, gate = worker._strip, worker._show, threading.Event()
    assert strip is not None
    sampled = strip.clips_sampled

    def held(keyframe: int, curve: Any) -> None:
        gate.wait(60)
        show(keyframe, curve)

    worker._show = held  # type: ignore[method-assign]
    for step in range(30):
        edit(opened, f"keys[0].valence = {step / 40}; keys[1].valence = {step / 40}")
    curve = load_emotion(f"{29 / 40},0@0 {29 / 40},-0.5@4").sample(200)
    WebDriverWait(opened, 60).until(lambda _: np.array_equal(worker._curves["drawn"], curve))
    gate.set()
    still(opened)
    assert strip.clips_sampled - sampled == 2  # what the first of them had begun is given up
    assert pictures(opened) == {k: strip.name_of(k, curve) for k in range(17)}


def test_the_clip_under_the_cursor_comes_first(worker: Worker) -> None:
    curve = EmotionTrack.constant(0.3, 0.3).sample(200)
    WebDriverWait(None, 60).until(lambda _: worker.status()["ready"])  # type: ignore[type-var]
    seen: list[int] = []
    show = worker._show

    def record(keyframe: int, curve: Any) -> None:
        seen.append(keyframe)
        show(keyframe, curve)

    worker._show = record  # type: ignore[method-assign]
    worker.want({"drawn": curve}, range(17), 14)
    WebDriverWait(None, 60).until(lambda _: not worker.status()["missing"])  # type: ignore[type-var]
    assert seen[:4] == [14, 13, 15, 16]
    assert seen[4:7] == [12, 11, 10]


def test_a_video_begins_before_keyframes_that_wait(worker: Worker, tmp_path: Path) -> None:
    curve = EmotionTrack.constant(0.3, 0.3)
    WebDriverWait(None, 60).until(lambda _: worker.status()["ready"])  # type: ignore[type-var]
    begun: list[int] = []
    shown, show, gate = threading.Event(), worker._show, threading.Event()

    def held(keyframe: int, curve: Any) -> None:
        shown.set()
        gate.wait(60)
        show(keyframe, curve)

    worker._show = held  # type: ignore[method-assign]
    worker.want({"drawn": curve.sample(200)}, range(17), 0)
    shown.wait(60)
    render = worker.render_part(curve, range(50, 75), tmp_path / "part.mp4")
    make = render.make

    def record(progress: Any) -> None:
        begun.append(worker.status()["missing"])
        make(progress)

    render.make = record
    gate.set()
    WebDriverWait(None, 60).until(lambda _: render.state == "done")  # type: ignore[type-var]
    assert begun == [16]  # after the one that was in the making
    WebDriverWait(None, 60).until(lambda _: not worker.status()["missing"])  # type: ignore[type-var]


def test_a_keyframe_is_dragged_in_the_circumplex(opened: Chrome) -> None:
    before = pictures(opened)
    opened.execute_script("shots.drawn.get(4).click()")
    circle = opened.find_element(By.ID, "circle")
    assert circle.is_displayed()
    hand = ActionChains(opened, duration=20).move_to_element_with_offset(circle, 0, 0)
    hand.click_and_hold().move_by_offset(20, -10).move_by_offset(28, -38).release().perform()
    keys = opened.execute_script("return keys")
    assert [key["time"] for key in keys] == [0, 2.08, 4]
    assert abs(keys[1]["valence"] - 0.5) < 0.03
    assert abs(keys[1]["arousal"] - 0.5) < 0.03
    still(opened)
    after = pictures(opened)
    assert after[4] != before[4]
    wait_for(opened, f"byId('face').dataset.picture === '{after[4]}'")
    opened.find_element(By.ID, "undo").click()
    assert len(opened.execute_script("return keys")) == 2
    still(opened)
    assert pictures(opened) == before


def test_saved_and_drawn_are_compared(opened: Chrome) -> None:
    before = pictures(opened)
    edit(opened, "keys[0].valence = 1")
    opened.find_element(By.ID, "compare").click()
    still(opened)
    assert pictures(opened, "saved") == before
    assert not set(pictures(opened).values()) & set(before.values())


def test_a_part_is_made_with_its_sound_and_played(
    opened: Chrome, worker: Worker, tmp_path: Path
) -> None:
    edit(opened, "keys[1].valence = -.5")
    opened.execute_script("select(2, 3)")
    opened.find_element(By.ID, "renderPart").click()
    wait_for(opened, "byId('player').classList.contains('open') && byId('video').readyState >= 2")
    assert abs(opened.execute_script("return byId('video').duration") - 1) < 0.1
    part = tmp_path / "page" / "part-1.mp4"
    assert read_mark(part) == GENERATED
    assert read_metadata(part)["part_s"] == [2.0, 3.0]
    assert not (tmp_path / "talk.mp4").exists()
    opened.execute_script("closeAll()")


def test_the_whole_is_made_and_nothing_replaced_unasked(opened: Chrome, tmp_path: Path) -> None:
    (tmp_path / "talk.mp4").write_bytes(b"older")
    edit(opened, "keys[1].valence = -.5")
    opened.find_element(By.ID, "renderAll").click()
    opened.find_element(By.ID, "allGo").click()
    assert "exists already" in wait_for(opened, "byId('allError').textContent")
    assert (tmp_path / "talk.mp4").read_bytes() == b"older"
    complaints(opened)  # the refused request
    opened.find_element(By.ID, "allReplace").click()
    opened.find_element(By.ID, "allGo").click()
    wait_for(opened, "byId('player').classList.contains('open') && byId('video').readyState >= 2")
    made = read_metadata(tmp_path / "talk.mp4")
    assert made["emotion"] == "curve.csv"
    assert load_emotion(made["emotion_curve"]) == load_emotion(str(tmp_path / "curve.csv"))
    opened.execute_script("closeAll()")


def test_frames_of_a_part() -> None:
    assert frames_of(2.0, 3.0, 200) == range(50, 75)
    assert frames_of(7.99, 9.0, 200) == range(199, 200)
    assert frames_of(1.0, 1.0, 200) == range(25, 26)


def test_without_a_portrait_no_torch_is_loaded(tmp_path: Path, tone_wav: Path) -> None:
    code = (
        "import sys\nfrom keyface_cli.app import main\n"
        "sys.argv = ['keyface', 'emotion', 'edit', 'c.csv', '--no-browser', '-a', sys.argv[1]]\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tone_wav)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", child.stderr.readline())
    assert found
    with urllib.request.urlopen(f"{found[0]}curve", timeout=60) as reply:
        assert json.load(reply)["output"] is None
    request = urllib.request.Request(
        f"{found[0]}close", b"null", {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).close()
    assert "AssertionError" not in child.communicate(timeout=60)[1]
    assert child.returncode == 0


@pytest.mark.parametrize("words", [("--seed", "3"), ("--crop", "none"), ("-o", "a.mp4")])
def test_options_of_animate_mean_nothing_without_a_portrait(
    main: Any, tmp_path: Path, tone_wav: Path, words: tuple[str, str]
) -> None:
    code, _, err = main("emotion", "edit", tmp_path / "c.csv", "-a", tone_wav, *words)
    assert code == 2
    assert "--portrait" in err


def test_a_portrait_that_cannot_be_read_ends_the_command(
    main: Any, tmp_path: Path, tone_wav: Path, tiny_checkpoint: Path
) -> None:
    given = ("emotion", "edit", tmp_path / "c.csv", "-a", tone_wav, "-p", tmp_path / "none.png")
    code, out, err = main(*given, "--model", tiny_checkpoint, "--no-browser")
    assert (code, out) == (1, "")
    assert "none.png" in err
    assert list(tmp_path.iterdir()) == []
