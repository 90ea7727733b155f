"""The training loop that all networks share: rates, EMA, clipping, saving, resuming.

The state of a run is its weights, their average, the optimiser and the number of updates. All
randomness is seeded anew for each update from the run's seed and that number (see `batches`), so
a run that was killed and resumed is the run that nothing had stopped.
"""

from __future__ import annotations

import copy
import errno
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyface_cli.config import ModelConfig
from keyface_cli.errors import KeyFaceError, WeightsError
from keyface_cli.files import replacing
from keyface_cli.training import run
from keyface_cli.training.batches import Draw, batches, seed_for
from keyface_cli.training.compute import Compute
from keyface_cli.training.log import TrainingLog
from keyface_cli.training.optim import MuonAdamW, parameter_groups
from keyface_cli.training.options import TrainOptions

logger = logging.getLogger(__name__)

Losses = Callable[["Trainer", Any], dict[str, Tensor]]
"""Named 0-d losses of a batch; the one named `loss` is descended, the others are only logged."""
Save = Callable[[nn.Module, int], None]
"""Called with the averaged module and the updates done, every so often and last."""
Report = Callable[[int, int, Mapping[str, float]], None]
"""Called after each update with the updates done, those wanted, and the latest logged numbers."""
MAX_SKIPPED = 50  # updates in a row whose gradient is no number
LAST_SHARE = 0.05  # of the peak rate, where the cosine ends
FIRST_SHARE = 1e-6  # where the warm-up of a constant rate begins, as published


class Sample(NamedTuple):
    """Held-out clips as a network makes them, and how near they are to the truth."""

    strip: NDArray[np.uint8]  # (H, W, 3)
    values: dict[str, float]


class Start(TypedDict, total=False):
    """How a training begins and who is told of it; every `train_...` hands this to `Trainer`."""

    resume: bool
    force: bool
    report: Report


def saver(component: str, config: ModelConfig, folder: Path, options: TrainOptions) -> Save:
    """Return what writes a network into a run, with what is worth knowing of its training."""

    def save(module: nn.Module, update: int) -> None:
        facts = {"updates": update, "batch_size": options.batch_size, "seed": options.seed}
        run.save(folder, component, module, config, facts)

    return save


