"""keyface: a portrait and a recording become a video whose face talks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyface_cli.pipeline import KeyFacePipeline

__all__ = ["KeyFacePipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the pipeline, and torch with it, when it is first asked for (PEP 562)."""
    if name == "KeyFacePipeline":
        from keyface_cli.pipeline import KeyFacePipeline

        return KeyFacePipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
