"""Model folders written: networks, the manifest that lists them, and a whole model in one step."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from keyface_cli.checkpoints.checkpoint import (
    COMPONENTS,
    FORMAT_VERSION,
    MANIFEST,
    network_files,
    stem_of,
)
from keyface_cli.checkpoints.tensorfiles import move
from keyface_cli.config import ModelConfig, to_dict
from keyface_cli.errors import WeightsError
from keyface_cli.files import file_hash, making_folder, replacing, write_text

if TYPE_CHECKING:
    import torch
    from huggingface_hub import StateDictSplit
    from torch import Tensor, nn

MAX_FILE_BYTES = 2**29  # also what writing holds in memory besides its source


def save_component(
    folder: Path,
    component: str,
    module: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one network into a checkpoint folder; `write_manifest` has to follow.

    Each file is complete or the old one: it is written under another name and moved into place.

    Args:
        folder: the checkpoint folder, made where it is missing.
        component: one of `COMPONENTS`.
        module: the network, of the class that `build` constructs.
        dtype: number format in the file; None keeps the tensors' own.
        state: its tensors, for a module of meta tensors; None is the module's own.

    Raises:
        WeightsError: the disk is full or cannot be written.
    """
    target = folder / component
    target.mkdir(parents=True, exist_ok=True)
    cast(Any, module).save_config(target)
    tensors = module.state_dict() if state is None else state
    write_tensors(target, stem_of(component), tensors, dtype)


def write_manifest(
    folder: Path,
    config: ModelConfig,
    *,
    licence: str = "Apache-2.0",
    source: str = "trained with keyface",
    training: dict[str, Any] | None = None,
    origins: Iterable[dict[str, Any]] = (),
) -> None:
    """Write keyface.json for the components that a folder holds now, with sizes and hashes.

    Args:
        folder: the checkpoint folder.
        config: the model that the components belong to.
        licence: of the weights, an SPDX name.
        source: where the weights come from, one sentence.
        training: free facts about how they were trained (data, steps, hours).
        origins: facts about each file that they were made of: its name, address, licence.
    """
    files = sorted(path for name in COMPONENTS for path in network_files(folder, name))
    manifest = {
        "format_version": FORMAT_VERSION,
        "preset": config.preset,
        "licence": licence,
        "source": source,
        "training": training or {},
        "origins": list(origins),
        "config": to_dict(config),
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_hash(path),
            }
            for path in files
        },
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n", WeightsError)


@contextmanager
def replacing_model(folder: Path, *, force: bool) -> Iterator[Path]:
    """Write a whole model beside its place, and put it there when the block has ended well.

    Args:
        folder: of the model.
        force: replace it where there is one.

    Yields:
        The folder to write to.

    Raises:
        WeightsError: there is a model and `force` is not given, or something that is no model; or
            it cannot be written. What was there is kept then.
    """
    if folder.exists() and not force:
        raise WeightsError(f"folder exists: {folder}", "use --force to replace it")
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise WeightsError(f"not a model folder: {folder}", "it is not replaced; name another")
    with making_folder(folder, WeightsError, force=force) as part:
        yield part


def write_tensors(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    max_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a network's tensors, and drop the files that an earlier writing left.

    A reader finds the old network whole until the last step, and then the new one: files take
    names that none had, the index that names them comes last, and all is on the disk before it.

    Args:
        folder: where to write.
        stem: the files' name without the ending.
        tensors: by name; read one file's worth at a time.
        dtype: of floating-point tensors in the files; None keeps each one's.
        max_bytes: of tensors in one file, before `dtype`; one tensor is never split.

    Raises:
        WeightsError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    split = _split(folder, stem, tensors, max_bytes)
    old = set(folder.glob(f"{stem}*.safetensors*"))
    written: list[Path] = []
    try:
        for name, group in split.filename_to_tensors.items():
            held = {one: move(tensors[one].detach(), "cpu", dtype).contiguous() for one in group}
            with replacing(folder / name, WeightsError, also=(SafetensorError,)) as part:
                save_file(held, part, metadata={"format": "pt"})
            written.append(folder / name)
        if split.is_sharded:
            index = folder / f"{stem}.safetensors.index.json"
            facts = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_text(index, json.dumps(facts, indent=2) + "\n", WeightsError)
            written.append(index)
    except WeightsError:
        for path in written:
            if path not in old:
                path.unlink(missing_ok=True)
        raise
    # an index first, so that nothing names files that are gone
    for path in sorted(old - set(written), key=lambda path: path.suffix != ".json"):
        path.unlink(missing_ok=True)


def _split(
    folder: Path, stem: str, tensors: Mapping[str, Tensor], max_bytes: int
) -> StateDictSplit:
    """Divide a network among files; of several, none has the name of one that is there."""
    from huggingface_hub import split_torch_state_dict_into_shards

    mark = ""
    while True:
        pattern = f"{stem}{mark}{{suffix}}.safetensors"
        split = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern=pattern, max_shard_size=max_bytes
        )
        names = split.filename_to_tensors
        if not split.is_sharded or not any((folder / name).exists() for name in names):
            return split
        mark = f"-{secrets.token_hex(4)}"
