"""The training loop: rates, averages, stopping, resuming, precision, several processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from keyface_cli.errors import ConfigError, KeyFaceError, WeightsError
from keyface_cli.training.batches import batches
from keyface_cli.training.compute import Compute
from keyface_cli.training.loop import MAX_SKIPPED, Trainer, rate_share_at
from keyface_cli.training.optim import MuonAdamW, orthogonalise, parameter_groups
from keyface_cli.training.options import TrainOptions

OPTIONS = TrainOptions(
    updates=20, learning_rate=0.01, warmup=5, save_every=4, log_every=3, precision="float32"
)


def draw(generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(4, 3, generator=generator),)


def quadratic(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
    (x,) = batch
    x = x + 0.1 * torch.randn(x.shape, generator=trainer.generator)
    x = nn.functional.dropout(x, 0.2)
    return {"loss": (trainer.model(x) - x.sum(1, keepdim=True)).square().mean()}


def keep_nothing(module: nn.Module, update: int) -> None:
    pass


def linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def losses_of(folder: Path, name: str = "x") -> list[str]:
    """The log without its clock."""
    lines = (folder / f"{name}.csv").read_text().splitlines()
    return [",".join(value for i, value in enumerate(line.split(",")) if i != 1) for line in lines]


def test_learning_rate_warms_up_and_falls() -> None:
    options = TrainOptions(updates=1000, warmup=100)
    rates = [rate_share_at(update, options) for update in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, rel=0.01)


def test_published_rate_is_constant_after_a_linear_warm_up() -> None:
    options = TrainOptions(updates=3000, warmup=1000, schedule="constant")
    assert rate_share_at(0, options) == pytest.approx(1e-6)
    assert rate_share_at(500, options) == pytest.approx(0.5, rel=1e-5)
    assert {rate_share_at(update, options) for update in range(1000, 3000)} == {1.0}


def test_training_descends(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, updates=300, learning_rate=0.05, warmup=1)
    trainer = Trainer("linear", linear(0), tmp_path, options)
    saved: list[tuple[Any, int]] = []

    def losses(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        (x,) = batch
        return {"loss": (trainer.model(x) - x.sum(1, keepdim=True)).square().mean()}

    assert trainer.fit(draw, losses, lambda module, update: saved.append((module, update))) == 300
    average, update = saved[-1]
    assert update == 300
    torch.testing.assert_close(average.weight, torch.ones(1, 3), atol=0.05, rtol=0)


@pytest.mark.parametrize("muon_rate", [0.0, 0.05])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, muon_rate: float) -> None:
    options = dataclasses.replace(OPTIONS, accumulate=2)
    whole = Trainer("x", network(1), tmp_path / "whole", options, muon_rate=muon_rate)
    whole.fit(draw, quadratic, keep_nothing)
    killed = Trainer("x", network(1), tmp_path / "parts", options, muon_rate=muon_rate)

    class Kill(Exception):
        pass

    def die_at_nine(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        if trainer.update == 9:  # the last save was at 8
            raise Kill
        return quadratic(trainer, batch)

    with pytest.raises(Kill):
        killed.fit(draw, die_at_nine, keep_nothing)
    # the log has a row that the resumed run will write again
    assert losses_of(tmp_path / "parts")[-1].startswith("9,")
    resumed = Trainer(
        "x", network(2), tmp_path / "parts", options, resume=True, muon_rate=muon_rate
    )
    assert resumed.update == 8
    resumed.fit(draw, quadratic, keep_nothing)
    assert_equal(whole.model, resumed.model)
    assert_equal(whole.averaged, resumed.averaged)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")


def test_a_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        options = dataclasses.replace(OPTIONS, seed=seed)
        trainer = Trainer("x", linear(0), tmp_path / name, options)
        trainer.fit(draw, quadratic, keep_nothing)
        runs.append(trainer.model)
    assert_equal(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_equal(runs[0], runs[2])


def test_threads_change_nothing() -> None:
    def drawn(threads: int) -> list[Tensor]:
        cpu = torch.device("cpu")
        return [batch[0] for batch in batches(draw, 5, 0, range(7, 17), threads, cpu)]

    alone, ahead = drawn(0), drawn(2)
    assert len(alone) == 10
    assert all(torch.equal(a, b) for a, b in zip(alone, ahead, strict=True))
    later = [batch[0] for batch in batches(draw, 5, 0, range(12, 17), 0, torch.device("cpu"))]
    assert torch.equal(later[0], alone[5])
    with pytest.raises(ZeroDivisionError):  # a thread's error is the loop's
        list(batches(lambda generator: 1 / 0, 5, 0, range(3), 2, torch.device("cpu")))
    other_process = next(batches(draw, 5, 1, range(7, 17), 0, torch.device("cpu")))[0]
    assert not torch.equal(other_process, alone[0])


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Path) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    parts = iter(x.split(2))

    def losses(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        return {"loss": (trainer.model(batch[0]) - 1).square().mean()}

    options = dataclasses.replace(OPTIONS, updates=1, clip_norm=0.0)
    one = Trainer("x", linear(0), tmp_path / "one", options)
    one.fit(lambda g: (x,), losses, keep_nothing)
    split = dataclasses.replace(options, accumulate=4)
    four = Trainer("x", linear(0), tmp_path / "four", split)
    four.fit(lambda g: (next(parts),), losses, keep_nothing)
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_are_clipped_only_where_that_is_asked(tmp_path: Path) -> None:
    def steep(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        return {"loss": 1000 * trainer.model(batch[0]).square().mean()}

    norms = []
    for clip_norm in (1.0, 0.0):
        options = dataclasses.replace(OPTIONS, updates=1, clip_norm=clip_norm)
        trainer = Trainer("x", linear(0), tmp_path / str(clip_norm), options)
        trainer.fit(draw, steep, keep_nothing)
        gradients = [p.grad for p in trainer.parameters if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
    assert norms[0] == pytest.approx(1, rel=1e-4)
    assert norms[1] > 10


def test_without_an_average_the_network_itself_is_saved(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, ema_decay=0.0)
    trainer = Trainer("x", linear(0), tmp_path, options)
    saved: list[nn.Module] = []
    trainer.fit(draw, quadratic, lambda module, update: saved.append(module))
    assert saved[-1] is trainer.model
    assert "average" not in torch.load(tmp_path / "state" / "x.pt", weights_only=True)


def test_a_state_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    trainer = Trainer("x", network(0), tmp_path, OPTIONS, muon_rate=0.05)
    trainer.fit(draw, quadratic, keep_nothing)
    path = tmp_path / "state" / "x.pt"
    state = torch.load(path, weights_only=True)
    del state["scaler"], state["logged"]
    state["generator"] = torch.Generator().get_state()
    torch.save(state, path)
    more = dataclasses.replace(OPTIONS, updates=22)
    resumed = Trainer("x", network(1), tmp_path, more, resume=True, muon_rate=0.05)
    assert resumed.update == 20
    assert_equal(resumed.averaged, trainer.averaged)
    assert resumed.fit(draw, quadratic, keep_nothing) == 22


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_obeyed_when_the_state_is_saved(tmp_path: Path, number: int) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    def signalled(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        if trainer.update == 5:
            signal.raise_signal(number)
        return quadratic(trainer, batch)

    before = signal.signal(number, stop)
    try:
        trainer = Trainer("x", linear(0), tmp_path, OPTIONS)
        with pytest.raises(Stopped):
            trainer.fit(draw, signalled, keep_nothing)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert Trainer("x", linear(0), tmp_path, OPTIONS, resume=True).update == 6


def test_minutes_end_a_run(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, minutes=0.0)
    trainer = Trainer("x", linear(0), tmp_path, options)
    assert trainer.fit(draw, quadratic, keep_nothing) == 1
    assert Trainer("x", linear(0), tmp_path, OPTIONS, resume=True).update == 1


def test_a_diverged_training_says_so(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, updates=1000)
    trainer = Trainer("x", linear(0), tmp_path, options)
    first = trainer.model.weight.detach().clone()  # type: ignore[operator, union-attr]

    def nan(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        return {"loss": trainer.model(batch[0]).mean() * float("nan")}

    with pytest.raises(KeyFaceError, match=f"from update 0 to {MAX_SKIPPED}"):
        trainer.fit(draw, nan, keep_nothing)
    assert torch.equal(trainer.model.weight, first)  # type: ignore[arg-type]


def test_samples_are_taken_every_so_often(tmp_path: Path) -> None:
    modules: list[bool] = []

    def sample(module: nn.Module) -> None:
        modules.append(module.training or torch.is_grad_enabled())

    options = dataclasses.replace(OPTIONS, sample_every=10, ema_decay=0.0)
    trainer = Trainer("x", linear(0), tmp_path, options)
    trainer.fit(draw, quadratic, keep_nothing, sample=sample)
    assert modules == [False, False]


def test_a_state_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer("x", linear(0), tmp_path, dataclasses.replace(OPTIONS, updates=4))
    trainer.fit(draw, quadratic, keep_nothing)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    more = Trainer("x", linear(0), tmp_path, OPTIONS, resume=True)
    with pytest.raises(WeightsError, match="the disk is full"):
        more.fit(draw, quadratic, keep_nothing)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["x.pt"]
    assert Trainer("x", linear(0), tmp_path, OPTIONS, resume=True).update == 4


def test_a_finished_training_is_begun_anew_by_force_only(tmp_path: Path) -> None:
    Trainer("x", linear(0), tmp_path, OPTIONS).fit(draw, quadratic, keep_nothing)
    state, log = tmp_path / "state" / "x.pt", tmp_path / "x.csv"
    before = state.read_bytes(), log.read_bytes()
    with pytest.raises(WeightsError, match="has trained x already") as refused:
        Trainer("x", linear(1), tmp_path, OPTIONS)
    assert refused.value.hint == "continue with --resume, or replace it with --force"
    assert (state.read_bytes(), log.read_bytes()) == before
    assert Trainer("x", linear(1), tmp_path, OPTIONS, force=True).update == 0
    assert not state.exists()


@pytest.mark.parametrize("muon_rate", [0.0, 0.05])
def test_a_resumed_run_has_the_options_that_it_records(tmp_path: Path, muon_rate: float) -> None:
    first = Trainer("x", network(0), tmp_path, OPTIONS, muon_rate=muon_rate)
    first.fit(draw, quadratic, keep_nothing)
    other = dataclasses.replace(OPTIONS, weight_decay=0.5, beta2=0.9)
    resumed = Trainer("x", network(0), tmp_path, other, resume=True, muon_rate=muon_rate)
    for group in resumed.optimiser.param_groups:
        assert (group["weight_decay"], group["betas"]) == (0.5, (0.9, 0.9))


def test_resuming_without_a_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no training state"):
        Trainer("x", linear(0), tmp_path, OPTIONS, resume=True)


def test_resuming_another_network_is_an_error(tmp_path: Path) -> None:
    Trainer("x", linear(0), tmp_path, OPTIONS).fit(draw, quadratic, keep_nothing)
    with pytest.raises(WeightsError, match="does not fit"):
        Trainer("x", nn.Linear(5, 1), tmp_path, OPTIONS, resume=True)


def test_precision_is_that_of_the_forward_pass() -> None:
    x, layer = torch.ones(2, 3), nn.Linear(3, 1)
    compute = Compute("cpu", "bfloat16")
    with compute.autocast():
        assert layer(x).dtype == torch.bfloat16
        with compute.autocast(enabled=False):
            assert layer(x).dtype == torch.float32
    with Compute("cpu", "float32").autocast():
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32
    with pytest.raises(ConfigError, match="float16"):
        Compute("cpu", "float16")


def test_float16_scales_the_loss_and_skips_what_overflows() -> None:
    # on a CPU the command refuses float16; the scaler is the same object as on a GPU
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    layer = linear(0)
    groups = parameter_groups(layer, 0.01, 0.01)
    optimiser = MuonAdamW(groups)
    before = layer.weight.detach().clone()
    for value, moved in ((float("inf"), False), (1.0, True)):
        optimiser.zero_grad()
        scaler.scale(layer(torch.ones(1, 3)).sum() * value).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
        assert torch.equal(layer.weight, before) != moved


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5), (3, 6, 10)])
def test_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4


def test_muon_descends_and_adam_is_that_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = x.sum(1, keepdim=True)
    model = network(0)
    optimiser = MuonAdamW(parameter_groups(model, 0.05, 0.02))
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.3 * values[0]

    ours, theirs = linear(1), linear(1)
    groups = [{"params": list(ours.parameters()), "muon": False, "lr": 0.01}]
    pair = (
        (ours, MuonAdamW(groups)),
        (theirs, torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.9, 0.99))),
    )
    for _ in range(5):
        for layer, adam in pair:
            adam.zero_grad()
            (layer(x) - y).square().mean().backward()
            adam.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


PROCESS = """
import sys
from pathlib import Path
import torch
from torch import nn
from keyface_cli.training.loop import Trainer
from keyface_cli.training.options import TrainOptions

