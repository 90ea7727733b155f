"""The training loop that all networks share: AdamW, warm-up, EMA, clipping, saving, resuming."""

from __future__ import annotations

import copy
import csv
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from keyface_cli.errors import WeightsError
from keyface_cli.training.optim import MuonAdamW, parameter_groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """How long and how fast to train; the defaults are those of the bundled model."""

    updates: int = 10_000  # in all, counting those of the run that is resumed
    minutes: float = math.inf  # stop and save after this time, whatever has been reached
    batch_size: int = 8
    learning_rate: float = 5e-4  # the peak; falls to a twentieth of it by a cosine
    warmup: int = 200  # updates of linear warm-up
    weight_decay: float = 0.01
    ema_decay: float = 0.995
    clip_norm: float = 1.0
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    bfloat16: bool = True  # autocast of the forward pass; weights stay in float32


def rate_share_at(update: int, options: TrainOptions) -> float:
    """Return the share of its peak that the rate has at an update: warm-up, then a cosine."""
    if update < options.warmup:
        return (update + 1) / options.warmup
    done = min(1.0, (update - options.warmup) / max(1, options.updates - options.warmup))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """Trains one module; its averaged copy is what gets saved and used.

    Args:
        name: of the component, which names its state and log files.
        model: the module to train, on its device, in float32.
        folder: the run folder; the state goes to `state/NAME.pt`, the log to `NAME.csv`.
        options: see `TrainOptions`.
        resume: go on from `state/NAME.pt`, where weights, average, optimiser, generator and the
            number of updates are kept.
        muon_rate: train inner matrices by Muon at this peak rate, see `optim`; None is AdamW only.

    Raises:
        WeightsError: the state to resume from is missing or belongs to another network.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        folder: Path,
        options: TrainOptions,
        *,
        resume: bool = False,
        muon_rate: float | None = None,
    ) -> None:
        self.name, self.model, self.folder, self.options = name, model, folder, options
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser: torch.optim.Optimizer
        if muon_rate is None:
            self.optimiser = torch.optim.AdamW(
                self.parameters,
                lr=options.learning_rate,
                betas=(0.9, 0.99),
                weight_decay=options.weight_decay,
            )
        else:
            groups = parameter_groups(model, muon_rate, options.learning_rate)
            self.optimiser = MuonAdamW(groups, weight_decay=options.weight_decay)
        self.peak_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.generator = torch.Generator().manual_seed(options.seed)
        self.update = 0
        self.state_path = folder / "state" / f"{name}.pt"
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        if resume:
            self._resume()

    def fit(
        self,
        losses: Callable[[Trainer], dict[str, Tensor]],
        save: Callable[[nn.Module, int], None],
    ) -> int:
        """Train until the updates or the minutes are used up.

        Args:
            losses: draws a batch with the trainer's generator and returns named scalar losses;
                the one named `loss` is descended, the others are only logged.
            save: called with the averaged module and the updates done, every so often and last.

        Returns:
            The updates done in all.
        """
        start, sums, count = time.monotonic(), dict[str, float](), 0
        while self.update < self.options.updates:
            values = self._step(losses)
            for key, value in values.items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            if self.update % self.options.log_every == 0:
                elapsed = time.monotonic() - start
                self._log({key: value / count for key, value in sums.items()}, elapsed)
                sums, count = {}, 0
            if self.update % self.options.save_every == 0:
                self._save(save)
            if time.monotonic() - start > self.options.minutes * 60:
                break
        self._save(save)
        return self.update

    def _step(self, losses: Callable[[Trainer], dict[str, Tensor]]) -> dict[str, float]:
        share = rate_share_at(self.update, self.options)
        for group, peak in zip(self.optimiser.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * share
        self.model.train()
        values = losses(self)
        self.optimiser.zero_grad(set_to_none=True)
        values["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.update += 1
        self._update_average()
        return {key: float(value.detach()) for key, value in values.items()} | {"norm": float(norm)}

    @torch.no_grad()
    def _update_average(self) -> None:
        # the average of a short run must forget its random beginning
        decay = min(self.options.ema_decay, (1 + self.update) / (10 + self.update))
        mine: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for kept, other in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(other)

    def _log(self, values: dict[str, float], elapsed: float) -> None:
        row = {"update": float(self.update), "seconds": round(elapsed, 1)} | values
        path = self.folder / f"{self.name}.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
        text = " ".join(f"{key} {value:.4g}" for key, value in values.items())
        logger.info("%s update %d (%.0f s): %s", self.name, self.update, elapsed, text)

    def _save(self, save: Callable[[nn.Module, int], None]) -> None:
        save(self.average, self.update)
        state = {
            "update": self.update,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }
        partial = self.state_path.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, self.state_path)

    def _resume(self) -> None:
        if not self.state_path.is_file():
            raise WeightsError(
                f"no training state to resume from: {self.state_path}",
                "leave out --resume to begin a new run",
            )
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.generator.set_state(state["generator"])
            self.update = int(state["update"])
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            raise WeightsError(
                f"the training state does not fit this network: {self.state_path}",
                "it was made with another configuration: begin a new run folder",
            ) from error
