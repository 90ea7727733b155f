"""The networks behind some metrics: which files, whose they are, and where they are looked for."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from keyface_cli.checkpoints.installed import home
from keyface_cli.errors import WeightsError
from keyface_cli.files import file_hash


@dataclass(frozen=True)
class MetricWeights:
    """One network, as weights.toml has them.

    Args:
        name: as `--weights NAME=FILE` takes it.
        file: what it is called in the weights' folder; a folder for CLIP.
        what: it is.
        licence: of the weights.
        url: where they are published; "" where the user has to make or ask for the file.
        sha256: of the file, whole; "" where no public source states it (the hub states CLIP's).
        hint: how to get the file where it is not fetched.
    """

    name: str
    file: str
    what: str
    licence: str
    url: str = ""
    sha256: str = ""
    hint: str = "keyface weights pull metrics"


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
METRIC_WEIGHTS = tuple(MetricWeights(name, **facts) for name, facts in _TABLES.items())
BY_NAME = {weights.name: weights for weights in METRIC_WEIGHTS}


def weights_folder() -> Path:
    """Return where fetched weights are kept."""
    return home() / "metrics"


def parse_named(texts: list[str]) -> dict[str, Path]:
    """Read `NAME=FILE` options.

    Raises:
        WeightsError: a name is unknown or a file is missing.
    """
    named = {}
    for text in texts:
        name, mark, file = text.partition("=")
        if not mark or name not in BY_NAME:
            known = ", ".join(BY_NAME)
            raise WeightsError(f"not NAME=FILE of a known network: {text}", f"names: {known}")
        path = Path(file).expanduser()
        if not path.exists():
            raise WeightsError(f"file not found: {path}", f"it was named for {name}")
        named[name] = path
    return named


def find_weights(name: str, named: Mapping[str, Path], folder: Path) -> Path | None:
    """Return the file of a network: the one that was named, else the one in the folder."""
    if name in named:
        return named[name]
    path = folder / BY_NAME[name].file
    return path if path.exists() else None


@cache
def fingerprint(path: Path) -> str:
    """Return the sha256 of a file, or of the names and hashes of a folder's files."""
    if path.is_dir():
        parts = [
            f"{p.relative_to(path)} {fingerprint(p)}"
            for p in sorted(path.rglob("*"))
            if p.is_file()
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return file_hash(path)


def check_hash(name: str, path: Path) -> None:
    """Make sure that a file is the published one, where its hash is known.

    Raises:
        WeightsError: it is another file.
    """
    expected = BY_NAME[name].sha256
    if expected and fingerprint(path) != expected:
        raise WeightsError(
            f"{path}: is not {BY_NAME[name].what}: sha256 {fingerprint(path)[:16]}..., "
            f"expected {expected[:16]}",
            BY_NAME[name].hint,
        )
