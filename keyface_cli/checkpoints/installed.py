"""Where models are installed, and which folder a name or a path means."""

from __future__ import annotations

import os
from pathlib import Path

from keyface_cli.checkpoints.checkpoint import MANIFEST
from keyface_cli.errors import WeightsError


def resolve_model(model: str | Path | None) -> Path:
    """Find the folder that a model's name means.

    Args:
        model: a folder; or a name, of the bundled model or of one in `home() / "models"`; or None,
            the published model where it is installed and else the bundled one. A folder in the
            working directory comes before a name where it is a model.

    Raises:
        WeightsError: there is no such folder or model.
    """
    named = installed_models()
    # a folder that is no model, and has the name of one, does not hide it
    hides = model is not None and str(model) in named and not (Path(model) / MANIFEST).is_file()
    if model is not None and Path(model).is_dir() and not hides:
        return Path(model)
    if model is None:
        model = "keyface" if "keyface" in named else "mini"
    if str(model) not in named:
        from keyface_cli.files import set_aside

        for place in (Path(model), home() / "models" / model):
            if (set_aside(place) / MANIFEST).is_file():
                raise WeightsError(
                    f"no such model: {model}: replacing it was cut short",
                    f"make it again, or rename the one before, {set_aside(place)}",
                )
        raise WeightsError(
            f"no such model: {model}", f"name a model folder, or put it in {home() / 'models'}"
        )
    return named[str(model)]


def installed_models() -> dict[str, Path]:
    """Return every model that has a name, and its folder: installed ones, then the bundled."""
    package = Path(__file__).parents[1]
    models: dict[str, Path] = {}
    for place in (home() / "models", package / "_weights", package.parent / "weights"):
        for manifest in sorted(place.glob(f"*/{MANIFEST}")):
            if not manifest.parent.name.startswith("."):  # what is being made, or was replaced
                models.setdefault(manifest.parent.name, manifest.parent)
    return models


def home() -> Path:
    """Return the folder for what is fetched: KEYFACE_HOME, else this system's user data."""
    from platformdirs import user_data_path

    chosen = os.environ.get("KEYFACE_HOME")
    return Path(chosen) if chosen else user_data_path("keyface", appauthor=False)
