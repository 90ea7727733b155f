"""Batches for the training loop, drawn ahead by worker processes; each depends on its number only.

The generator of a batch is seeded by the run's seed, the process and the batch's number. So the
order in which workers finish changes nothing, and a resumed run draws what an uninterrupted one
would have drawn.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

Draw = Callable[[torch.Generator], Any]
"""Draws one batch on the CPU: a tuple of tensors, of which some may be None."""

MAX_WORKERS = 8
AHEAD = 4  # batches that each worker holds ready


def seed_for(*names: object) -> int:
    """Hash names and numbers to a seed below 2^63."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Drawn(Dataset[Any]):
    def __init__(self, draw: Draw, seed: int, rank: int) -> None:
        self.draw, self.seed, self.rank = draw, seed, rank

    def __getitem__(self, number: int) -> Any:
        seed = seed_for("batch", self.seed, self.rank, number)
        return self.draw(torch.Generator().manual_seed(seed))


def batches(
    draw: Draw, seed: int, rank: int, numbers: range, workers: int, device: torch.device
) -> Iterator[Any]:
    """Draw the batches of a range of numbers.

    Args:
        draw: makes one from a generator on the CPU.
        seed: of the run.
        rank: number of this process, each of which has batches of its own.
        numbers: of the batches wanted.
        workers: processes that draw ahead; 0 draws in this one, a negative number means none on a
            CPU, whose cores the network needs, and elsewhere as many as there are cores to spare.
        device: where the batches will be used.
    """
    if workers < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        # elsewhere a process would have to be given a copy of the data
        forks = sys.platform == "linux"
        workers = min(MAX_WORKERS, cores - 1) if device.type != "cpu" and forks else 0
    loader = DataLoader(
        _Drawn(draw, seed, rank),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
