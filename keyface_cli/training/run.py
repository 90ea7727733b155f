"""A run folder: the checkpoint that training grows, usable as `--model` at any time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from keyface_cli.checkpoints.checkpoint import MANIFEST, Checkpoint
from keyface_cli.checkpoints.writing import replacing_model, save_component, write_manifest
from keyface_cli.config import ModelConfig
from keyface_cli.errors import ConfigError, WeightsError
from keyface_cli.files import take_name

logger = logging.getLogger(__name__)


def save(
    folder: Path, component: str, module: nn.Module, config: ModelConfig, facts: dict[str, Any]
) -> None:
    """Write one network into a run and note how it was trained.

    Stages that train side by side in one run take turns.

    Args:
        folder: the run.
        component: one of `checkpoint.COMPONENTS`.
        module: the network.
        config: of the whole model.
        facts: numbers worth keeping, such as the updates done; kept under the component's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".lock")):
        save_component(folder, component, module)
        training = training_facts(folder) | {component: facts}
        write_manifest(folder, config, training=training)


def training_facts(folder: Path) -> dict[str, Any]:
    """Return what a run's manifest says about its training; empty for a new run."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    facts = json.loads(path.read_text(encoding="utf-8")).get("training", {})
    return facts if isinstance(facts, dict) else {}


def check(folder: Path, config: ModelConfig) -> None:
    """Refuse to train a run with another configuration than the one it was begun with.

    A run that was killed between writing a network and its manifest gets the manifest now.

    Raises:
        ConfigError: it is another one.
    """
    if not (folder / MANIFEST).is_file():
        return
    checkpoint = Checkpoint.open(folder, check_files=False)
    if not same_networks(checkpoint.config, config):
        raise ConfigError(
            f"the run was begun with another configuration: {folder}", "begin a new run folder"
        )
    if not (folder / "state").is_dir():
        return
    with FileLock(str(folder / ".lock")):
        try:
            Checkpoint.open(folder)
        except WeightsError as error:
            logger.warning("%s: its manifest is written anew", error)
            write_manifest(folder, checkpoint.config, training=training_facts(folder))


def same_networks(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two configurations build the same networks, whatever the sampling defaults."""
    chosen_when_animating = ("sampling", "sampling_presets", "preset")
    same = {name: getattr(other, name) for name in chosen_when_animating}
    return dataclasses.replace(one, **same) == other


def state_path(folder: Path, name: str) -> Path:
    """Return where a run keeps the state from which the training of a network is resumed."""
    return folder / "state" / f"{name}.pt"


def refuse_trained(folder: Path, name: str) -> None:
    """Refuse to train a network anew where that would replace one.

    Args:
        folder: the run.
        name: of the network.

    Raises:
        WeightsError: the folder has trained it already, or is a finished model and no run.
    """
    if state_path(folder, name).exists():
        raise WeightsError(
            f"the run has trained {name} already: {folder}",
            "continue with --resume, or replace it with --force",
        )
    if (folder / name).is_dir() and not (folder / "state").is_dir():
        raise WeightsError(
            f"a model, not a run: {folder}",
            "name another folder for the run, or replace its network with --force",
        )


def adopt(folder: Path, source: Checkpoint, config: ModelConfig) -> None:
    """Give a run every network of a model that it has not yet, so that it can be used at once.

    Tensors are linked where the disk allows it, and copied elsewhere.
    """
    (folder / "state").mkdir(parents=True, exist_ok=True)  # which tells a run from a model
    with FileLock(str(folder / ".lock")):
        for component in source.components:
            if (folder / component).is_dir():
                continue
            partial = folder / f".{component}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source.folder / component, partial, copy_function=_link)
            take_name(partial, folder / component)
        write_manifest(folder, config, training=training_facts(folder))


def _link(source: str, target: str) -> None:
    try:
        # these are replaced when they are saved anew; other files are written in place
        if not source.endswith(".safetensors"):
            raise OSError
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def load_trained(folder: Path, component: str, config: ModelConfig) -> nn.Module:
    """Load a network that an earlier stage of the training has made, in float32.

    Raises:
        WeightsError: the run lacks it.
        ConfigError: it was trained with another configuration.
    """
    if not (folder / component).is_dir():
        raise WeightsError(
            f"the run has no {component} yet: {folder}", "train vae and audio before the UNets"
        )
    check(folder, config)
    checkpoint = Checkpoint.open(folder)
    return checkpoint.load(component, dtype=torch.float32)


def fingerprint(module: nn.Module) -> str:
    """Hash a network's tensors, as float32: the same weights have the same, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def export(
    run: Path, target: Path, dtype: torch.dtype, source: str, *, force: bool = False
) -> None:
    """Copy the networks of a run, without the state of its training, in another number format.

    Args:
        run: the run folder.
        target: the checkpoint folder to write.
        dtype: of the tensors, float16 for a model that is given away.
        source: one sentence for the manifest.
        force: replace the target where it is a model.

    Raises:
        WeightsError: the run holds no network, the target exists, or it cannot be written.
    """
    checkpoint = Checkpoint.open(run)
    with replacing_model(target, force=force) as partial:
        for component in checkpoint.components:
            save_component(partial, component, checkpoint.load(component), dtype=dtype)
        write_manifest(
            partial, checkpoint.config, source=source, training=checkpoint.manifest.get("training")
        )
