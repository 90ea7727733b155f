"""The safetensors of one network: a single file, or several with an index, as the libraries do.

stem.safetensors
stem-00001-of-00003.safetensors ...  and stem.safetensors.index.json, tensor name -> file
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface_cli.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


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


def save_network(path: Path, module: nn.Module, facts: Mapping[str, str]) -> None:
    """Write a network that is no part of a model into one file; it is whole or the old one.

    Args:
        path: of the file, in a folder that is made where it is missing.
        module: the network.
        facts: what the file says of itself; "format" tells such files from others.

    Raises:
        WeightsError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from keyface_cli.files import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    with replacing(path, WeightsError, also=(SafetensorError,)) as part:
        save_file(tensors, part, dict(facts))


def load_network(path: Path, module: nn.Module, file_format: str) -> dict[str, str]:
    """Fill a network from a file of `save_network`, and return what that says of itself.

    Raises:
        WeightsError: the file is missing or damaged, of another format, or another network's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            if facts.get("format") != file_format:
                raise WeightsError(f"{path}: not of the format {file_format}")
            module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: damaged, or of another network: {reason}") from error
    return facts


def move(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Move a tensor, and change its number format where it holds floating-point numbers."""
    return tensor.to(device, dtype if tensor.is_floating_point() else None)
