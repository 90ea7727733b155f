"""The editor of curves: drawn, undone, saved and reloaded in a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import complaints, open_browser, requested, serving, wait_for
from numpy.testing import assert_allclose
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from keyface_cli.editor.page import Editor
from keyface_cli.emotion import EASES, NAMED, EmotionTrack, Key, load_emotion
from keyface_cli.emotion.write import write_json
from keyface_cli.errors import EmotionError

CURVE = "# take 2\ntime;emotion;valence;arousal;note\n0;neutral;;;start\n4;;0,5;-0,5;\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """One browser for all tests of this file."""
    with open_browser() as browser:
        yield browser


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "curve.csv"
    path.write_text(CURVE)
    return path


@pytest.fixture
def editor(path: Path, tmp_path: Path) -> Editor:
    t = np.arange(8 * 16_000) / 16_000
    waveform = (0.4 * np.sin(2 * np.pi * 200 * t) * (t < 4)).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", waveform, 16_000)
    return Editor(path, waveform, tmp_path / "sound.wav")


@pytest.fixture
def opened(browser: Chrome, editor: Editor) -> Iterator[Chrome]:
    """The browser with the editor's page in it."""
    with serving(editor.page()) as url:
        requested(browser), complaints(browser)
        browser.get(url)
        wait_for(browser, "document.body.dataset.ready")
        yield browser
        # nothing may stop the page from being left
        browser.execute_script("if (typeof keys !== 'undefined') saved = snapshot()")
        assert all(address.startswith(url) for address in requested(browser))
        assert complaints(browser) == []
        browser.get("about:blank")


def state(browser: Chrome) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = browser.execute_script("return keys")
    return keys


def place(browser: Chrome, time: float, value: float) -> tuple[int, int]:
    """Where a time and a value are on the canvas, from its middle, as ActionChains counts."""
    script = "return [toX(arguments[0]) - width() / 2, toY(arguments[1]) - height() / 2]"
    x, y = browser.execute_script(script, time, value)
    return round(x), round(y)


