"""Where a training runs: one device, or several processes that accelerate has started.

`accelerate launch --num_processes 4 -m keyface_cli train ...` starts a process for each GPU. Each
draws batches of its own, their gradients are averaged, and the first process writes the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from keyface_cli.device import DTYPES, resolve_device
from keyface_cli.errors import ConfigError
from keyface_cli.training.batches import with_tensors


class Compute:
    """The device, the number format and the other processes of a training.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; of several processes each gets its own.
        precision: of the forward pass, "float32", "bfloat16" or "float16".

    Raises:
        DeviceError: there is no such device.
        ConfigError: float16 on a CPU, where it gains nothing.
    """

    def __init__(self, device: str = "auto", precision: str = "float32") -> None:
        self._accelerator: Any = None
        self.device = resolve_device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.device = self._accelerator.device
        if precision == "float16" and self.device.type == "cpu":
            raise ConfigError("float16 gains nothing on a CPU", "use bfloat16 or float32")
        self.dtype = DTYPES[precision]
        # small gradients would vanish in float16: the loss is scaled up, the gradients down
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    @property
    def rank(self) -> int:
        """Number of this process; 0 writes the files."""
        return int(self._accelerator.process_index) if self._accelerator else 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def autocast(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Compute in the chosen precision inside the block; not `enabled`, in float32."""
        enabled = enabled and self.dtype != torch.float32
        kind = self.device.type
        # autocast knows no float32, not even where it is off
        dtype = self.dtype if self.dtype != torch.float32 else torch.bfloat16
        return torch.autocast(kind, dtype, enabled=enabled)

    def move(self, batch: Any) -> Any:
        """Copy a batch's tensors to the device: a tensor, a tuple of them, or None."""
        return with_tensors(batch, lambda tensor: tensor.to(self.device, non_blocking=True))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes."""
        if self._accelerator is None:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = self._accelerator.reduce(gradients, "mean")
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Average numbers over all processes."""
        if self._accelerator is None:
            return dict(values)
        tensor = torch.tensor(list(values.values()), device=self.device, dtype=torch.float32)
        return dict(zip(values, self._accelerator.reduce(tensor, "mean").tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self._accelerator is None:
            return flag
        tensor = torch.tensor([float(flag)], device=self.device)
        return bool(self._accelerator.reduce(tensor, "sum").item() > 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