torch.manual_seed(0)
options = TrainOptions(updates=6, learning_rate=0.01, warmup=1, save_every=3, log_every=2,
                       precision="float32", device="cpu", clip_norm=0.0)
trainer = Trainer("x", nn.Linear(3, 1), Path(sys.argv[1]), options)
shift = float(trainer.compute.rank)

def losses(trainer, batch):
    return {"loss": (trainer.model(batch[0]) - shift).square().mean()}

def save(module, update):
    assert trainer.compute.rank == 0

trainer.fit(lambda g: (torch.ones(4, 3),), losses, save)
Path(sys.argv[1], f"weight{trainer.compute.rank}").write_text(repr(trainer.model.weight.tolist()))
"""


@pytest.mark.slow
def test_several_processes_average_their_gradients(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    weights = {(tmp_path / f"weight{rank}").read_text() for rank in range(2)}
    assert len(weights) == 1  # both took the same steps
    # and they are those of one process whose batch holds both halves
    options = dataclasses.replace(
        OPTIONS, updates=6, learning_rate=0.01, warmup=1, clip_norm=0.0, device="cpu"
    )
    alone = Trainer("x", linear(0), tmp_path / "alone", options)

    def losses(trainer: Trainer, batch: tuple[Tensor]) -> dict[str, Tensor]:
        targets = torch.cat([torch.zeros(4, 1), torch.ones(4, 1)])
        return {"loss": (trainer.model(batch[0]) - targets).square().mean()}

    alone.fit(lambda g: (torch.ones(8, 3),), losses, keep_nothing)
    found = torch.tensor(eval(weights.pop()))
    torch.testing.assert_close(found, alone.model.weight.detach())  # type: ignore[union-attr, operator]
    rows = (tmp_path / "x.csv").read_text().splitlines()
    assert len(rows) == 4  # written once