def drag(browser: Chrome, start: tuple[float, float], end: tuple[float, float]) -> None:
    canvas = browser.find_element(By.ID, "canvas")
    x, y = place(browser, *start)
    to_x, to_y = place(browser, *end)
    hand = ActionChains(browser, duration=20).move_to_element_with_offset(canvas, x, y)
    hand.click_and_hold().move_by_offset((to_x - x) // 2, (to_y - y) // 2)
    hand.move_to_element_with_offset(canvas, to_x, to_y).release().perform()


def press(browser: Chrome, key: str, *, control: bool = True) -> None:
    hand = ActionChains(browser)
    if control:
        hand.key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()
    else:
        hand.send_keys(key).perform()


def test_draw_undo_save_and_reload(opened: Chrome, path: Path, editor: Editor) -> None:
    assert [key["time"] for key in state(opened)] == [0, 4]
    drag(opened, (4, 0.5), (6, -0.8))  # the second key's valence, and its time
    second = state(opened)[1]
    assert_allclose(
        [second["time"], second["valence"], second["arousal"]], [6, -0.8, -0.5], atol=0.03
    )
    drag(opened, (3, -0.25), (3, 0.6))  # the line of arousal: a new key
    assert len(state(opened)) == 3
    assert_allclose(
        [state(opened)[1][c] for c in ("time", "valence", "arousal")], [3, -0.4, 0.6], atol=0.03
    )
    press(opened, "z")
    assert [len(state(opened)), state(opened)[1]["time"]] == [2, second["time"]]
    press(opened, "z")
    assert state(opened)[1]["time"] == 4
    press(opened, "y")
    press(opened, "y")
    assert len(state(opened)) == 3
    drawn = state(opened)
    assert path.read_text() == CURVE
    press(opened, "s")
    wait_for(opened, "byId('status').textContent === 'saved'")
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# take 2", "time;emotion;valence;arousal;note", "0;neutral;;;start"]
    assert lines[3].replace(",", ".").split(";")[2:4] == [
        str(drawn[1][c]) for c in ("valence", "arousal")
    ]
    assert editor.saves == 1
    opened.refresh()
    wait_for(opened, "document.body.dataset.ready")
    assert state(opened) == drawn
    assert (
        os.listdir(path.parent) == ["sound.wav", "curve.csv"] or len(os.listdir(path.parent)) == 2
    )


def test_names_eases_and_numbers(opened: Chrome, path: Path) -> None:
    chip = opened.find_element(By.CSS_SELECTOR, "[data-name=happy]")
    canvas = opened.find_element(By.ID, "canvas")
    x, y = place(opened, 2, 0)
    hand = ActionChains(opened, duration=20).click_and_hold(chip)
    hand.move_to_element_with_offset(canvas, x, y).release().perform()
    named = state(opened)[1]
    assert (named["emotion"], named["valence"], named["arousal"]) == ("happy", 0.85, 0.75)
    assert_allclose(named["time"], 2, atol=0.03)
    opened.find_element(By.CSS_SELECTOR, "#ease option:nth-child(3)").click()
    assert state(opened)[1]["ease"] == "smooth"
    field = opened.find_element(By.ID, "time")
    field.clear()
    field.send_keys("2,5\n")
    assert state(opened)[1]["time"] == 2.5
    opened.find_element(By.ID, "save").click()
    wait_for(opened, "byId('status').textContent === 'saved'")
    assert load_emotion(str(path)).keys[1] == Key.named(2.5, "happy", 1.0, "smooth")
    field = opened.find_element(By.ID, "arousal")
    field.clear()
    field.send_keys("7\n")
    assert state(opened)[1]["arousal"] == 1
    assert "emotion" not in state(opened)[1]
    field.clear()
    field.send_keys("high\n")
    assert wait_for(opened, "byId('status').textContent") == "arousal is not a number"
    assert state(opened)[1]["arousal"] == 1
    opened.find_element(By.ID, "remove").click()
    assert len(state(opened)) == 2
    ActionChains(opened, duration=20).move_to_element_with_offset(
        canvas, *place(opened, 7, 0.9)
    ).double_click().perform()
    assert_allclose(
        [state(opened)[2][c] for c in ("time", "valence", "arousal")], [7, 0.9, -0.5], atol=0.03
    )


def test_the_sound_plays_and_can_be_sought(opened: Chrome) -> None:
    wait_for(opened, "sound.readyState >= 3")
    assert opened.execute_script("return sound.duration") == 8
    canvas = opened.find_element(By.ID, "canvas")
    x, y = place(opened, 6, 0.97)
    ActionChains(opened, duration=20).move_to_element_with_offset(canvas, x, y).click().perform()
    assert_allclose(wait_for(opened, "sound.currentTime"), 6, atol=0.05)
    press(opened, " ", control=False)
    wait_for(opened, "sound.currentTime > 6.2 || sound.ended")
    assert len(state(opened)) == 2


def test_zoom_keeps_what_is_under_the_hand(opened: Chrome) -> None:
    canvas = opened.find_element(By.ID, "canvas")
    x, y = place(opened, 6, 0)
    origin = {"x": x, "y": y}
    opened.execute_script(
        "canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: -400, clientX:"
        " canvas.getBoundingClientRect().left + width() / 2 + arguments[0].x, clientY: 200}))",
        origin,
    )
    assert opened.execute_script("return view[1] - view[0]") < 4
    assert abs(place(opened, 6, 0)[0] - x) <= 2
    assert canvas.is_displayed()


def test_page_draws_the_curve_that_the_program_makes(opened: Chrome) -> None:
    rng = np.random.default_rng(0)
    times = np.linspace(0, 8, 200)
    for _ in range(10):
        moments = np.sort(rng.choice(800, 7, replace=False)) / 100
        keys = tuple(
            Key(t, *rng.uniform(-1, 1, 2).tolist(), str(rng.choice(EASES)))
            for t in moments.tolist()
        )
        given = [
            {"time": k.time_s, "valence": k.valence, "arousal": k.arousal, "ease": k.ease}
            for k in keys
        ]
        drawn = opened.execute_script(
            "keys = arguments[0]; return arguments[1].map(t => CHANNELS.map(c => sampler(c)(t)))",
            given,
            times.tolist(),
        )
        assert_allclose(drawn, EmotionTrack(keys).at(times), atol=1e-9)
    assert opened.execute_script("return keyframes()") == [
        h.frame for h in EmotionTrack(keys).at_keyframes(200)
    ]


THEIRS = "time,emotion\n0,sad\n"


def test_a_file_changed_elsewhere_is_kept_beside_what_is_saved(opened: Chrome, path: Path) -> None:
    drag(opened, (4, 0.5), (5, 0.2))
    path.write_text(THEIRS)
    opened.find_element(By.ID, "save").click()
    said = wait_for(opened, "byId('status').textContent")
    assert re.fullmatch(r"not saved: .*curve\.csv: has been changed elsewhere since; .*", said)
    assert path.read_text() == THEIRS
    complaints(opened)  # the refused request
    wait_for(opened, "byId('warning').classList.contains('open')")
    opened.find_element(By.ID, "mine").click()
    wait_for(opened, "byId('status').textContent.endsWith('curve.other-1.csv')")
    assert path.with_name("curve.other-1.csv").read_text() == THEIRS
    assert load_emotion(str(path)).keys[1].time_s == state(opened)[1]["time"]


@pytest.mark.slow
def test_a_file_changed_elsewhere_is_taken_and_what_was_drawn_kept(
    opened: Chrome, path: Path
) -> None:
    drag(opened, (4, 0.5), (5, 0.2))
    drawn = state(opened)
    path.write_text(THEIRS)
    wait_for(opened, "byId('warning').classList.contains('open')")  # seen without being saved
    opened.find_element(By.ID, "theirs").click()
    wait_for(opened, "byId('status').textContent.endsWith('curve.mine-1.csv')")
    assert [key["emotion"] for key in state(opened)] == ["sad"]
    assert path.read_text() == THEIRS
    kept = load_emotion(str(path.with_name("curve.mine-1.csv")))
    assert [key.time_s for key in kept.keys] == [key["time"] for key in drawn]
    opened.find_element(By.ID, "undo").click()
    assert state(opened) == drawn


def test_a_draft_survives_a_crash_and_is_offered(opened: Chrome, editor: Editor) -> None:
    drag(opened, (4, 0.5), (6, -0.8))
    drawn = state(opened)
    WebDriverWait(opened, 60).until(lambda _: editor.draft.exists())
    opened.execute_script("saved = snapshot()")  # as if the tab had died
    assert load_emotion(str(editor.path)).keys[1].time_s == 4
    opened.refresh()
    wait_for(opened, "byId('recover').open")
    opened.find_element(By.ID, "recoverYes").click()
    assert state(opened) == drawn
    opened.find_element(By.ID, "undo").click()
    assert state(opened)[1]["time"] == 4
    opened.find_element(By.ID, "redo").click()
    opened.find_element(By.ID, "save").click()
    wait_for(opened, "byId('status').textContent === 'saved'")
    assert not editor.draft.exists()
    assert load_emotion(str(editor.path)).keys[1].time_s == drawn[1]["time"]


def test_selection_loops_and_snaps_to_pauses(opened: Chrome) -> None:
    # the tone of the sound ends at 4 s
    assert_allclose(opened.execute_script("return file.pauses"), [[4, 8]], atol=0.05)
    canvas = opened.find_element(By.ID, "canvas")
    ActionChains(opened, duration=20).move_to_element_with_offset(
        canvas, *place(opened, 3.5, 0.9)
    ).key_down(Keys.SHIFT).click_and_hold().move_to_element_with_offset(
        canvas, place(opened, 4, 0.9)[0] + 4, place(opened, 4, 0.9)[1]
    ).release().key_up(Keys.SHIFT).perform()
    start, end = opened.execute_script("return selection")
    assert_allclose(
        [start, end], [3.5, opened.execute_script("return file.pauses[0][0]")], atol=0.02
    )
    press(opened, "l", control=False)
    opened.execute_script("sound.currentTime = 3.6")
    press(opened, " ", control=False)
    opened.execute_script(
        "window.times = []; sound.ontimeupdate = () => times.push(sound.currentTime)"
    )
    wait_for(opened, "times.some((t, i) => i && t < times[i - 1])")
    assert opened.execute_script("return Math.max(...times)") < end + 0.3
    press(opened, " ", control=False)


def test_every_action_of_the_keyboard_is_listed(opened: Chrome) -> None:
    press(opened, "?", control=False)
    shown = opened.find_element(By.ID, "keys").text
    assert opened.find_element(By.ID, "help").is_displayed()
    for word in ("play", "loop", "snap", "zoom", "valence", "arousal", "render", "undo", "save"):
        assert word in shown
    opened.find_element(By.ID, "helpClose").click()
    press(opened, Keys.ARROW_RIGHT, control=False)
    press(opened, Keys.ARROW_UP, control=False)
    assert_allclose(state(opened)[1]["valence"], 0.55)
    press(opened, "3", control=False)
    assert state(opened)[1]["ease"] == "smooth"


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except OSError:
        return False
    return True


def test_save_and_close_ends_the_server(browser: Chrome, editor: Editor) -> None:
    page = editor.page()
    with serving(page) as url:
        browser.get(url)
        wait_for(browser, "document.body.dataset.ready")
        browser.find_element(By.ID, "done").click()
        wait_for(browser, "document.body.textContent.startsWith('Saved.')")
        WebDriverWait(browser, 60).until(lambda _: not answers(url))


@pytest.mark.parametrize("name", ["new.csv", "new.json"])
def test_new_file_is_made_when_it_is_saved(editor: Editor, tmp_path: Path, name: str) -> None:
    fresh = Editor(tmp_path / name, np.zeros(16_000, np.float32), tmp_path / "sound.wav")
    told = fresh.describe()
    assert (told["version"], told["seconds"], told["frames"]) == ("", 1.0, 25)
    assert told["keys"] == [
        {"time": 0.0, "valence": 0.0, "arousal": 0.0, "ease": "linear", "emotion": "neutral"}
    ]
    assert set(told["names"]) == set(NAMED)
    assert not (tmp_path / name).exists()
    version = fresh.save({"keys": told["keys"], "version": ""})["version"]
    assert load_emotion(str(tmp_path / name)) == EmotionTrack((Key.named(0.0, "neutral"),))
    assert (name == "new.json") == (tmp_path / name).read_text().startswith("[")
    keys = [{"time": 1, "valence": 0.25, "arousal": 0, "ease": "hold"}]
    fresh.save({"keys": keys, "version": version})
    assert load_emotion(str(tmp_path / name)).keys == (Key(1.0, 0.25, 0.0, "hold"),)


def test_whatever_was_written_elsewhere_is_kept_byte_for_byte(editor: Editor, path: Path) -> None:
    told = editor.describe()
    theirs = b"time,valence,arousal,note\r\n0,0,0,caf\xe9\r\n"
    path.write_bytes(theirs)
    said = editor.save({"keys": told["keys"], "version": told["version"], "replace": True})
    assert path.with_name(said["kept"]).read_bytes() == theirs
    assert load_emotion(str(path)).keys[1].time_s == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "the page sent no keys"),
        ({"keys": 3}, "the page sent no keys"),
        ({"keys": []}, "the page: holds no keys"),
        ({"keys": [{"time": 0, "valence": 2, "arousal": 0}]}, "the page: key 1: valence is out of"),
        ({"keys": [{"time": float("nan"), "emotion": "sad"}]}, "the page: not a number: NaN"),
        ({"keys": [None]}, "the page: key 1: is not an object"),
    ],
)
def test_bad_keys_are_not_saved(editor: Editor, path: Path, body: Any, message: str) -> None:
    if isinstance(body, dict):
        body["version"] = editor.describe()["version"]
    with pytest.raises(EmotionError, match=message):
        editor.save(body)
    assert path.read_text() == CURVE


