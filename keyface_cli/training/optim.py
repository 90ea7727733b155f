"""Muon beside AdamW: orthogonalised momentum for matrices, Adam for all else.

Muon (Jordan et al. 2024) replaces the momentum of a weight matrix by the nearest semi-orthogonal
matrix, found by a few Newton-Schulz iterations, so that every direction of the matrix learns at
the same pace. It reaches a given loss in fewer updates, which is what counts on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; they need not converge to 1
# first and last layers by their modules' names, and what is no matrix though it has two dimensions
OUTER = {"conv_in", "conv_out", "time_conv_out", "quant_conv", "missing_frame"}


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of a matrix (m, n) near 1 and keep its singular vectors."""
    a, b, c = COEFFICIENTS
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.to(matrix.dtype)
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


class MuonAdamW(torch.optim.Optimizer):
    """One optimiser with two rules, chosen by each group's `muon`.

    Args:
        groups: from `parameter_groups`; each has its own "lr".
        momentum: of Muon, with Nesterov's correction.
        betas: of Adam.
        weight_decay: decoupled, relative to the learning rate; matrices only.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for p in group["params"]:
                if p.grad is not None:
                    update(p, p.grad, self.state[p], group)

    def _muon(self, p: Tensor, gradient: Tensor, state: Any, group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(average, group["momentum"]).flatten(1)
        direction = orthogonalise(ahead)
        scale = math.sqrt(max(1.0, ahead.shape[0] / ahead.shape[1]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(direction.view_as(p), alpha=-group["lr"] * scale)

    def _adam(self, p: Tensor, gradient: Tensor, state: Any, group: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        step = float(state["step"])
        root = (state["square"] / (1 - second**step)).sqrt_().add_(1e-8)
        p.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first**step))


def parameter_groups(model: nn.Module, muon_rate: float, adam_rate: float) -> list[dict[str, Any]]:
    """Sort a network's trained parameters: inner matrices to Muon, the rest to Adam.

    The first and last layers, biases, norms and single vectors are Adam's.

    Args:
        model: the network.
        muon_rate: learning rate of matrices, in units of their spectral norm.
        adam_rate: learning rate of the rest.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        outer = not OUTER.isdisjoint(name.split("."))
        (rest if outer or p.dim() < 2 else matrices).append(p)
    groups = [
        {"params": matrices, "muon": True, "lr": muon_rate},
        {"params": rest, "muon": False, "lr": adam_rate},
    ]
    return [group for group in groups if group["params"]]
