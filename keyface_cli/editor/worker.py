"""The thread that samples what the page shows: keyframes of the newest curve, and videos.

There is no queue of edits: the worker knows what is wanted now, and looks again after every picture
and every update of a clip, so that a newer edit overtakes an older one wherever that is. A video
begins after the keyframe in the making; what is drawn meanwhile is shown between its pieces.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.checkpoints.checkpoint import Checkpoint
from keyface_cli.config import FPS
from keyface_cli.editor.strip import Curve, Strip, StripStore
from keyface_cli.emotion.track import EmotionTrack
from keyface_cli.errors import KeyFaceError
from keyface_cli.jobs.plan import JobInputs, Plan
from keyface_cli.jobs.runner import ComputeOptions, Listener, Runner
from keyface_cli.jobs.signing import mark_of
from keyface_cli.output.formats import FORMATS
from keyface_cli.stages.timeline import KEYFRAMES_PER_CLIP, Timeline

if TYPE_CHECKING:
    from keyface_cli.options import Progress

logger = logging.getLogger(__name__)
_KEPT_BYTES = 256 * 2**20  # of pictures
_JOIN_S = 10.0


class _Overtaken(Exception):
    """What a clip is sampled for is not wanted any more."""


class _Cancelled(Exception):
    """A video is not wanted any more."""


@dataclass
class Render:
    """A video that the page has asked for.

    Args:
        path: of the result.
        make: makes it, told where to report.
        part: whether it is a part, which a newer part replaces.
    """

    path: Path
    make: Callable[[Progress], object]
    part: bool
    state: str = "waiting"  # running, done, failed, cancelled
    share: float = 0.0
    error: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def describe(self) -> dict[str, Any]:
        """Return what the page is told."""
        names = ("part", "state", "share", "error")
        return {"name": self.path.name, **{name: getattr(self, name) for name in names}}


class Worker:
    """Samples keyframes and makes videos in a thread; use it as a context manager.

    Args:
        plan: the job, whose curve is replaced by what is drawn.
        inputs: what its files hold.
        checkpoint: the model.
        compute: where and how.
        is_default: whether nobody asked for this model by name.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: JobInputs,
        checkpoint: Checkpoint,
        compute: ComputeOptions,
        *,
        is_default: bool = False,
    ) -> None:
        self.plan, self.inputs = plan, inputs
        self.finished: list[Path] = []  # whole videos
        listener = Listener(self._report_render)
        self._runner = Runner(checkpoint, compute, listener, is_default=is_default)
        self._strip: Strip | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._curves: dict[str, Curve] = {}
        self._shown: tuple[int, ...] = ()
        self._cursor = 0
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._sampling: tuple[int, Curve] | None = None
        self._waiting: list[Render] = []
        self._render: Render | None = None  # the newest
        self._running: Render | None = None
        self._clip_s = 0.0
        self._place = {"device": "", "dtype": ""}
        self._error = ""
        self._thread = threading.Thread(target=self._work, name="keyframes", daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)

    # -- what handlers of the page call ---------------------------------------------------------

    def want(self, curves: Mapping[str, Curve], shown: Sequence[int], cursor: int) -> None:
        """Have keyframes ready, in place of what was wanted before.

        Args:
            curves: (N, 2) by the name of the strip, the most urgent first.
            shown: numbers of the keyframes that are seen.
            cursor: the keyframe that is most urgent, with its clip.
        """
        count = Timeline(len(self.inputs.emotion)).num_keyframes
        with self._changed:
            self._curves, self._error = dict(curves), ""
            self._shown = tuple(k for k in shown if 0 <= k < count)
            self._cursor = cursor
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """Return how far everything is, for the page."""
        with self._changed:
            strip, render = self._strip, self._render
            strips: dict[str, list[list[Any]]] = {}
            missing = 0
            for name, curve in self._curves.items() if strip is not None else ():
                assert strip is not None
                names = [strip.name_of(k, curve) for k in self._shown]
                there = [name if name in self._pictures else None for name in names]
                missing += there.count(None)
                strips[name] = [list(row) for row in zip(self._shown, there, strict=True)]
            return {
                "ready": strip is not None,
                "error": self._error,
                "missing": missing,
                "of": len(self._shown) * len(self._curves),
                "clip_s": round(self._clip_s, 2),
                **self._place,
                "strips": strips,
                "render": None if render is None else render.describe(),
            }

    def picture(self, name: str) -> bytes | None:
        """Return a keyframe as PNG, by the name that `status` gave it; None where it is gone."""
        with self._changed:
            return self._pictures.get(name)

    def render_part(self, track: EmotionTrack, frames: range, path: Path) -> Render:
        """Make some frames of the video under a curve; a newer part replaces an older one.

        Args:
            track: the curve as it is drawn.
            frames: which.
            path: FILE.mp4 to make.
        """
        curve = track.scaled(self.plan.job.emotion_strength)
        inputs = self.inputs._replace(emotion=curve.sample(len(self.inputs.emotion)), curve=curve)
        job = replace(self.plan.job, output=path, force=True)
        plan = replace(self.plan, job=job, kind=FORMATS[".mp4"], curve=track)

        def make(progress: Progress) -> None:
            from keyface_cli.jobs.make_video import make_part

            assert self._strip is not None
            pipeline = self._runner.load(encoders=inputs.features is None)
            store = StripStore(self._strip, inputs.emotion)

            def report(stage: str, done: int, total: int) -> None:
                if stage == "decode":
                    done, total = max(0, done - frames.start), len(frames)
                progress(stage, done, total)

            make_part(plan, inputs, pipeline, frames, store, report)

        return self._put(Render(path, make, part=True))

    def render_all(self, plan: Plan) -> Render:
        """Make the whole video, as `animate` does.

        Raises:
            KeyFaceError: one is being made already.
        """
        return self._put(Render(plan.job.output, lambda _: self._runner.run(plan), part=False))

    def cancel(self) -> None:
        """Give up the video that is being made."""
        with self._changed:
            if self._render is not None:
                self._render.cancelled.set()

    def _put(self, render: Render) -> Render:
        with self._changed:
            if self._render is not None and self._render.state in ("waiting", "running"):
                if not self._render.part:
                    raise KeyFaceError("the video is being made", "wait for it, or cancel it")
                self._render.cancelled.set()
            self._waiting = [render]
            self._render = render
            self._changed.notify_all()
        return render

    # -- in the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            pipeline = self._runner.load(encoders=self.inputs.features is None)
            strip = Strip(self.inputs, pipeline, self.plan.job.generation, self._report_clip)
        except Exception as error:
            self._fail(error)
            return
        place = {"device": str(pipeline.device), "dtype": str(pipeline.dtype)}
        with self._changed:
            self._strip = strip
            self._place = {name: text.removeprefix("torch.") for name, text in place.items()}
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._next()):
                    self._changed.wait()
                if self._stopping:
                    return
            self._show_all()
            with self._changed:
                render = self._waiting.pop() if self._waiting else None
            if render is not None:
                self._make(render)

    def _show_all(self) -> None:
        """Sample and decode until nothing that is wanted is missing, or a video is to begin."""
        while True:
            with self._changed:
                begins = bool(self._waiting) and self._running is None
                found = None if self._stopping or begins else self._next()
            if found is None:
                return
            try:
                self._show(*found)
            except _Overtaken:
                continue
            except Exception as error:
                self._fail(error)
                return

    def _next(self) -> tuple[int, Curve] | None:
        """The most urgent keyframe that is missing: in the clip under the cursor, nearest to it."""
        if self._strip is None or self._error:
            return None
        here = self._cursor // KEYFRAMES_PER_CLIP

        def far(keyframe: int) -> tuple[bool, int]:
            return keyframe // KEYFRAMES_PER_CLIP != here, abs(keyframe - self._cursor)

        for curve in self._curves.values():
            for keyframe in sorted(self._shown, key=far):
                if self._strip.name_of(keyframe, curve) not in self._pictures:
                    return keyframe, curve
        return None

    def _show(self, keyframe: int, curve: Curve) -> None:
        from PIL import Image

        from keyface_cli.editor.picture import png_info

        assert self._strip is not None
        clip = keyframe // KEYFRAMES_PER_CLIP
        if not self._strip.has(clip, curve):
            self._sampling = clip, curve
            started = time.perf_counter()
            try:
                self._strip.latents(clip, curve)
            finally:
                self._sampling = None
            self._clip_s = time.perf_counter() - started
        pixels = self._strip.picture(keyframe, curve)
        data = io.BytesIO()
        info = png_info(mark_of(self.plan.job))
        Image.fromarray(pixels).save(data, "png", compress_level=1, pnginfo=info)
        with self._changed:
            self._pictures[self._strip.name_of(keyframe, curve)] = data.getvalue()
            size = sum(map(len, self._pictures.values()))
            while size > _KEPT_BYTES and len(self._pictures) > 2 * len(self._shown):
                size -= len(self._pictures.popitem(last=False)[1])

    def _report_clip(self, stage: str, done: int, total: int) -> None:
        """End a clip whose curve has been changed meanwhile."""
        if self._sampling is None or stage != "keyframes":
            return
        clip, curve = self._sampling
        assert self._strip is not None
        place = clip * KEYFRAMES_PER_CLIP
        wanted = {self._strip.name_of(place, one) for one in self._curves.values()}
        if self._stopping or self._strip.name_of(place, curve) not in wanted:
            raise _Overtaken

    def _report_render(self, stage: str, done: int, total: int) -> None:
        """Note how far a video is, and show between two pieces of it what was drawn meanwhile."""
        render = self._running
        if self._stopping or render is None or render.cancelled.is_set():
            raise _Cancelled
        if stage == "decode":  # here no network is at work
            render.share = min(1.0, done / max(1, total))
            self._show_all()

    def _make(self, render: Render) -> None:
        render.state, self._running = "running", render
        try:
            render.make(self._report_render)
        except _Cancelled:
            render.state = "cancelled"
        except Exception as error:
            render.error, render.state = _said(error), "failed"
        else:
            render.share, render.state = 1.0, "done"
            if not render.part:
                self.finished.append(render.path)
        finally:
            self._running = None

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = _said(error)


def _said(error: Exception) -> str:
    """What a person is told of an error."""
    if isinstance(error, KeyFaceError):
        return "; ".join(filter(None, (str(error), error.hint)))
    logger.exception("the editor's worker failed")
    return f"unexpected {type(error).__name__}: {error}"


def frames_of(start_s: float, end_s: float, count: int) -> range:
    """Return the frames of a part of a video of `count` frames, one at least."""
    first = min(count - 1, max(0, round(start_s * FPS)))
    return range(first, min(count, max(first + 1, round(end_s * FPS))))
