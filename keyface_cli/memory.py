"""Which networks are on the device, and what gives way when its memory does not suffice.

    high      all networks stay on the device; the branches of a guidance run as one batch
    balanced  only the networks of the running stage are there; branches run one after another
    low       the UNets stay in main memory and their layers are streamed through the device;
              segments are made one at a time

The result is the same at each level, to within rounding. On the CPU nothing is moved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from keyface_cli.device import available_memory, is_out_of_memory

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

LEVELS = ("high", "balanced", "low")
# What a UNet holds besides its weights for one clip, as a multiple of the clip's latents in the
# network's number format; an estimate that errs on the large side, for the choice at the start.
ACTIVATIONS_PER_LATENT = 6000
SPARE_BYTES = 2**30  # for the CUDA context, the VAE's activations and fragmentation


def choose_level(
    device: torch.device, sizes: Mapping[str, int], clip_bytes: int, clips: int
) -> str:
    """Choose the level that fits into the memory that is free now.

    Args:
        device: where the networks will run.
        sizes: bytes of each network there.
        clip_bytes: of one clip's latents in the UNets' number format.
        clips: how many a UNet is given at once at the highest level.

    Returns:
        One of `LEVELS`; "high" where the device's memory is the machine's own.
    """
    free = available_memory(device) if device.type == "cuda" else None
    if free is None:
        return "high"
    one = clip_bytes * ACTIVATIONS_PER_LATENT
    guided = sizes.get("interpolation_unet", 0) + sizes.get("interpolation_guide", 0)
    stage = max(sizes.get("keyframe_unet", 0), guided)
    if sum(sizes.values()) + clips * one + SPARE_BYTES <= free:
        return "high"
    return "balanced" if stage + one + SPARE_BYTES <= free else "low"


class Residency:
    """The networks of a pipeline, and where they are.

    Args:
        networks: by component name; more may be added with `add`.
        device: where they run.
        level: one of `LEVELS`.
    """

    def __init__(self, networks: dict[str, nn.Module], device: torch.device, level: str) -> None:
        self.networks, self.device, self.level = networks, device, level
        self._streamed: set[str] = set()

    def add(self, name: str, network: nn.Module) -> None:
        """Take on another network, on the CPU or on the device."""
        self.networks[name] = network

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
