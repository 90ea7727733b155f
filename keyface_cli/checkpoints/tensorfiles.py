"""The safetensors of one network: a single file, or several with an index, as the libraries do.

stem.safetensors
stem-00001-of-00003.safetensors ...  and stem.safetensors.index.json, tensor name -> file
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_FILE_BYTES = 2**29  # also what writing holds in memory besides its source


class TensorReader:
    """Tensors by name, read one at a time; made by `open_tensors`."""

    def __init__(self, path: Path, places: dict[str, tuple[Path, Any]]) -> None:
        self.path = path  # the file, or the folder of several
        self._places = places  # tensor name -> its file, and that opened

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._places)

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._places[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, by the header of its file."""
        return tuple(self._places[name][1].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's number format as safetensors names it, such as "F16"."""
        return str(self._places[name][1].get_slice(name).get_dtype())

    def get(self, name: str) -> Tensor:
        """Read a tensor."""
        tensor: Tensor = self._places[name][1].get_tensor(name)
        return tensor


@contextmanager
def open_tensors(folder: Path, stem: str) -> Iterator[TensorReader]:
    """Open the files of a network.

    Args:
        folder: where they are.
        stem: their name without the ending, such as "model".

    Raises:
        WeightsError: a file is missing or damaged, here or while a tensor is read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / f"{stem}.safetensors"
    try:
        with ExitStack() as stack:
            places: dict[str, tuple[Path, Any]] = {}
            files = weight_files(folder, stem)
            for path in files:
                if not path.is_file():
                    raise WeightsError(f"missing file: {path}")
                file = stack.enter_context(safe_open(path, framework="pt"))
                places |= dict.fromkeys(file.keys(), (path, file))
            yield TensorReader(files[0] if len(files) == 1 else folder, places)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot read weights: {path}", str(error)) from error


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Name the files that hold a network's tensors; they need not exist.

    Raises:
        WeightsError: there is an index that cannot be read.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / Path(name).name for name in sorted(set(names))]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f"not an index of weights: {index}", str(error)) from error


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
        max_bytes: of tensors in one file, but one tensor is never split.

    Raises:
        WeightsError: the disk is full or cannot be written.
    """
    from safetensors import SafetensorError

    groups = _group(tensors, dtype, max_bytes)
    old = set(folder.glob(f"{stem}*.safetensors*"))
    names = _free_names(folder, stem, len(groups))
    written: list[Path] = []
    try:
        for name, (group, _) in zip(names, groups, strict=True):
            written.append(folder / f"{name}.partial")
            _save({one: tensors[one] for one in group}, written[-1], dtype)
        if len(names) > 1:
            written.append(folder / f"{stem}.safetensors.index.json.partial")
            written[-1].write_text(_index(names, groups), encoding="utf-8")
            _sync(written[-1])
        for i, path in enumerate(written):
            if i == len(written) - 1:
                _sync(folder)
            written[i] = path.with_suffix("")
            os.replace(path, written[i])
        _sync(folder)
    except (SafetensorError, OSError) as error:
        for path in written:
            if path not in old:
                path.unlink(missing_ok=True)
        full = "No space left" in str(error)
        raise WeightsError(
            f"cannot write weights to {folder}: {'the disk is full' if full else error}",
            "free some space and run the command again" if full else None,
        ) from error
    # an index first, so that nothing names files that are gone
    for path in sorted(old - set(written), key=lambda path: path.suffix != ".json"):
        path.unlink(missing_ok=True)


def _free_names(folder: Path, stem: str, count: int) -> list[str]:
    """Name the files of a network; of several, none has the name of one that is there."""
    if count == 1:
        return [f"{stem}.safetensors"]
    mark = ""
    while True:
        numbers = range(1, count + 1)
        names = [f"{stem}{mark}-{i:05d}-of-{count:05d}.safetensors" for i in numbers]
        if not any((folder / name).exists() for name in names):
            return names
        mark = f"-{secrets.token_hex(4)}"


def _save(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> None:
    """Write one file, and have the disk hold it."""
    from safetensors.torch import save_file

    held = {name: move(tensor.detach(), "cpu", dtype) for name, tensor in tensors.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in held.items()}
    path.unlink(missing_ok=True)
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors makes files that only their owner can read
    _sync(path)


def _index(names: list[str], groups: list[tuple[list[str], int]]) -> str:
    """Return what says in which file each tensor is."""
    places = {one: name for name, (group, _) in zip(names, groups, strict=True) for one in group}
    total = sum(size for _, size in groups)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(index, indent=2) + "\n"


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Move a tensor, and change its number format where it holds floating-point numbers."""
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _group(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_bytes: int
) -> list[tuple[list[str], int]]:
    """Fill files in order: the tensors' names and bytes of each."""
    groups: list[tuple[list[str], int]] = [([], 0)]
    for name, tensor in tensors.items():
        kept = dtype is None or not tensor.is_floating_point()
        size = tensor.numel() * (tensor.dtype if kept or dtype is None else dtype).itemsize
        names, filled = groups[-1]
        if names and filled + size > max_bytes:
            groups.append(([name], size))
        else:
            groups[-1] = ([*names, name], filled + size)
    return groups
