"""How a training shows its progress: a bar with the latest losses, or now and then a line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from keyface_cli.commands import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 30.0
SHOWN = 4  # numbers beside the bar


class TrainingDisplay:
    """A context manager; calling it is `training.loop.Report`.

    Args:
        name: of what is trained.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._begun: tuple[float, int] | None = None
        self._said = 0.0

    def __enter__(self) -> TrainingDisplay:
        if console.stderr().is_terminal and not console.state.quiet:
            self._bar = _make_bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, update: int, total: int, values: Mapping[str, float]) -> None:
        """Show that `update` of `total` updates are done, and the latest numbers of the log."""
        now = time.monotonic()
        if self._begun is None:  # the first update, which may have compiled, is no measure
            self._begun, self._said = (now, update), now
        text = "  ".join(f"{key} {value:.4g}" for key, value in list(values.items())[:SHOWN])
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self.name, total=total, completed=update, text="")
            self._bar.update(self._task, completed=update, text=text)
        elif now - self._said >= LINE_EVERY_S or update >= total:
            self._said = now
            begun, first = self._begun
            rate = (update - first) / (now - begun) if now > begun else 0.0
            speed = f", {rate:.2f} updates/s, {(total - update) / rate:.0f} s left" if rate else ""
            console.say(f"{self.name}: {update}/{total}{speed}  {text}".rstrip())


def _make_bar() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console.stderr(),
        speed_estimate_period=120,
    )
