"""Fetches the public networks behind the metrics; with their licences and hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keyface_cli.checkpoints import download
from keyface_cli.errors import WeightsError
from keyface_cli.evaluation.networks.weights import METRIC_WEIGHTS, MetricWeights, fingerprint
from keyface_cli.files import is_full, making_folder, take_name, unwritable, write_text

RECORD = "weights.json"
_CLIP = "openai/clip-vit-large-patch14"
_CLIP_ROLES = (
    download.Role("config.json", _CLIP, "config.json", r"config\.json"),
    download.Role(
        "weights", _CLIP, "model.safetensors", r"(model\.safetensors|pytorch_model\.bin)"
    ),
)


def pull_metrics(
    folder: Path,
    *,
    force: bool = False,
    report: download.Report = lambda line: None,
    wanted: Sequence[MetricWeights] = METRIC_WEIGHTS,
) -> list[str]:
    """Fetch what is public and not there yet; one that fails does not stop the others.

    Args:
        folder: made where it is missing.
        force: fetch again what is there.
        report: told in a line what happens, licence included.
        wanted: which networks.

    Returns:
        What could not be fetched, a line each; those that are not public are reported only.

    Raises:
        WeightsError: the folder cannot be written to.
    """
    failures = []
    for weights in wanted:
        target = folder / weights.file
        if not weights.url:
            report(f"{weights.name}: not public: {weights.what}; {weights.hint}")
            continue
        if target.exists() and not force:
            report(f"{weights.name}: is there: {target}")
            continue
        pinned = weights.sha256 or weights.name == "clip"
        unsure = "" if pinned else "; no sha256 of it is known, so what comes is not checked"
        report(f"{weights.name}: {weights.what}, {weights.url}, licence {weights.licence}{unsure}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if weights.name == "clip":
                _fetch_clip(folder, target, report)
            else:
                _fetch(weights, target)
            _record(folder, weights, target)
        except WeightsError as error:
            failures.append(f"{weights.name}: {error}")
        except OSError as error:
            raise unwritable(folder, error, WeightsError) from error
    return failures


def _fetch_clip(folder: Path, target: Path, report: download.Report) -> None:
    place = folder / ".clip"
    paths = download.fetch(download.find(roles=_CLIP_ROLES), place, report)
    with making_folder(target, WeightsError) as part:
        for path in paths.values():
            take_name(path, part / path.name)
        shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)


def _fetch(weights: MetricWeights, target: Path) -> None:
    """Fetch a file, from where an earlier run left it, and check its hash."""
    from huggingface_hub import get_session
    from rich.console import Console
    from rich.progress import track

    partial = target.with_name(f"{target.name}.partial")
    console = Console(stderr=True)
    try:
        with partial.open("ab") as out:
            headers = {"Range": f"bytes={out.tell()}-", "Accept-Encoding": "identity"}
            with get_session().stream("GET", weights.url, headers=headers, timeout=10) as answer:
                answer.raise_for_status()
                if answer.status_code != 206:  # the whole file
                    out.truncate(0)
                for block in track(
                    answer.iter_raw(2**20),
                    target.name,
                    total=int(answer.headers.get("Content-Length", 0)) / 2**20 or None,
                    console=console,
                    disable=not console.is_terminal,
                ):
                    out.write(block)
    except Exception as error:
        if is_full(error):
            raise
        # a server that refuses to continue may hold another file by now
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 416 or not partial.stat().st_size:
            partial.unlink(missing_ok=True)
        reason = f"the server answers {status}" if status else str(error).splitlines()[0]
        raise WeightsError(f"cannot fetch {weights.url}: {reason}") from error
    fingerprint.cache_clear()
    if weights.sha256 and fingerprint(partial) != weights.sha256:
        found = fingerprint(partial)[:16]
        partial.unlink()
        raise WeightsError(
            f"{weights.url}: sha256 {found}..., expected {weights.sha256[:16]}: dropped"
        )
    take_name(partial, target)


def _record(folder: Path, weights: MetricWeights, target: Path) -> None:
    """Keep where a file came from, under which licence, and its hash."""
    path = folder / RECORD
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known[weights.name] = {
        "file": weights.file,
        "url": weights.url,
        "licence": weights.licence,
        "sha256": fingerprint(target),
    }
    write_text(path, json.dumps(known, indent=2) + "\n", WeightsError)
