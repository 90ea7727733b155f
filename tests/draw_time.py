"""How long the editor's page takes to draw: `python tests/draw_time.py [PORTRAIT] [SECONDS]`.

Edits a curve over a sound of speech in a headless browser, the keyframes under it where a portrait
is given, and prints what the page's own code took of each step, in milliseconds: the answer to the
hand, the drawing, and the layout that the drawing asks for.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
from browser import open_browser, wait_for
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By

from keyface_cli.commands.examples import find_examples

KEYS = 40
MOVES = 200
# every callback of the page is timed, with the layout that it leaves to be done
WATCH = """
window.spent = []; window.long = [];
const timed = (kind, call) => function (...given) {
  const start = performance.now();
  try { return call.apply(this, given); } finally {
    document.body.offsetHeight;
    spent.push([kind, performance.now() - start]);
  }
};
for (const name of ["requestAnimationFrame", "setTimeout"]) {
  const own = window[name];
  window[name] = (call, ...rest) => own.call(window, timed(name, call), ...rest);
}
for (const name of ["onpointermove", "onpointerdown", "onpointerup", "onwheel"])
  canvas[name] = timed(name, canvas[name]);
new PerformanceObserver(list => long.push(...list.getEntries().map(e => e.duration)))
  .observe({ type: "longtask" });
"""
MOVE = """
const [moves, done] = arguments, box = canvas.getBoundingClientRect(), frame = window.ownFrame;
let i = 0;
function step() {
  const x = box.left + box.width * (.5 + .004 * Math.sin(i / 9)), y = box.top + box.height / 2
    * (1 + .8 * Math.sin(i / 7));
  canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, pointerId: 1 }));
  if (++i < moves) frame(step); else frame(() => setTimeout(done, 300));
}
step();
"""
ZOOM = """
const [moves, done] = arguments, frame = window.ownFrame;
let i = 0;
function step() {
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: i < moves / 2 ? -20 : 20, clientX: 600 }));
  if (++i < moves) frame(step); else frame(() => setTimeout(done, 300));
}
step();
"""


def measure(browser: Chrome, url: str) -> dict[str, Any]:
    """Open the page, drag a point, play and zoom; return the slowest and the middle of each."""
    browser.get(url)
    wait_for(browser, "document.body.dataset.ready")
    if browser.execute_script("return file.output !== null"):
        wait_for(browser, "told && told.ready")
    browser.set_script_timeout(300)
    browser.execute_script("window.ownFrame = requestAnimationFrame.bind(window)")
    browser.execute_script(WATCH)
    canvas = browser.find_element(By.ID, "canvas")
    report: dict[str, Any] = {}
    middle = browser.execute_script(f"return toY(keys[{KEYS // 2}].valence) - height() / 2")
    x = browser.execute_script(f"return toX(keys[{KEYS // 2}].time) - width() / 2")
    hand = ActionChains(browser, duration=10)
    hand.move_to_element_with_offset(canvas, round(x), round(middle)).click_and_hold().perform()
    report["drag"] = told(browser, lambda: browser.execute_async_script(MOVE, MOVES))
    report["let go"] = told(browser, ActionChains(browser).release().perform)
    report["zoom"] = told(browser, lambda: browser.execute_async_script(ZOOM, MOVES))
    report["play"] = told(
        browser,
        lambda: browser.execute_async_script(
            "play(); setTimeout(() => { play(); arguments[0](); }, 3000)"
        ),
    )
    browser.execute_script("saved = snapshot()")
    return report


def told(browser: Chrome, act: Any) -> dict[str, Any]:
    """Milliseconds of the page's callbacks while something is done."""
    browser.execute_script("spent.length = long.length = 0")
    act()
    spent, long = browser.execute_script("return [spent, long]")
    kinds: dict[str, list[float]] = {}
    for kind, time in spent:
        kinds.setdefault(kind, []).append(time)
    return {
        "slowest": round(max(time for _, time in spent), 1),
        "by_kind": {
            kind: [len(times), round(sorted(times)[len(times) // 2], 2), round(max(times), 1)]
            for kind, times in kinds.items()
        },
        "long_tasks": [len(long), round(max(long, default=0))],
    }


def main() -> None:
    portrait = sys.argv[1] if len(sys.argv) > 1 else ""
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound, rate = soundfile.read(find_examples() / "speech.wav")
        count = round(seconds * rate)
        long = sound[[i % len(sound) for i in range(count)]]
        soundfile.write(folder / "speech.wav", long, rate)
        rows = [f"{(k + 0.5) * seconds / KEYS:.2f},{k % 7 / 7:.2f},{k % 5 / 5 - 0.5:.2f}"
                for k in range(KEYS)]  # fmt: skip
        (folder / "curve.csv").write_text("\n".join(["time,valence,arousal", *rows]))
        command = [sys.executable, "-m", "keyface_cli", "emotion", "edit", "curve.csv"]
        command += ["--audio", "speech.wav", "--no-browser"]
        command += ["--portrait", str(Path(portrait).resolve())] if portrait else []
        with subprocess.Popen(command, cwd=name, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            url = None
            while url is None:
                url = re.search(r"http://127\.0\.0\.1:\d+/\S+/", child.stderr.readline())
            try:
                with open_browser() as browser:
                    report = measure(browser, url[0])
            finally:
                child.terminate()
    said = {"seconds": seconds, "keys": KEYS, "machine": platform.processor() or platform.machine()}
    sys.stdout.write(json.dumps({**said, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
