"""How fast the editor is, without a browser: its program is run, and its page's questions asked."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keyface_cli.config import FPS, KEYFRAME_STEP
from keyface_cli.errors import KeyFaceError
from keyface_cli.stages.timeline import KEYFRAMES_PER_CLIP, Timeline

EDITS = 5
_TIMEOUT_S = 60.0  # of one answer
_POLL_S = 0.01


def measure(portrait: Path, audio: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """Start the editor with and without a portrait, and change a curve as its page does.

    The curve is changed within its first 6 s, but for the beginning, which reaches all keyframes of
    the first clip of 6.8 s and of no other one.

    Args:
        portrait: a picture.
        audio: a recording, of which at most the first 10 s are taken.
        words: options of `keyface emotion edit`, such as `--device`.

    Returns:
        "page_s" and "page_with_portrait_s", from the start of the program to the page's address;
        "strip_s", to all keyframes, "keyframes" of them; "first_keyframe_s" and "clip_s", of each
        of five changes, from the question to the first picture and to the last; "device",
        "dtype"; "machine" and its "load", the processes that ran before the editor did.

    Raises:
        KeyFaceError: the editor does not start, or fails at its work.
    """
    threads = os.cpu_count() or 1
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {threads} threads",
        "load": round(os.getloadavg()[0], 1),
    }
    given = ["--audio", str(audio.resolve()), "--duration", "10"]
    with _editing(given) as editor:
        report["page_s"] = editor.waited
    with _editing([*given, "--portrait", str(portrait.resolve()), *words]) as editor:
        report["page_with_portrait_s"] = editor.waited
        frames = editor.ask("curve")["frames"]
        count = Timeline(frames).num_keyframes
        status = editor.show(0.0, frames)[-1]
        report |= {"strip_s": time.perf_counter() - editor.started, "keyframes": count}
        report |= {name: status[name] for name in ("device", "dtype")}
        spent = [editor.show((edit + 1) / 10, frames)[:2] for edit in range(EDITS)]
    report["first_keyframe_s"], report["clip_s"] = map(list, zip(*spent, strict=True))
    return report


class _Editor:
    """The program at work, asked as its page asks."""

    def __init__(self, url: str, started: float) -> None:
        self.url, self.started = url, started
        self.waited = time.perf_counter() - started

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the answer to a question, a GET where there is no body; bytes of a picture."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            content = reply.read()
        return json.loads(content) if reply.headers.get_content_type() != "image/png" else content

    def show(self, valence: float, frames: int) -> tuple[float, float, dict[str, Any]]:
        """Change the curve, and wait for the keyframes of it.

        Returns:
            Seconds until the first of them is here, and until all are; what the page is told then.
        """
        span = min(frames / FPS, 6.0)
        keys = [
            {"time": share * span, "valence": value, "arousal": 0, "ease": "linear"}
            for share, value in ((0, 0), (0.15, 0), (0.5, valence), (0.85, 0))
        ]
        shown = list(range(Timeline(frames).num_keyframes))
        wanted = {"keys": keys, "shown": shown, "cursor": int(span / 2 * FPS / KEYFRAME_STEP)}
        asked, first = time.perf_counter(), 0.0
        status = self.ask("strip", wanted)
        while not first or not status["ready"] or status["missing"]:
            if status["error"]:
                raise KeyFaceError(f"the editor failed: {status['error']}")
            rows = status["strips"].get("drawn", [])
            there = [name for k, name in rows if name and k < KEYFRAMES_PER_CLIP]
            if there and not first:
                self.ask(f"picture?name={there[0]}")
                first = time.perf_counter() - asked
            time.sleep(_POLL_S)
            status = self.ask("strip")
        return first, time.perf_counter() - asked, status


@contextmanager
def _editing(words: Sequence[str]) -> Iterator[_Editor]:
    """Run the editor on a curve that is not kept."""
    command = [sys.executable, "-m", "keyface_cli", "emotion", "edit", "curve.csv", "--no-browser"]
    with tempfile.TemporaryDirectory(prefix="keyface-") as folder:
        started = time.perf_counter()
        child = subprocess.Popen(
            [*command, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            yield _Editor(_address(child), started)
        finally:
            child.terminate()
            child.communicate()


def _address(child: subprocess.Popen[str]) -> str:
    """Wait for the line that holds the page's address."""
    assert child.stderr is not None
    said = []
    for line in child.stderr:
        if found := re.search(r"http://\S+/", line):
            return found[0]
        said.append(line.strip())
    raise KeyFaceError(f"the editor did not start: {' '.join(said)}")
