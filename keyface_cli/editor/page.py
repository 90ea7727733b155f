"""Edit a curve in the browser: the page, what it is told, how it saves, and what it never loses."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import replace
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from werkzeug.wrappers import Response

from keyface_cli.config import SAMPLE_RATE, SAMPLES_PER_FRAME
from keyface_cli.editor.worker import Worker, frames_of
from keyface_cli.emotion.load import read_styled
from keyface_cli.emotion.names import NAMED
from keyface_cli.emotion.objects import parse_json
from keyface_cli.emotion.plot import envelope
from keyface_cli.emotion.table import Style
from keyface_cli.emotion.track import EmotionTrack, Key
from keyface_cli.emotion.voice import Waveform, loudest_words, loudness, pauses
from keyface_cli.emotion.write import save_text, to_object, write_json, write_table
from keyface_cli.errors import EmotionError, KeyFaceError
from keyface_cli.files import replacing
from keyface_cli.jobs.plan import make_plan
from keyface_cli.output.formats import FORMATS
from keyface_cli.web.page import Page

logger = logging.getLogger(__name__)
_BINS_PER_S = 100  # of the sound's outline
_MOST_BINS = 60_000


class Editor:
    """A curve file, a sound and the page on which one is drawn over the other.

    Args:
        path: the CSV or JSON file; where there is none, the curve begins neutral, and the file is
            made when it is saved.
        waveform: (S,) at 16 kHz.
        sound: the recording as a WAV file, which the browser plays; parts of the video are made
            beside it.
        worker: samples keyframes of a portrait; None shows none.

    Raises:
        EmotionError: the file is no curve.
    """

    def __init__(
        self, path: Path, waveform: Waveform, sound: Path, worker: Worker | None = None
    ) -> None:
        self.path, self.draft = path, path.with_name(f"{path.name}.draft")
        self.saves = 0
        self._worker, self._parts = worker, 0
        level = loudness(waveform)
        self._sound_facts = {"pauses": pauses(level), "words": loudest_words(level)}
        self._sound = sound
        self._seconds = len(waveform) / SAMPLE_RATE
        self._frames = -(-len(waveform) // SAMPLES_PER_FRAME)
        self._envelope = _outline(waveform)
        self._style: Style | None = Style()
        if path.exists():
            self._style = read_styled(path)[1]
        elif path.suffix.lower() == ".json":
            self._style = None

    def page(self, port: int = 0) -> Page:
        """Return the page, ready to be served."""
        page = Page(
            _html(),
            get={"curve": lambda _: self.describe(), "version": lambda _: self._version()},
            post={
                "save": self.save,
                "keep": self.keep,
                "draft": self.save_draft,
                "close": lambda _: page.stop(),
            },
            files={"sound.wav": self._sound},
            port=port,
        )
        worker = self._worker
        if worker is not None:
            page.get |= {"strip": lambda _: worker.status(), "picture": self._picture}
            page.post |= {
                "strip": self.show,
                "part": lambda body: self._render_part(body, page),
                "all": lambda body: self._render_all(body, page),
                "cancel": lambda _: worker.cancel(),
            }
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
            **self._sound_facts,
            "output": None if self._worker is None else self._worker.plan.job.output.name,
            "draft": self._read_draft(),
            "names": {name: list(values) for name, values in NAMED.items()},
            "keys": [_as_page_has_it(key) for key in keys],
        }

    def save(self, body: Any) -> dict[str, Any]:
        """Write the keys that the page has, in the way the file was written before.

        Raises:
            EmotionError: the keys are no curve, or the file has been changed by someone else since
                the page read it.
        """
        text = self._written(_track(body))
        kept = None
        if body.get("version") != self._version():
            if not body.get("replace"):
                raise EmotionError(
                    f"{self.path}: has been changed elsewhere since",
                    "choose which one to go on with",
                )
            if self.path.exists():
                kept = self._free("other")
                with replacing(kept, EmotionError) as part:
                    shutil.copyfile(self.path, part)
        save_text(self.path, text, force=True)
        self.draft.unlink(missing_ok=True)
        self.saves += 1
        return {"version": self._version(), "kept": kept and kept.name}

    def keep(self, body: Any) -> dict[str, Any]:
        """Write the keys that the page has beside the file, and return what the file has.

        Raises:
            EmotionError: the keys are no curve, or cannot be written.
        """
        path = self._free("mine")
        save_text(path, self._written(_track(body)), force=False)
        self.draft.unlink(missing_ok=True)
        return {**self.describe(), "kept": path.name}

    def save_draft(self, body: Any) -> None:
        """Keep what is drawn and not saved, beside the file; no keys remove the draft.

        Raises:
            EmotionError: the keys are no curve, or cannot be written.
        """
        if isinstance(body, dict) and body.get("keys") is None:
            self.draft.unlink(missing_ok=True)
            return
        _track(body)
        said = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "version": body.get("version")}
        save_text(self.draft, json.dumps({**said, "keys": body["keys"]}), force=True)

    def _read_draft(self) -> dict[str, Any] | None:
        """What an editor that was ended had not saved; None where that is nothing."""
        try:
            found = json.loads(self.draft.read_text("utf-8"))
            _track(found)
            return {name: found[name] for name in ("keys", "time", "version")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EmotionError) as error:
            logger.warning("%s: the draft cannot be read: %s", self.draft, error)
            return None

    def _written(self, track: EmotionTrack) -> str:
        style = self._style
        return write_json(track) if style is None else write_table(track, style)

    def _free(self, word: str) -> Path:
        """A name beside the file that nobody has."""
        names = (f"{self.path.stem}.{word}-{n}{self.path.suffix}" for n in count(1))
        return next(p for p in map(self.path.with_name, names) if not os.path.lexists(p))

    # -- with a portrait -----------------------------------------------------------------------

    def show(self, body: Any) -> dict[str, Any]:
        """Have the keyframes of the keys that the page has, and of the saved ones where it asks.

        Raises:
            EmotionError: the keys are no curve.
        """
        worker = self._worker
        assert worker is not None
        tracks = {"drawn": _track(body)}
        if body.get("saved"):
            tracks["saved"] = _track({"keys": body["saved"]})
        shown = [k for k in body.get("shown", []) if isinstance(k, int)]
        strength, N = worker.plan.job.emotion_strength, len(worker.inputs.emotion)
        curves = {name: one.scaled(strength).sample(N) for name, one in tracks.items()}
        worker.want(curves, shown, int(body.get("cursor", 0)))
        return worker.status()

    def _picture(self, fields: dict[str, str]) -> Response:
        assert self._worker is not None
        found = self._worker.picture(fields.get("name", ""))
        if found is None:
            raise KeyFaceError("this keyframe is not kept any more")
        return Response(found, mimetype="image/png")

    def _render_part(self, body: Any, page: Page) -> dict[str, Any]:
        assert self._worker is not None
        track = _track(body)
        frames = frames_of(float(body["start"]), float(body["end"]), self._frames)
        self._parts += 1
        path = self._sound.with_name(f"part-{self._parts}.mp4")
        page.files[path.name] = path
        return self._worker.render_part(track, frames, path).describe()

    def _render_all(self, body: Any, page: Page) -> dict[str, Any]:
        """Start `animate` with the curve as it is saved."""
        worker = self._worker
        assert worker is not None
        job, name = worker.plan.job, str(body.get("name", ""))
        if Path(name).name != name or Path(name).suffix.lower() not in FORMATS:
            raise KeyFaceError(f"{name}: no name of a video", "end it in .mp4, .mov, .webm or .gif")
        wanted = replace(
            job,
            output=job.output.with_name(name),
            emotion=str(self.path),
            force=bool(body.get("replace")),
            restart=bool(body.get("restart")),
        )
        render = worker.render_all(make_plan(wanted))
        page.files[name] = wanted.output
        return render.describe()

    def _version(self) -> str:
        """Return what the file's content is known by; empty where there is none."""
        if not self.path.exists():
            return ""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def _html() -> str:
    """The page with its scripts and its style in it, so that it is one file to the browser."""
    room = files("keyface_cli.editor")
    html = room.joinpath("page.html").read_text("utf-8")
    for name in ("curve.js", "strip.js", "files.js"):
        script = room.joinpath(name).read_text("utf-8")
        html = html.replace(f'<script src="{name}"></script>', f"<script>{script}</script>")
    style = room.joinpath("page.css").read_text("utf-8")
    return html.replace('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>")


def _track(body: Any) -> EmotionTrack:
    """The curve of the keys that a page has sent.

    Raises:
        EmotionError: it has sent none.
    """
    if not isinstance(body, dict) or not isinstance(body.get("keys"), list):
        raise EmotionError("the page sent no keys")
    return parse_json(json.dumps([_as_file_has_it(key) for key in body["keys"]]), "the page")[0]


def _outline(waveform: Waveform) -> list[float]:
    """Return the largest amplitude of each hundredth of a second, or of longer parts."""
    bins = max(1, min(_MOST_BINS, int(len(waveform) / SAMPLE_RATE * _BINS_PER_S)))
    return [round(peak, 3) for peak in envelope(waveform[:], bins).tolist()]


def _as_page_has_it(key: Key) -> dict[str, Any]:
    values = {"time": key.time_s, "valence": key.valence, "arousal": key.arousal, "ease": key.ease}
    return values | to_object(key)


def _as_file_has_it(key: Any) -> Any:
    """Return a key with its name or its values: the page has both."""
    if isinstance(key, dict) and key.get("emotion"):
        return {name: v for name, v in key.items() if name not in ("valence", "arousal")}
    return key