def test_keys_that_fall_on_one_frame_are_not_saved(editor: Editor, path: Path) -> None:
    path.write_text("frame,valence,arousal\n0,0,0\n")
    version = editor.describe()["version"]
    track = EmotionTrack((Key(0.0, 0.0, 0.0), Key(0.01, 1.0, 0.0)))
    keys = json.loads(write_json(track))
    with pytest.raises(EmotionError, match="two keys fall on one frame"):
        editor.save({"keys": keys, "version": version})


def start(folder: Path, sound: Path, *words: object) -> tuple[subprocess.Popen[str], str]:
    """Start the editor of c.csv as a process of its own; return it and its page's address."""
    command = [sys.executable, "-m", "keyface_cli", "emotion", "edit", "c.csv", "--no-browser"]
    child = subprocess.Popen(
        [*command, "-a", sound, *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    line = child.stderr.readline()
    found = re.search(r"editing c\.csv: (http://127\.0\.0\.1:\d+/\S+/) ", line)
    assert found, line
    return child, found[1]


def test_command_serves_until_it_is_closed(tmp_path: Path, tone_wav: Path) -> None:
    child, url = start(tmp_path, tone_wav)
    with urllib.request.urlopen(f"{url}sound.wav", timeout=60) as reply:
        assert len(reply.read()) == 44 + 2 * 16_000
    keys = [{"time": 0, "emotion": "calm"}]
    for path, body in (("save", {"keys": keys, "version": ""}), ("close", None)):
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        request = urllib.request.Request(url + path, data, headers)
        urllib.request.urlopen(request, timeout=60).close()
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "c.csv\n")
    assert load_emotion(str(tmp_path / "c.csv")).keys == (Key.named(0.0, "calm"),)
    assert os.listdir(tmp_path) == ["c.csv"]


def test_ctrl_c_ends_the_command(tmp_path: Path, tone_wav: Path) -> None:
    child, _ = start(tmp_path, tone_wav)
    child.send_signal(signal.SIGINT)
    assert "Traceback" not in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("port", "changed"), [("same", True), ("other", False)])
