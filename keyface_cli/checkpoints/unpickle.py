"""Weights in other people's files: read without running anything that they hold."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyface_cli.errors import WeightsError

# Training frameworks leave objects of their own beside the tensors. Of these and no others a
# hollow stand-in is made: no code of theirs is looked for, imported or called.
PASSENGERS = re.compile(
    r"(argparse|collections|deepspeed|lightning|lightning_fabric|numpy|omegaconf|pathlib"
    r"|pytorch_lightning|sgm|typing)\."
    r"|builtins\.(bool|bytes|complex|dict|float|frozenset|int|list|object|set|str|tuple)$"
)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of one file, mapped into memory where its format allows that.

    Args:
        path: `.safetensors`, or a pickle as `torch.save` writes it with the tensors at the top or
            under "module" (DeepSpeed), "state_dict" (Lightning) or "model" (fairseq).

    Returns:
        Tensors by name, on the CPU, and the file's "cfg", empty where it has none.

    Raises:
        WeightsError: the file is missing, damaged, holds no tensors, or asks for code to be run.
    """
    if not path.is_file():
        raise WeightsError(f"file not found: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path), {}
    loaded = _unpickle(path)
    for key in ("module", "state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            cfg = loaded.get("cfg")
            return _only_tensors(loaded[key], path), cfg if isinstance(cfg, dict) else {}
    return _only_tensors(loaded, path), {}


def check_numbers(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype) -> None:
    """Make sure that every number is one, and one that `dtype` can hold.

    Raises:
        WeightsError: names the first tensor with NaN, infinity or a number that is too large.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = (float(end) for end in torch.aminmax(tensor.float()))
        if not (low > -torch.inf and high < torch.inf):
            raise WeightsError(f"{path}: tensor {name} contains NaN or infinity", "fetch it again")
        if max(-low, high) > torch.finfo(dtype).max:
            raise WeightsError(
                f"{path}: tensor {name} holds a number too large for {dtype}".replace("torch.", ""),
                "use --dtype bfloat16",
            )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot read weights: {path}", str(error)) from error


def _unpickle(path: Path) -> Any:
    try:
        # files of torch before 1.6 are no archives, and cannot be mapped into memory
        archive = zipfile.is_zipfile(path)
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if archive else []
        refused = [name for name in found if not PASSENGERS.match(name)]
        if refused:
            raise _refused(path, sorted(refused))
        stand_ins: list[Any] = [(_hollow(name), name) for name in found]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # on pickles of an unusual version
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        if code:
            raise _refused(path, [code[1]]) from error
        raise WeightsError(f"not a checkpoint: {path}", "fetch it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "free some memory" if error.errno == errno.ENOMEM else None
        raise WeightsError(f"cannot read {path}: {reason}", hint) from error
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError) as error:
        raise WeightsError(
            f"the file is damaged or not a checkpoint: {path}", "fetch it again"
        ) from error


def _refused(path: Path, names: list[str]) -> WeightsError:
    return WeightsError(
        f"refused: {path} holds code to run: {', '.join(names)}",
        "weights need none; get the file from its publisher",
    )


def _hollow(name: str) -> type[Any]:
    """Make a class that takes anything and does nothing, to stand for a class of that name."""

    def ignore(self: Any, *_: Any, **__: Any) -> None:
        pass

    def create(cls: type[Any], *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    return type(name, (), {"__new__": create, "__init__": ignore, "__setstate__": ignore})


def _only_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(f"no weights in {path}", "is it the right file?")
