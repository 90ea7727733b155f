"""Edit a curve in the browser: the page, what it is told, and how it saves."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from keyface_cli.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from keyface_cli.emotion.load import read_styled
from keyface_cli.emotion.names import NAMED
from keyface_cli.emotion.objects import parse_json
from keyface_cli.emotion.table import Style
from keyface_cli.emotion.track import Key
from keyface_cli.emotion.voice import Waveform
from keyface_cli.emotion.write import save_text, to_object, write_json, write_table
from keyface_cli.errors import EmotionError
from keyface_cli.web.page import LOCAL, Page

_BINS_PER_S = 100  # of the sound's outline
_MOST_BINS = 60_000


class Editor:
    """A curve file, a sound and the page on which one is drawn over the other.

    Args:
        path: the CSV or JSON file; where there is none, the curve begins neutral, and the file is
            made when it is saved.
        waveform: (S,) at 16 kHz.
        sound: the recording as a WAV file, which the browser plays.

    Raises:
        EmotionError: the file is no curve.
    """

    def __init__(self, path: Path, waveform: Waveform, sound: Path) -> None:
        self.path = path
        self.saves = 0
        self._sound = sound
        self._seconds = len(waveform) / SAMPLE_RATE
        self._frames = -(-len(waveform) // SAMPLES_PER_FRAME)
        self._envelope = _outline(waveform)
        self._style: Style | None = Style()
        if path.exists():
            self._style = read_styled(path)[1]
        elif path.suffix.lower() == ".json":
            self._style = None

    def page(self, host: str = LOCAL, port: int = 0) -> Page:
        """Return the page, ready to be served."""
        html = files("keyface_cli.emotion").joinpath("editor.html").read_text("utf-8")
        page = Page(
            html,
            get={"curve": lambda _: self.describe()},
            post={"save": self.save, "close": lambda _: page.stop()},
            files={"sound.wav": self._sound},
            host=host,
            port=port,
        )
        return page

    def describe(self) -> dict[str, Any]:
        """Return the curve as the file has it now, the sound's outline and the named emotions."""
        keys: tuple[Key, ...] = (Key.named(0.0, "neutral"),)
        if self.path.exists():
            track, self._style = read_styled(self.path)
            keys = track.keys
        return {
            "name": self.path.name,
            "version": self._version(),
            "seconds": self._seconds,
            "frames": self._frames,
            "envelope": self._envelope,
            "names": {name: list(values) for name, values in NAMED.items()},
            "keys": [_as_page_has_it(key) for key in keys],
        }

    def save(self, body: Any) -> dict[str, Any]:
        """Write the keys that the page has, in the way the file was written before.

        Raises:
            EmotionError: the keys are no curve, or the file has been changed by someone else since
                the page read it.
        """
        if not isinstance(body, dict) or not isinstance(body.get("keys"), list):
            raise EmotionError("the page sent no keys")
        if body.get("version") != self._version():
            raise EmotionError(
                f"{self.path}: has been changed elsewhere since", "reload the page to see it"
            )
        track = parse_json(json.dumps([_as_file_has_it(key) for key in body["keys"]]), "the page")[
            0
        ]
        style = self._style
        text = write_json(track) if style is None else write_table(track, style)
        save_text(self.path, text, force=True)
        self.saves += 1
        return {"version": self._version()}

    def _version(self) -> str:
        """Return what the file's content is known by; empty where there is none."""
        if not self.path.exists():
            return ""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def _outline(waveform: Waveform) -> list[float]:
    """Return the largest amplitude of each hundredth of a second, or of longer parts."""
    bins = max(1, min(_MOST_BINS, int(len(waveform) / SAMPLE_RATE * _BINS_PER_S)))
    edges = np.linspace(0, len(waveform), bins + 1).astype(int).tolist()
    peaks = [float(np.abs(waveform[a:b]).max()) for a, b in pairwise(edges)]
    return [round(peak, 3) for peak in peaks]


def _as_page_has_it(key: Key) -> dict[str, Any]:
    values = {"time": key.time_s, "valence": key.valence, "arousal": key.arousal, "ease": key.ease}
    return values | to_object(key)


def _as_file_has_it(key: Any) -> Any:
    """Return a key with its name or its values: the page has both."""
    if isinstance(key, dict) and key.get("emotion"):
        return {name: v for name, v in key.items() if name not in ("valence", "arousal")}
    return key
