"""Muon beside AdamW: orthogonalised momentum for matrices, Adam for all else.

Muon (Jordan et al. 2024) replaces the momentum of a weight matrix by the nearest semi-orthogonal
matrix, found by a few Newton-Schulz iterations, so that every direction of the matrix learns at
the same pace. It reaches a given loss in fewer updates, which is what counts on a CPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; they need not converge to 1
# first and last layers by their modules' names, and what is no matrix though it has two dimensions
OUTER = {"conv_in", "conv_out", "time_conv_out", "quant_conv", "missing_frame"}


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring singular values near 1 and keep singular vectors: (m, n), or (B, m, n) for many."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.to(matrices.dtype)
    return result.mT if tall else result


class MuonAdamW(torch.optim.Optimizer):
    """One optimiser with two rules, chosen by each group's `muon`.

    Matrices of one shape are updated together, and so is all that is Adam's: on a GPU the number
    of calls is what takes the time.

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
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            by_shape[p.shape[0], p.numel() // p.shape[0]].append(p)
        for (rows, columns), alike in by_shape.items():
            gradients = [_gradient(p) for p in alike]
            averages = [self.state[p]["momentum"] for p in alike]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
            directions = orthogonalise(torch.stack([g.flatten(1) for g in ahead]))
            scale = math.sqrt(max(1.0, rows / columns))
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
            steps = [d.view_as(p) for d, p in zip(directions.unbind(), alike, strict=True)]
            torch._foreach_add_(alike, steps, alpha=-group["lr"] * scale)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        states = [self.state[p] for p in parameters]
        for p, state in zip(parameters, states, strict=True):
            if "mean" not in state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
        gradients = [_gradient(p) for p in parameters]
        means = [state["mean"] for state in states]
        squares = [state["square"] for state in states]
        steps = [float(state["step"]) for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - second)
        roots = torch._foreach_div(squares, [1 - second**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, 1e-8)
        rates = [-group["lr"] / (1 - first**step) for step in steps]
        torch._foreach_addcdiv_(parameters, means, roots, rates)


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


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
