"""matplotlib, which draws curves and reports and comes with an extra."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from keyface_cli.errors import KeyFaceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Say so before any work is done where plots could not be drawn after it.

    Raises:
        KeyFaceError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise KeyFaceError(
            "plots are drawn by matplotlib, which is not installed", "pip install 'keyface[plot]'"
        )


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which no window shows.

    Raises:
        KeyFaceError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
