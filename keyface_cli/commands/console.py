"""What the commands say on stderr: notices, errors, warnings and progress; stdout is the result's.

rich is imported where it is used, and leaves out colour where `NO_COLOR` asks for that.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from keyface_cli.jobs.runner import Listener

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from keyface_cli.options import Progress

_STYLES = {"error": "bold red", "warning": "yellow", "hint": "cyan"}
# stage of `options.Progress` -> what its bar is called, what it counts
STAGES = {
    "audio": ("audio", "frames"),
    "keyframes": ("keyframes", "keyframes"),
    "interpolation": ("interpolation", "frames"),
    "decode": ("decoding", "frames"),
    "measure": ("measuring", "frames"),
    "videos": ("preparing", "videos"),
}
_LINE_EVERY_S = 10.0  # between the plain lines of one stage


@dataclass
class State:
    """How talkative this run is; `set_up` and `set_quiet` write it."""

    debug: bool = False
    quiet: bool = False


state = State()


@cache
def stderr() -> Console:
    """Return the console of stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def report(kind: str, message: str) -> None:
    """Write one line, `kind: message`, with line breaks in the message made spaces.

    Args:
        kind: "error", "warning" or "hint".
        message: without a final full stop.
    """
    from rich.text import Text

    line = " ".join(message.split())
    stderr().print(Text.assemble((f"{kind}:", _STYLES[kind]), " ", line))


def say(message: str) -> None:
    """Write a notice, unless `--quiet`."""
    if not state.quiet:
        stderr().print(message, markup=False)


def set_quiet() -> None:
    """Keep notices and progress to ourselves from now on; warnings and errors are still said."""
    state.quiet = True


def waiting(message: str) -> AbstractContextManager[object]:
    """Show on a terminal that something takes its time, as long as the context lasts."""
    if state.quiet or not stderr().is_terminal:
        return nullcontext()
    return stderr().status(message)


class Terminal(Listener):
    """Tells the person at the terminal what a runner does."""

    def say(self, line: str) -> None:
        """Write a notice, unless `--quiet`."""
        say(line)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Show that something takes its time."""
        return waiting(what)

    def progress(self) -> AbstractContextManager[Progress]:
        """Show how far each stage is."""
        return StageProgress()


class _Handler(logging.Handler):
    """Log records as lines of the console, above a progress display where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            report("warning", record.getMessage())
        else:
            stderr().print(record.getMessage(), markup=False, style="dim")


def set_up(*, verbose: bool, debug: bool) -> None:
    """Send the log to stderr and silence the libraries, unless `debug`.

    Args:
        verbose: say what our modules log as information too.
        debug: say everything, that of other libraries included.
    """
    state.debug, state.quiet = debug, False
    ours = logging.getLogger("keyface_cli")
    ours.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    root = logging.getLogger()
    for logger in (ours, root):
        for handler in [h for h in logger.handlers if isinstance(h, _Handler)]:
            logger.removeHandler(handler)
    (root if debug else ours).addHandler(_Handler())
    if not debug:
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")


class StageProgress:
    """Progress of stages: bars on a terminal, now and then a line elsewhere.

    A context manager; calling it is `options.Progress`.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> StageProgress:
        if stderr().is_terminal and not state.quiet:
            self._bars = _make_bars(stderr())
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` units of a stage are ready, and a few words beside them."""
        name, unit = STAGES.get(stage, (stage, "updates"))
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(name, total=total, unit=unit, text="")
            self._bars.update(self._tasks[stage], completed=done, total=total, text=text)
        elif not state.quiet:
            self._write_line(stage, f"{name}: {done}/{total} {unit}", (done, total), text)

    def _write_line(self, stage: str, line: str, reached: tuple[int, int], text: str) -> None:
        now, (done, total) = time.perf_counter(), reached
        begun, first = self._begun.setdefault(stage, (now, done))
        last = self._said.setdefault(stage, now)
        if last == math.inf or (done < total and now - last < _LINE_EVERY_S):
            return
        self._said[stage] = now if done < total else math.inf  # it is finished
        unit = line.rpartition(" ")[2]
        rate = (done - first) / (now - begun) if now > begun else 0.0
        if rate:
            line += f", {rate:.{1 if rate >= 1 else 3}f} {unit}/s"
        if done < total and rate:
            line += f", {(total - done) / rate:.0f} s left"
        say(f"{line}  {text}".rstrip())


def _make_bars(console: Console) -> Bars:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")

    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        SpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[text]}"),
        console=console,
        speed_estimate_period=300,  # seconds: a step of a large model may take half a minute
    )
