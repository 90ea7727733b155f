"""Which networks are on the device, and what gives way when its memory does not suffice.

    high      all networks stay on the device; the branches of a guidance run as one batch
    balanced  only the networks of the running stage are there; branches run one after another
    low       the UNets stay in main memory and their layers are streamed through the device, each
              once for as many segments as fit

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
# network's number format, for the choice at the start; 2000 of the published network's, measured.
ACTIVATIONS_PER_LATENT = 2400
LARGEST_CHUNK = 8  # 4.2 s of video: a run that is ended loses the chunk that is not finished
SPARE_BYTES = 2**30  # for the CUDA context, the VAE's activations and fragmentation


@dataclass(frozen=True)
class Demand:
    """What a model takes on a device, in bytes.

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
        if free is None:
            return USUAL_CHUNK
        weights = {"high": self.networks, "balanced": self.stage, "low": 0}[level]
        fitting = (free - weights - SPARE_BYTES) // self.clip
        return max(1, min(fitting, LARGEST_CHUNK))


class Residency:
    """The networks of a pipeline, and where they are.

    Args:
        networks: by component name; more may be added later, on the CPU or on the device.
        device: where they run.
        level: one of `LEVELS`.

    `one_by_one` says that memory ran out at the lowest level with several segments at once.
    """

    def __init__(self, networks: dict[str, nn.Module], device: torch.device, level: str) -> None:
        self.networks, self.device, self.level = networks, device, level
        self.one_by_one = False
        self._streamed: set[str] = set()
        # weights as they lie in main memory, of networks that have been there
        self._homes: dict[str, list[tuple[nn.Parameter, torch.Tensor]]] = {}

    @contextmanager
    def use(self, *names: str) -> Iterator[None]:
        """Have these networks on the device inside the block, and at lower levels no others."""
        if self.level != "high" and self.device.type != "cpu":
            for name in self.networks:
                if name not in names and name not in self._streamed:
                    self._send_home(name)
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
            less = ", one segment at a time" if self.one_by_one else ""
            logger.warning("out of memory, continuing with --memory %s%s", self.level, less)

    def step_down(self) -> bool:
        """Go to the next lower level, at the lowest to one segment at a time; False after that."""
        place = LEVELS.index(self.level) + 1
        if place < len(LEVELS):
            self.level = LEVELS[place]
        elif self.one_by_one:
            return False
        else:
            self.one_by_one = True
        return True

    def _send_home(self, name: str) -> None:
        """Have a network in main memory; what came from there is not copied back."""
        network = self.networks[name]
        for parameter, home in self._homes.get(name, ()):
            parameter.data = home
        network.to("cpu")
        self._homes[name] = [(parameter, parameter.data) for parameter in network.parameters()]

    def _bring(self, name: str) -> None:
        network = self.networks[name]
        if self.level != "low" or not name.endswith(("_unet", "_guide")):
            if name not in self._homes:
                self._send_home(name)
            network.to(self.device)
        elif name not in self._streamed:
            from diffusers.hooks import apply_group_offloading

            self._send_home(name)
            del self._homes[name]
            # a network's layer that projects the sound runs by itself, which is no fault
            logging.getLogger(apply_group_offloading.__module__).setLevel(logging.ERROR)
            cast(Any, apply_group_offloading)(
                network,
                onload_device=self.device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=self.device.type == "cuda",  # the next layer comes while one computes
            )
            self._streamed.add(name)