def rate_share_at(update: int, options: TrainOptions) -> float:
    """Return the share of its peak that the rate has at an update: warm-up, then the schedule."""
    if update < options.warmup:
        if options.schedule == "constant":
            return FIRST_SHARE + (1 - FIRST_SHARE) * update / options.warmup
        return (update + 1) / options.warmup
    if options.schedule == "constant":
        return 1.0
    done = min(1.0, (update - options.warmup) / max(1, options.updates - options.warmup))
    return LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """Trains one module; its averaged copy is what gets saved and used.

    `generator` is on the device and seeded anew for each update.

    Args:
        name: of the component, which names its state and log files.
        model: the module to train, in float32; it is moved to the device.
        folder: the run folder; the state goes to `state/NAME.pt`, the log beside it (see `log`).
        options: see `TrainOptions`.
        muon_rate: peak rate at which Muon trains inner matrices, see `optim`, where the options
            leave it to the network; 0 is AdamW only.
        resume: continue from `state/NAME.pt`.
        force: begin anew where the folder has trained this network already; its state is removed.
        report: told of every update.

    Raises:
        WeightsError: the state to resume from is missing or belongs to another network; or there
            is one and neither `resume` nor `force` is given.
        DeviceError, ConfigError: the device or the precision cannot be had.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        folder: Path,
        options: TrainOptions,
        *,
        muon_rate: float = 0.0,
        resume: bool = False,
        force: bool = False,
        report: Report | None = None,
    ) -> None:
        if not resume and not force:
            run.refuse_trained(folder, name)
        self.report = report
        self.name, self.folder, self.options = name, folder, options
        self.compute = Compute(options.device, options.precision)
        self.device = self.compute.device
        self.model = model.to(self.device)
        self.average: nn.Module | None = None
        if options.ema_decay > 0:
            self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = _optimiser(model, self.parameters, options, muon_rate)
        self.peak_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.generator = torch.Generator(self.device)
        self.update = 0
        self._skipped = 0
        self._sums: dict[str, Tensor] = {}  # of the losses since the last row of the log
        self._count = 0
        self.state_path = run.state_path(folder, name)
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        if resume:
            self._resume()
        elif self.compute.is_main:
            self.state_path.unlink(missing_ok=True)
        if options.compile:
            model.compile()

    @property
    def averaged(self) -> nn.Module:
        """The module that is saved: the average, or the network itself where none is kept."""
        return self.model if self.average is None else self.average

    def fit(
        self,
        draw: Draw,
        losses: Losses,
        save: Save,
        *,
        sample: Callable[[nn.Module], Sample | None] | None = None,
        save_at: Container[int] = (),
        stop_at: int | None = None,
    ) -> int:
        """Train until the updates or the minutes are used up, or Ctrl-C or SIGTERM comes.

        A signal is obeyed when the update is done and the state is saved.

        Args:
            draw: makes a batch, in any thread (see `batches`).
            losses: of a batch on the device.
            save: writes the averaged module.
            sample: makes held-out clips, by the module it is given.
            save_at: updates at which to save, besides every so often.
            stop_at: end early, after this update.

        Returns:
            The updates done in all.

        Raises:
            KeyFaceError: the loss is no number any more.
            WeightsError: the state cannot be written.
        """
        options, started = self.options, time.monotonic()
        last = min(options.updates, stop_at or options.updates)
        log = TrainingLog(self.folder, self.name, self.update) if self.compute.is_main else None
        numbers = range(self.update * options.accumulate, last * options.accumulate)
        drawn = batches(
            draw, options.seed, self.compute.rank, numbers, options.draw_threads, self.device
        )
        shown: dict[str, float] = {}
        with _signals() as received, closing(drawn), closing(log) if log else nullcontext():
            while self.update < last:
                self._step(drawn, losses)
                if self.update % options.log_every == 0 or self.update >= last:
                    shown = self._take_means()
                    if log is not None:
                        log.write(self.update, time.monotonic() - started, shown)
                if self.report is not None and self.compute.is_main:
                    self.report(self.update, last, shown)
                if sample and options.sample_every and self.update % options.sample_every == 0:
                    self._sample(sample, log)
                out_of_time = time.monotonic() - started > options.minutes * 60
                if self.compute.any(out_of_time or bool(received)):
                    last = self.update
                due = self.update % options.save_every == 0 or self.update in save_at
                if due or self.update >= last:
                    self._save(save)
        return self.update

    def _step(self, drawn: Iterator[Any], losses: Losses) -> None:
        options = self.options
        share = rate_share_at(self.update, options)
        for group, peak in zip(self.optimiser.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * share
        seed = seed_for("update", options.seed, self.compute.rank, self.update)
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)  # of dropout
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        scaler, total = self.compute.scaler, dict[str, Tensor]()
        for _ in range(options.accumulate):
            batch = self.compute.move(next(drawn))
            values = losses(self, batch)
            loss = values["loss"] / options.accumulate
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for key, value in values.items():
                total[key] = total.get(key, 0) + value.detach().float() / options.accumulate
        self.compute.average_gradients(self.parameters)
        scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.parameters, options.clip_norm or math.inf)
        finite = bool(torch.isfinite(norm))
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped > MAX_SKIPPED:
            raise KeyFaceError(
                f"the training of {self.name} diverged: its gradient is no number "
                f"from update {self.update - MAX_SKIPPED} to {self.update}",
                "resume with a lower --learning-rate",
            )
        if finite or scaler.is_enabled():  # the scaler itself leaves out what is not finite
            scaler.step(self.optimiser)
        scaler.update()
        self.update += 1
        self._update_average()
        for key, value in (total | {"norm": norm.detach()}).items():
            self._sums[key] = self._sums.get(key, 0) + value
        self._count += 1

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # the average of a short run must forget its random beginning
        decay = min(self.options.ema_decay, (1 + self.update) / (10 + self.update))
        mine: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for kept, other in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(other)

    def _take_means(self) -> dict[str, float]:
        values = {key: float(value) / self._count for key, value in self._sums.items()}
        self._sums, self._count = {}, 0
        values = self.compute.mean(values)
        text = " ".join(f"{key} {value:.4g}" for key, value in values.items())
        logger.info("%s update %d: %s", self.name, self.update, text)
        return values

    def _sample(
        self, sample: Callable[[nn.Module], Sample | None], log: TrainingLog | None
    ) -> None:
        if log is not None:
            module = self.averaged.eval()
            with torch.inference_mode():
                made = sample(module)
            if made is not None:
                log.sample(self.update, made.strip, made.values)
        self.compute.wait()

    def _save(self, save: Save) -> None:
        if self.compute.is_main:
            save(self.averaged, self.update)
            state: dict[str, Any] = {
                "update": self.update,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.compute.scaler.state_dict(),
                "logged": (self._count, {key: float(v) for key, v in self._sums.items()}),
            }
            if self.average is not None:
                state["average"] = self.average.state_dict()
            _write_state(self.state_path, state)
        self.compute.wait()

    def _resume(self) -> None:
        if not self.state_path.is_file():
            raise WeightsError(
                f"no training state to resume from: {self.state_path}",
                "leave out --resume to begin a new run",
            )
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state.get("average", state["model"]))
            chosen = [{**group} for group in self.optimiser.param_groups]
            self.optimiser.load_state_dict(state["optimiser"])
            # which brings back the old run's weight decay and betas: the options go before them
            for group, mine in zip(self.optimiser.param_groups, chosen, strict=True):
                group.update({key: value for key, value in mine.items() if key != "params"})
            # a state of an earlier version has neither of these
            if state.get("scaler"):
                self.compute.scaler.load_state_dict(state["scaler"])
            self._count, sums = state.get("logged", (0, {}))
            self._sums = {key: torch.tensor(v, device=self.device) for key, v in sums.items()}
            self.update = int(state["update"])
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            raise WeightsError(
                f"the training state does not fit this network: {self.state_path}",
                "it was made with another configuration: begin a new run folder",
            ) from error


def _optimiser(
    model: nn.Module, parameters: list[nn.Parameter], options: TrainOptions, muon_rate: float
) -> torch.optim.Optimizer:
    betas = (0.9, options.beta2)
    muon_rate = muon_rate if options.muon_rate < 0 else options.muon_rate
    if muon_rate:
        groups = parameter_groups(model, muon_rate, options.learning_rate)
        return MuonAdamW(groups, betas=betas, weight_decay=options.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=betas, weight_decay=options.weight_decay
    )


def _write_state(path: Path, state: dict[str, Any]) -> None:
    hint = "free some space and continue with --resume: the state before is kept"
    with replacing(path, WeightsError, hint) as part, part.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM in a list, and obey the first of them after the block.

    A second signal is obeyed at once.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, handlers[number])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for handled, handler in handlers.items():
            signal.signal(handled, handler)
    if received:
        logger.info("stopped by signal %d; the state is saved", received[0])
        signal.raise_signal(received[0])
