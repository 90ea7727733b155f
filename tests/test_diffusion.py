"""Preconditioning, schedules, the Euler sampler and guidance, on problems with known answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from keyface_cli.diffusion.denoiser import denoise, precondition
from keyface_cli.diffusion.guidance import Branch, autoguidance, in_interval, keyframe_guidance
from keyface_cli.diffusion.sampler import (
    AYS_SIGMAS,
    ays_sigmas,
    karras_sigmas,
    sample_euler,
    sigmas_for,
)

SHAPE = (2, 3, 4, 2, 2)  # (B, T, C, h, w)


def noise(seed: int = 0, shape: Sequence[int] = SHAPE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# preconditioning


@pytest.mark.parametrize("sigma", [0.002, 0.4, 1.0, 54.5, 700.0])
def test_input_has_unit_variance_and_a_perfect_network_needs_unit_variance(sigma: float) -> None:
    c_skip, c_out, c_in, c_noise = precondition(torch.tensor(sigma, dtype=torch.float64))
    assert float(c_in**2 * (1 + sigma**2)) == pytest.approx(1)
    # The target (z - c_skip x) / c_out of unit-variance z and x = z + sigma n has variance 1 too.
    assert float(((1 - c_skip) ** 2 + (c_skip * sigma) ** 2) / c_out**2) == pytest.approx(1)
    assert float(c_noise) == pytest.approx(math.log(sigma) / 4)


def test_v_prediction_recovers_the_clean_latents() -> None:
    z, n = noise(1), noise(2)
    sigma = torch.tensor([0.3, 40.0])
    x = z + sigma.view(-1, 1, 1, 1, 1) * n

    def network(scaled: Tensor, c_noise: Tensor) -> Tensor:
        # v = cos n - sin z (Salimans and Ho 2022), with cos = c_in and the sign of c_out here
        angle = torch.atan((4 * c_noise).exp()).view(-1, 1, 1, 1, 1)
        return angle.cos() * n - angle.sin() * z

    torch.testing.assert_close(denoise(network, x, sigma), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 700.0])
def test_anchored_network_adds_to_its_anchor_and_lets_x_pass_where_its_gate_is_open(
    sigma: float,
) -> None:
    anchor, difference, x = noise(1), noise(2), noise(3)
    seen = {}

    def network(scaled: Tensor, c_noise: Tensor) -> Tensor:
        seen["scaled"] = scaled
        gate = torch.full_like(scaled, -100.0)
        gate[:, :, :2] = 0.0  # half open
        gate[:, :, 2:3] = 100.0
        return torch.cat([difference, gate], dim=2)

    found = denoise(network, x, torch.tensor(sigma), anchor=anchor)
    passed = torch.tensor([0.5, 0.5, 1.0, 0.0]).view(4, 1, 1) / (1 + sigma**2)
    torch.testing.assert_close(found, anchor + passed * (x - anchor) + difference)
    torch.testing.assert_close(seen["scaled"], x / math.sqrt(1 + sigma**2))


def test_network_gets_one_noise_level_per_clip() -> None:
    levels = []

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        levels.append(c_noise)
        return x

    denoise(network, noise(), torch.tensor(1.0, dtype=torch.float64))
    assert levels[0].shape == (2,)
    assert levels[0].dtype == torch.float32


def test_all_but_the_network_is_float32_and_gradients_flow() -> None:
    weight = torch.tensor(0.5, requires_grad=True)

    def network(x: Tensor, c_noise: Tensor) -> Tensor:
        return (weight * x).bfloat16()

    found = denoise(network, noise().half(), torch.tensor([0.5, 2.0]))
    assert found.dtype == torch.float32
    found.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad) != 0


# schedules


@pytest.mark.parametrize("schedule", ["ays", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 5, 9, 12, 15, 40])
def test_schedule_falls_from_end_to_end_in_as_many_levels(schedule: str, steps: int) -> None:
    sigmas = sigmas_for(schedule, steps)
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == steps + 1
    assert bool((sigmas.diff() < 0).all())
    assert float(sigmas[0]) == pytest.approx(700)
    assert float(sigmas[-1]) == 0
    if steps > 1:
        assert float(sigmas[-2]) == pytest.approx(0.002)


def test_ten_and_eleven_steps_are_the_table() -> None:
    assert ays_sigmas(10).tolist() == [*AYS_SIGMAS, 0.0]
    assert torch.equal(ays_sigmas(11), ays_sigmas(10))


def test_ays_levels_lie_on_straight_lines_in_log_sigma() -> None:
    twice = ays_sigmas(21)[:-1]  # the table and one level between each two of it
    torch.testing.assert_close(twice[::2], torch.tensor(AYS_SIGMAS, dtype=torch.float64))
    middle = (twice[:-2:2] * twice[2::2]).sqrt()
    torch.testing.assert_close(twice[1::2], middle)


def test_a_schedule_may_end_before_the_table_does() -> None:
    assert AYS_SIGMAS[9] == 0.034
    found = ays_sigmas(4, 0.034)
    torch.testing.assert_close(found, torch.tensor([700, 7.977, 0.981, 0.034, 0]).double())
    assert float(sigmas_for("karras", 3, 0.034)[-2]) == pytest.approx(0.034)


def test_karras_schedule_is_even_in_its_own_measure() -> None:
    levels = karras_sigmas(7, sigma_min=0.1, sigma_max=10, rho=3)[:-1] ** (1 / 3)
    torch.testing.assert_close(levels.diff(), levels.diff().mean().expand(6))
    torch.testing.assert_close(
        karras_sigmas(3, sigma_min=1, sigma_max=3, rho=1),
        torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64),
    )


def test_schedules_refuse_what_they_cannot_do() -> None:
    for schedule in ("ays", "karras"):
        with pytest.raises(ValueError, match="steps must be 1 or more, found 0"):
            sigmas_for(schedule, 0)
    with pytest.raises(ValueError, match="unknown schedule: linear"):
        sigmas_for("linear", 10)


# the Euler sampler


def gaussian_denoiser(mean: float, std: float) -> tuple[list[float], object]:
    """The exact denoiser of data from N(mean, std^2), and the noise levels it was asked for."""
    asked: list[float] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        variance = float(sigma) ** 2
        return (std**2 * x + variance * mean) / (std**2 + variance)

    return asked, denoiser


def exact_sample(start: Tensor, sigma: float, mean: float, std: float) -> Tensor:
    """Where the probability-flow ODE of N(mean, std^2) takes x from noise level sigma."""
    return mean + (start - mean) * std / math.sqrt(std**2 + sigma**2)


def euler_error(steps: int) -> float:
    sigmas = karras_sigmas(steps, sigma_min=0.01, sigma_max=20)
    _, denoiser = gaussian_denoiser(0.7, 0.5)
    found = sample_euler(denoiser, noise(), sigmas)  # type: ignore[arg-type]
    exact = exact_sample(noise() * math.sqrt(1 + 20**2), 20, 0.7, 0.5)
    return float((found - exact).abs().max())


def test_euler_converges_to_the_exact_flow_at_first_order() -> None:
    coarse, fine = euler_error(100), euler_error(200)
    assert fine < 0.02
    assert coarse / fine == pytest.approx(2, rel=0.1)


def test_one_point_of_data_is_reached_whatever_the_schedule() -> None:
    _, denoiser = gaussian_denoiser(-0.3, 0.0)
    found = sample_euler(denoiser, noise(), ays_sigmas(3))  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.full(SHAPE, -0.3), atol=1e-4, rtol=0)


def test_each_level_costs_one_evaluation_and_one_callback() -> None:
    asked, denoiser = gaussian_denoiser(0, 1)
    steps: list[int] = []
    sample_euler(
        denoiser,  # type: ignore[arg-type]
        noise(),
        ays_sigmas(10),
        callback=lambda step, x: steps.append(step),
    )
    assert asked == list(AYS_SIGMAS)
    assert steps == list(range(1, 12))


# guidance


class Branches:
    """Evaluates each branch as a tensor of its own and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[Branch, ...]] = []
        self.values = {branch: noise(seed) for seed, branch in enumerate(Branch)}

    def __call__(self, x: Tensor, sigma: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
        self.asked.append(tuple(branches))
        return [self.values[branch] for branch in branches]

    def guided(self, audio: float, identity: float, emotion: float = 1.0) -> Tensor:
        guided = keyframe_guidance(self, audio=audio, identity=identity, emotion=emotion)
        return guided(noise(9), torch.tensor(1.0))


E0, E1, E2, N = Branch


@pytest.mark.parametrize(("audio", "identity"), [(5.0, 2.0), (1.5, 3.0), (0.0, 2.0)])
def test_keyframe_guidance_scales_audio_and_identity_apart(audio: float, identity: float) -> None:
    branches = Branches()
    e0, e1, e2, n = (branches.values[branch] for branch in Branch)
    expected = audio * (e2 - e1) + identity * (e1 - e0) + e0
    torch.testing.assert_close(branches.guided(audio, identity), expected, atol=1e-5, rtol=1e-5)
    emotional = expected + 2 * (e2 - n)
    torch.testing.assert_close(branches.guided(audio, identity, 3), emotional, atol=1e-5, rtol=1e-5)


def test_guidance_in_an_interval_of_noise_levels() -> None:
    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        return x + 1

    def plain(x: Tensor, sigma: Tensor) -> Tensor:
        return x

    both = in_interval(guided, plain, (0.5, 20.0))
    for sigma, added in ((0.4, 0), (0.5, 1), (3.0, 1), (20.0, 1), (20.1, 0)):
        assert torch.equal(both(noise(), torch.tensor(sigma).double()), noise() + added)
    assert in_interval(guided, plain, None) is guided


@pytest.mark.parametrize(
    ("audio", "identity", "emotion", "needed"),
    [
        (1, 1, 1, {E2}),
        (3, 1, 1, {E1, E2}),
        (2, 2, 1, {E0, E2}),
        (5, 2, 1, {E0, E1, E2}),
        (0, 1, 1, {E1}),
        (0, 0, 1, {E0}),
        (1, 1, 3, {E2, N}),
        (1, 1, 0, {N}),
    ],
)
def test_only_needed_branches_run_in_one_call(
    audio: float, identity: float, emotion: float, needed: set[Branch]
) -> None:
    branches = Branches()
    branches.guided(audio, identity, emotion)
    (asked,) = branches.asked
    assert len(asked) == len(needed)
    assert set(asked) == needed


def test_scales_of_1_are_no_guidance() -> None:
    branches = Branches()
    assert torch.equal(branches.guided(1, 1), branches.values[E2])


def test_autoguidance_goes_on_from_the_guide_through_the_network() -> None:
    good, guide = noise(1), noise(2)
    guided = autoguidance(lambda x, s: good, lambda x, s: guide, 2.5)
    found = guided(noise(), torch.tensor(1.0))
    torch.testing.assert_close(found, guide + 2.5 * (good - guide))


@pytest.mark.parametrize(("scale", "counts"), [(1, (1, 0)), (0, (0, 1)), (2, (1, 1))])
def test_autoguidance_runs_what_it_needs(scale: float, counts: tuple[int, int]) -> None:
    calls = {"good": 0, "guide": 0}

    def network(name: str, value: Tensor) -> object:
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            calls[name] += 1
            return value

        return denoiser

    good, guide = network("good", noise(1)), network("guide", noise(2))
    found = autoguidance(good, guide, scale)(noise(), torch.tensor(1.0))  # type: ignore[arg-type]
    assert (calls["good"], calls["guide"]) == counts
    if scale == 1:
        assert torch.equal(found, noise(1))
