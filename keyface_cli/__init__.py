"""keyface: a portrait and a recording become a video whose face talks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keyface_cli.version import __version__

if TYPE_CHECKING:
    from keyface_cli.api import animate
    from keyface_cli.options import GenerationOptions
    from keyface_cli.pipeline import KeyFacePipeline

__all__ = ["GenerationOptions", "KeyFacePipeline", "__version__", "animate"]
_PLACES = {"animate": "api", "GenerationOptions": "options", "KeyFacePipeline": "pipeline"}


def __getattr__(name: str) -> Any:
    """Import what is public, and torch where it needs it, when it is first asked for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
