"""Devices and number formats by name, and the one message for every lack of memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from keyface_cli import device
from keyface_cli.device import (
    available_memory,
    memory_errors,
    require_memory,
    resolve_device,
    resolve_dtype,
)
from keyface_cli.errors import DeviceError

CPU = torch.device("cpu")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has a CPU and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("bare")
class TestBareMachine:
    """What a machine without an accelerator answers."""

    def test_auto_is_the_cpu(self) -> None:
        assert resolve_device("auto") == CPU
        assert resolve_device("cpu") == CPU

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3", "mps"])
    def test_absent_devices_are_named(self, name: str) -> None:
        with pytest.raises(DeviceError, match=f"this machine has no {name} device") as caught:
            resolve_device(name)
        assert caught.value.hint == "use --device cpu or auto"


def test_cuda_is_preferred_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="this machine has no cuda:2 device"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(DeviceError, match=f"no such device: {name}"):
        resolve_device(name)


def test_number_formats_by_name() -> None:
    assert resolve_dtype("float32", CPU) == torch.float32
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert resolve_dtype("float16", CPU) == torch.float16
    with pytest.raises(DeviceError, match="no such number format: int8"):
        resolve_dtype("int8", CPU)


def test_auto_format_follows_what_the_machine_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "_cpu_computes_in_bfloat16", lambda native=native: native)
        assert resolve_dtype("auto", CPU) == expected
    for native, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _, native=native: native)
        assert resolve_dtype("auto", torch.device("cuda")) == expected
    assert resolve_dtype("auto", torch.device("mps")) == torch.float16


def test_memory_of_the_cpu_is_known_or_honestly_not() -> None:
    free = available_memory(CPU)
    assert free is None or free > 2**20


def test_container_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_free_in_machine", lambda: 8_000)
    monkeypatch.setattr(device, "_free_in_container", lambda: 5_000)
    assert available_memory(CPU) == 5_000
    monkeypatch.setattr(device, "_free_in_container", lambda: None)
    assert available_memory(CPU) == 8_000
    monkeypatch.setattr(device, "_free_in_machine", lambda: None)
    assert available_memory(CPU) is None


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda _: 2_000_000_000)
    require_memory(CPU, 2_000_000_000, "the model")
    expected = r"not enough memory on cpu: the model needs 6\.0 GB, 2\.0 GB are free"
    with pytest.raises(DeviceError, match=expected):
        require_memory(CPU, 6_000_000_000, "the model")
    monkeypatch.setattr(device, "available_memory", lambda _: None)
    require_memory(CPU, 10**18, "the model")


def test_an_allocation_that_really_fails_is_one_error() -> None:
    with pytest.raises(DeviceError, match="not enough memory on cpu") as caught, memory_errors(CPU):
        torch.empty(2**60, dtype=torch.uint8)
    assert caught.value.hint is not None
    assert "--chunk" in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("could not execute a primitive"),
    ],
)
def test_other_failures_of_allocation(error: Exception) -> None:
    with pytest.raises(DeviceError, match="not enough memory on cpu"), memory_errors(CPU):
        raise error


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(CPU):
        raise RuntimeError("shapes do not match")


def test_a_compiler_that_fails_is_one_line() -> None:
    class InductorError(RuntimeError):
        pass

    InductorError.__module__ = "torch._inductor.exc"
    with (
        pytest.raises(
            DeviceError, match=r"torch.compile does not work here: no compiler$"
        ) as error,
        memory_errors(CPU),
    ):
        raise InductorError("no compiler\nmuch\nmore")
    assert error.value.hint == "leave out --compile"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc of Linux")
@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    script = """
import resource, sys, torch
from keyface_cli.device import keep_freed_memory
if sys.argv[1] == "keep": keep_freed_memory()
def layers():
    for _ in range(20): [torch.ones(8 * 2**20, dtype=torch.uint8) for _ in range(6)]
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # malloc's own threshold moves with what is freed; from a fixed one it returns all that is large
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    fresh_pages = {
        how: int(subprocess.check_output([sys.executable, "-c", script, how], env=environment))
        for how in ("keep", "return")
    }
    assert fresh_pages["keep"] < fresh_pages["return"] / 10
