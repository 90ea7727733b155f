"""Batches for the training loop, drawn ahead by threads; each depends on its number only.

The generator of a batch is seeded by the run's seed, the process and the batch's number. So the
order in which threads finish changes nothing, and a resumed run draws what an uninterrupted one
would have drawn. Threads suffice: copying mapped arrays and decoding pictures hold no lock of
Python's.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[torch.Generator], Any]
"""Draws one batch on the CPU: a tensor, or a tuple of tensors of which some may be None."""

MAX_THREADS = 8
AHEAD = 4  # batches that are held ready, besides those in the making


def seed_for(*names: object) -> int:
    """Hash names and numbers to a seed below 2^63."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batches(
    draw: Draw, seed: int, rank: int, numbers: range, threads: int, device: torch.device
) -> Generator[Any, None, None]:
    """Draw the batches of a range of numbers, in order.

    Args:
        draw: makes one from a generator on the CPU; called from several threads.
        seed: of the run.
        rank: number of this process, each of which has batches of its own.
        numbers: of the batches wanted.
        threads: that draw ahead; 0 draws when a batch is asked for, a negative number means none
            on a CPU, whose cores the network needs, and elsewhere as many as there are cores to
            spare.
        device: where the batches will be used.
    """
    if threads < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        threads = 0 if device.type == "cpu" else max(1, min(MAX_THREADS, cores - 1))

    def make(number: int) -> Any:
        seeded = torch.Generator().manual_seed(seed_for("batch", seed, rank, number))
        batch = draw(seeded)
        # laid where a GPU can fetch them while it computes
        return with_tensors(batch, Tensor.pin_memory) if device.type == "cuda" else batch

    if threads == 0:
        yield from map(make, numbers)
        return
    left = iter(numbers)
    pool = ThreadPoolExecutor(threads, "batches")
    try:
        made: deque[Future[Any]] = deque()
        made.extend(pool.submit(make, number) for number in islice(left, threads + AHEAD))
        while made:
            batch = made.popleft().result()
            made.extend(pool.submit(make, number) for number in islice(left, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def with_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch, see `Draw`, whose tensors are changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple):
        parts = [with_tensors(part, change) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
