"""Which networks are on the device, and what gives way when its memory does not suffice.

    high      all networks stay on the device; the branches of a guidance run as one batch
    balanced  only the networks of the running stage are there; branches run one after another
    low       the UNets stay in main memory and their layers are streamed through the device;
              segments are made one at a time

The result is the same at each level, to within rounding. On the CPU nothing is moved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from keyface_cli.config import USUAL_CHUNK
from keyface_cli.device import is_out_of_memory

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

LEVELS = ("high", "balanced", "low")
# What a UNet holds besides its weights for one clip, as a multiple of the clip's latents in the
# network's number format; an estimate that errs on the large side, for the choice at the start.
ACTIVATIONS_PER_LATENT = 6000
LARGEST_CHUNK = 8  # 4.2 s of video: a run that is ended loses the chunk that is not finished
SPARE_BYTES = 2**30  # for the CUDA context, the VAE's activations and fragmentation


@dataclass(frozen=True)
class Demand:
    """What a model takes on a device, in bytes; estimated.

    Args:
        networks: of all weights.
        stage: of the weights of the stage that has most.
        clip: of what a UNet holds besides for one clip.
        clips: how many clips a UNet is given at once at the highest level.
    """

    networks: int
    stage: int
    clip: int
    clips: int

    @property
    def levels(self) -> dict[str, int]:
        """What each level but the lowest takes."""
        high = self.networks + self.clips * self.clip + SPARE_BYTES
        return {"high": high, "balanced": self.stage + self.clip + SPARE_BYTES}

    def level_for(self, free: int | None) -> str:
        """Choose the level that fits; "high" where it is not known how much is free."""
        fits = (level for level, size in self.levels.items() if free is None or size <= free)
        return next(fits, "low")

    def chunk_for(self, free: int | None, level: str) -> int:
        """Choose how many segments a UNet is given at once: what fits, `LARGEST_CHUNK` at most.

        Args:
            free: before the networks are there; None where it is not known.
            level: one of `LEVELS`.
        """
        if free is None or level == "low":
            return USUAL_CHUNK  # at the lowest level they are given one by one
        counted = self.clips if level == "high" else 1
        fitting = counted + (free - self.levels[level]) // self.clip
        return max(1, min(fitting, LARGEST_CHUNK))


class Residency:
    """The networks of a pipeline, and where they are.

    Args:
        networks: by component name; more may be added later, on the CPU or on the device.
        device: where they run.
        level: one of `LEVELS`.
    """

    def __init__(self, networks: dict[str, nn.Module], device: torch.device, level: str) -> None:
        self.networks, self.device, self.level = networks, device, level
        self._streamed: set[str] = set()

    @contextmanager
    def use(self, *names: str) -> Iterator[None]:
        """Have these networks on the device inside the block, and at lower levels no others."""
        if self.level != "high" and self.device.type != "cpu":
            for name, network in self.networks.items():
                if name not in names and name not in self._streamed:
                    network.to("cpu")
            for name in names:
                self._bring(name)
        yield

    def attempt(self, names: tuple[str, ...], work: Callable[[], Result]) -> Result:
        """Do work with networks; where memory runs out, step down a level and do it again.

        Args:
            names: the networks that the work needs.
            work: has to give the same result however often it is begun.

        Raises:
            RuntimeError, MemoryError: memory ran out at the lowest level too.
        """
        while True:
            try:
                with self.use(*names):
                    return work()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self.step_down():
                    raise
            # only here, with the exception gone, is what the work had made let go
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning("out of memory, continuing with --memory %s", self.level)

    def step_down(self) -> bool:
        """Go to the next lower level; False at the lowest."""
        place = LEVELS.index(self.level) + 1
        if place == len(LEVELS):
            return False
        self.level = LEVELS[place]
        return True

    def _bring(self, name: str) -> None:
        network = self.networks[name]
        if self.level != "low" or not name.endswith(("_unet", "_guide")):
            network.to(self.device)
        elif name not in self._streamed:
            from diffusers.hooks import apply_group_offloading

            network.to("cpu")
            cast(Any, apply_group_offloading)(
                network,
                onload_device=self.device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=self.device.type == "cuda",  # the next layer comes while one computes
            )
            self._streamed.add(name)
