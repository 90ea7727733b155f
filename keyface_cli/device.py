"""Where the networks run and in which number format, and what to say when memory runs out."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from keyface_cli.errors import DeviceError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that is there.

    `auto` is the first CUDA device, else mps, else the CPU; a device stays what it is.

    Raises:
        DeviceError: the name is none of these, or this machine has no such device.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise DeviceError(f"no such device: {name}", "use auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"this machine has no {name} device", "use --device cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("this machine has no mps device", "use --device cpu or auto")
    return device


def resolve_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Turn `auto`, `float32`, `bfloat16` or `float16` into the number format of the networks.

    `auto` is bfloat16 where the device computes in it (a CPU with AVX512-BF16 or AMX, a recent
    GPU), else float16 on a GPU and float32 on a CPU. Preconditioning, guidance and the Euler sums
    are float32 whatever the format, as published.

    Raises:
        DeviceError: no such format.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
        if device.type == "mps":
            return torch.float16
        return torch.bfloat16 if _cpu_computes_in_bfloat16() else torch.float32
    if name not in DTYPES:
        raise DeviceError(f"no such number format: {name}", f"use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, instead of giving it back each time.

    On a CPU a network's pictures of some megabytes are allocated and freed at every layer. Linux's
    malloc maps each of them anew, and touching fresh pages takes a twelfth of the time of a video.
    The peak stays what it was; other systems are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return None
    free = [_free_in_machine(), _free_in_container()]
    return min((f for f in free if f is not None), default=None)


def require_memory(device: torch.device, needed: int, what: str) -> None:
    """Refuse early what cannot fit.

    Args:
        device: where it is to be held.
        needed: bytes, a lower bound.
        what: for the message, as in "the model".

    Raises:
        DeviceError: less than `needed` is available.
    """
    free = available_memory(device)
    if free is not None and free < needed:
        raise DeviceError(
            f"not enough memory on {device}: {what} needs {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free",
            "use --dtype bfloat16, another --device or a smaller model",
        )


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn each of the ways in which torch runs out of memory into one, and what a compiler says.

    Raises:
        DeviceError: an allocation failed inside the block, or torch.compile did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise DeviceError(
                f"torch.compile does not work here: {reason}", "leave out --compile"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"not enough memory on {device}",
            "use a smaller --chunk, --dtype bfloat16 or another --device",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the ways in which torch runs out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the last is oneDNN's, on a CPU
    words = (
        r"not enough memory|can't allocate|out of memory|ALLOC_FAILED"
        r"|could not (create|execute) a primitive$"
    )
    return isinstance(error, RuntimeError) and re.search(words, str(error)) is not None


def _cpu_computes_in_bfloat16() -> bool:
    # torch emulates the format elsewhere, slower than float32
    tell = getattr(torch.cpu, "get_capabilities", None)  # not in older releases
    capabilities: dict[str, object] = tell() if tell else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _free_in_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = dict(line.split(":", 1) for line in lines)
    return int(kilobytes["MemAvailable"].split()[0]) * 1024


def _free_in_container() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - used + (int(cached[1]) if cached else 0)  # caches are given up on demand
