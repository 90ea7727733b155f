"""The channel means that a classifier's folder names in its preprocessor_config.json."""

from __future__ import annotations

import json
from pathlib import Path

from keyface_cli.errors import WeightsError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def read_normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the three channels; ImageNet's where no file names them.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        mean = [float(x) for x in settings.get("image_mean", IMAGENET[0])]
        deviation = [float(x) for x in settings.get("image_std", IMAGENET[1])]
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if len(mean) != 3 or len(deviation) != 3:
        raise WeightsError(f"{path}: image_mean and image_std need three values")
    return mean, deviation