def test_killed_editor_loses_nothing(
    browser: Chrome, tmp_path: Path, tone_wav: Path, port: str, changed: bool
) -> None:
    """SIGKILL while a point is held: the next editor offers what was drawn, beside a newer file."""
    path = tmp_path / "c.csv"
    path.write_text("time,valence,arousal\n0,0,0\n0.5,0.5,-0.5\n")
    child, url = start(tmp_path, tone_wav)
    browser.get(url)
    wait_for(browser, "document.body.dataset.ready")
    drag(browser, (0.5, 0.5), (0.8, -0.8))
    canvas = browser.find_element(By.ID, "canvas")
    hand = ActionChains(browser, duration=20)
    hand.move_to_element_with_offset(canvas, *place(browser, 0, 0)).click_and_hold()
    hand.move_to_element_with_offset(canvas, *place(browser, 0, 0.4)).perform()
    wait_for(browser, "!settling && !draftTimer && drafted === snapshot()")
    browser.execute_async_script("drafting.then(arguments[0])")
    drawn = state(browser)
    child.kill()
    child.communicate(timeout=60)
    said = wait_for(browser, "byId('status').textContent")
    assert said == "keyface has ended; the draft is kept"
    ActionChains(browser).release().perform()
    browser.execute_script("saved = snapshot()")
    browser.get("about:blank")
    complaints(browser)
    if changed:
        path.write_text(THEIRS)
    number = re.findall(r":(\d+)/", url)[0] if port == "same" else 0
    child, url = start(tmp_path, tone_wav, "--port", number)
    browser.get(url)
    wait_for(browser, "document.body.dataset.ready && byId('recover').open")
    browser.find_element(By.ID, "recoverYes").click()
    assert state(browser) == drawn
    if changed:
        wait_for(browser, "byId('warning').classList.contains('open')")
        browser.find_element(By.ID, "mine").click()
        wait_for(browser, "byId('status').textContent.endsWith('c.other-1.csv')")
        assert path.with_name("c.other-1.csv").read_text() == THEIRS
    browser.find_element(By.ID, "done").click()
    wait_for(browser, "document.body.textContent.startsWith('Saved.')")
    assert child.communicate(timeout=60)[0] == "c.csv\n"
    kept = [(key.time_s, key.valence, key.arousal) for key in load_emotion(str(path)).keys]
    assert kept == [(key["time"], key["valence"], key["arousal"]) for key in drawn]
    assert sorted(os.listdir(tmp_path)) == (["c.csv", "c.other-1.csv"] if changed else ["c.csv"])


def test_a_curve_has_one_editor_at_a_time(main: Any, tmp_path: Path, tone_wav: Path) -> None:
    """The second one would write the first one's draft; a killed one stands in nobody's way."""
    child, _ = start(tmp_path, tone_wav)
    (tmp_path / "link.csv").symlink_to("c.csv")
    for name in ("c.csv", "link.csv"):
        code, out, err = main("emotion", "edit", tmp_path / name, "-a", tone_wav, "--no-browser")
        assert (code, out) == (1, "")
        assert f"{name}: is open in another editor: process {child.pid} on " in err.replace(
            "\n", ""
        )
    child.kill()
    child.communicate(timeout=60)
    assert (tmp_path / ".c.csv.lock").exists()
    child, _ = start(tmp_path, tone_wav)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert os.listdir(tmp_path) == ["link.csv"]


def test_a_folder_that_cannot_be_written_is_said_at_once(
    main: Any, tmp_path: Path, tone_wav: Path
) -> None:
    (tmp_path / ".c.csv.lock").mkdir()
    code, out, err = main("emotion", "edit", tmp_path / "c.csv", "-a", tone_wav, "--no-browser")
    assert (code, out) == (1, "")
    assert "cannot be written to" in err
