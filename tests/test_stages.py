"""Both stages around networks that can be computed by hand, and the joining of segments."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from keyface_cli.diffusion.sampler import sigmas_for
from keyface_cli.models.conditioning import Conditioning
from keyface_cli.models.unet import VideoUNet
from keyface_cli.stages.interpolation import InterpolationStage, merge_segments
from keyface_cli.stages.keyframes import KeyframeStage
from keyface_cli.stages.noise import anchor_for, noise_for

SHAPE = (14, 2, 3, 3)  # T, C, h, w
SCALE = 0.5  # of the latents


class Fake:
    """A network whose answer is a plain sum of what it hears, and that keeps count."""

    def __init__(self, bias: float = 0.0, slope: float = 0.1) -> None:
        self.bias = bias
        self.slope = slope
        self.batches: list[int] = []
        self.emotions: list[Tensor | None] = []

    def __call__(self, x: Tensor, c_noise: Tensor, given: Conditioning) -> Tensor:
        self.batches.append(len(x))
        self.emotions.append(given.emotion)
        audio = given.audio.mean(dim=-1)[:, :, None, None, None]  # (B, T, 1, 1, 1)
        return self.slope * x + audio + given.latents.mean(dim=1, keepdim=True) + self.bias


class Anchored(Fake):
    """The same for an anchored model: adds all that to its anchor and lets no noise pass."""

    def __call__(self, x: Tensor, c_noise: Tensor, given: Conditioning) -> Tensor:
        answer = super().__call__(x, c_noise, given)
        return torch.cat([answer, torch.full_like(answer, -100.0)], dim=2)


def as_network(fake: Fake) -> VideoUNet:
    return cast(VideoUNet, fake)


def keyframe_stage(
    fake: Fake, audio: float, identity: float, parameterization: str = "v"
) -> KeyframeStage:
    sigmas = sigmas_for("ays", 4)
    return KeyframeStage(as_network(fake), SCALE, parameterization, sigmas, audio, identity)


def interpolation_stage(
    fake: Fake, guide: Fake | None, scale: float, parameterization: str = "v"
) -> InterpolationStage:
    weaker = None if guide is None else as_network(guide)
    sigmas = sigmas_for("ays", 4)
    return InterpolationStage(as_network(fake), weaker, SCALE, parameterization, sigmas, scale)


def clips(B: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Identity latents, audio, emotion and noise of B clips."""
    make = torch.Generator().manual_seed(B)
    shapes = (B, *SHAPE[1:]), (B, 14, 4), (B, 14, 2), (B, *SHAPE)
    identity, audio, emotion, noise = (torch.randn(s, generator=make) for s in shapes)
    return identity, audio, emotion, noise


def test_noise_depends_on_seed_kind_and_index_alone() -> None:
    first = noise_for("keyframes", 0, SHAPE, seed=1)
    assert torch.equal(first, noise_for("keyframes", 0, SHAPE, seed=1))
    others = [
        noise_for("keyframes", 1, SHAPE, seed=1),
        noise_for("interpolation", 0, SHAPE, seed=1),
        noise_for("keyframes", 0, SHAPE, seed=2),
        noise_for("keyframes", 0, SHAPE, seed=-1),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_noise_is_unit_gaussian_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    noise = noise_for("keyframes", 0, (14, 4, 64, 64), seed=0)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01
    assert torch.equal(state, torch.get_rng_state())


def test_anchor_of_one_latent_is_constant() -> None:
    latents = torch.randn(2, 1, 4, 3, 3)
    anchor = anchor_for("anchored", latents, 14)
    assert anchor is not None
    assert torch.equal(anchor, latents.expand(-1, 14, -1, -1, -1))


def test_anchor_of_two_latents_is_a_straight_line_between_them() -> None:
    latents = torch.randn(2, 2, 4, 3, 3)
    anchor = anchor_for("anchored", latents, 14)
    assert anchor is not None
    first, last = latents[:, 0], latents[:, 1]
    torch.testing.assert_close(anchor[:, 0], first)
    torch.testing.assert_close(anchor[:, 13], last)
    torch.testing.assert_close(anchor[:, 4], first + (last - first) * 4 / 13)


def test_only_an_anchored_model_has_an_anchor() -> None:
    assert anchor_for("v", torch.zeros(1, 1, 4, 3, 3), 14) is None
    with pytest.raises(ValueError, match="unknown parameterization: eps"):
        anchor_for("eps", torch.zeros(1, 1, 4, 3, 3), 14)


def test_merging_averages_shared_frames_and_keeps_the_others() -> None:
    segments = torch.randn(3, 14, 3, 4, 4)
    merged = torch.cat(list(merge_segments(segments.clone())))
    assert merged.shape == (3 * 13 + 1, 3, 4, 4)
    for k in range(3):
        assert torch.equal(merged[13 * k + 1 : 13 * k + 13], segments[k, 1:13])
    assert torch.equal(merged[0], segments[0, 0])
    assert torch.equal(merged[-1], segments[2, 13])
    for k in (1, 2):
        assert torch.equal(merged[13 * k], (segments[k - 1, 13] + segments[k, 0]) / 2)


def test_merging_hands_frames_on_before_it_asks_for_more() -> None:
    asked = []

    def segments() -> object:
        for k in range(3):
            asked.append(k)
            yield torch.full((14, 1), float(k))

    merged = merge_segments(segments())  # type: ignore[arg-type]
    assert len(next(merged)) == 13
    assert asked == [0]


def test_merging_nothing_is_nothing() -> None:
    assert list(merge_segments([])) == []


@pytest.mark.parametrize(
    ("audio", "identity", "branches"), [(1, 1, 1), (3, 1, 2), (2, 2, 2), (1, 2, 3), (5, 2, 3)]
)
def test_guidance_runs_only_the_branches_it_needs(
    audio: float, identity: float, branches: int
) -> None:
    fake = Fake()
    keyframe_stage(fake, audio, identity).sample(*clips(2))
    assert fake.batches == [2 * branches] * 4


def test_guidance_of_one_is_the_plain_network() -> None:
    identity, audio, emotion, noise = clips(1)
    plain = keyframe_stage(Fake(), 1, 1).sample(identity, audio, emotion, noise)
    # with audio and portrait at 0 all branches agree, so no scale may change anything
    silent = torch.zeros_like(identity), torch.zeros_like(audio), emotion, noise
    unguided = keyframe_stage(Fake(), 1, 1).sample(*silent)
    assert torch.allclose(keyframe_stage(Fake(), 5, 2).sample(*silent), unguided, atol=1e-4)
    assert not torch.allclose(plain, unguided, atol=1e-2)


def test_guidance_pushes_along_the_audio_condition() -> None:
    identity, _, emotion, noise = clips(1)
    audio = torch.ones(1, 14, 4)
    fake = Anchored(slope=0)
    weak = keyframe_stage(fake, 1, 1, "anchored").sample(identity, audio, emotion, noise)
    strong = keyframe_stage(fake, 3, 1, "anchored").sample(identity, audio, emotion, noise)
    # the last update returns D: its audio term, 1, counts three times instead of once
    assert torch.allclose(strong - weak, torch.full_like(weak, 2.0), atol=1e-3)


def test_emotion_is_a_condition_of_every_branch() -> None:
    fake = Fake()
    identity, audio, emotion, noise = clips(1)
    keyframe_stage(fake, 5, 2).sample(identity, audio, emotion, noise)
    for asked in fake.emotions:
        assert asked is not None
        assert torch.equal(asked, emotion.expand(3, -1, -1))


def test_identity_latent_is_given_without_its_scale() -> None:
    identity, audio, emotion, noise = clips(1)
    seen = []

    class Spy(Fake):
        def __call__(self, x: Tensor, c_noise: Tensor, given: Conditioning) -> Tensor:
            seen.append(given.latents)
            return super().__call__(x, c_noise, given)

    keyframe_stage(Spy(), 1, 1).sample(identity, audio, emotion, noise)
    assert torch.allclose(seen[0], identity[:, None] / SCALE)
    pair = torch.stack([identity, 2 * identity], dim=1)
    interpolation_stage(Spy(), None, 1).sample(pair, audio, noise)
    assert torch.allclose(seen[-1], pair / SCALE)


@pytest.mark.parametrize("parameterization", ["v", "anchored"])
def test_what_is_sampled_together_changes_nothing(parameterization: str) -> None:
    identity, audio, emotion, noise = clips(3)
    network = Fake if parameterization == "v" else Anchored
    stage = keyframe_stage(network(), 5, 2, parameterization)
    together = stage.sample(identity, audio, emotion, noise)
    single = [
        stage.sample(*(part[k : k + 1] for part in (identity, audio, emotion, noise)))
        for k in range(3)
    ]
    assert torch.allclose(together, torch.cat(single), atol=1e-5)

    pairs = torch.stack([identity, identity.flip(0)], dim=1)
    between = interpolation_stage(network(), network(1.0), 2, parameterization)
    together = between.sample(pairs, audio, noise)
    single = [between.sample(*(p[k : k + 1] for p in (pairs, audio, noise))) for k in range(3)]
    assert torch.allclose(together, torch.cat(single), atol=1e-5)


def test_anchored_networks_predict_the_difference_to_what_they_see() -> None:
    identity, audio, emotion, noise = clips(1)

    class Zero(Anchored):
        def __call__(self, x: Tensor, c_noise: Tensor, given: Conditioning) -> Tensor:
            answer = super().__call__(x, c_noise, given)
            answer[:, :, : x.shape[2]] = 0
            return answer

    made = keyframe_stage(Zero(), 1, 1, "anchored").sample(identity, audio, emotion, noise)
    assert torch.allclose(made, identity[:, None].expand_as(made), atol=1e-4)
    pair = torch.stack([identity, -identity], dim=1)
    made = interpolation_stage(Zero(), None, 1, "anchored").sample(pair, audio, noise)
    between = anchor_for("anchored", pair, 14)
    assert between is not None
    assert torch.allclose(made, between, atol=1e-4)


def test_autoguidance_of_one_never_runs_the_guide() -> None:
    identity, audio, _, noise = clips(1)
    pair = torch.stack([identity, identity], dim=1)
    guide = Fake(1.0)
    guided = interpolation_stage(Fake(), guide, 1).sample(pair, audio, noise)
    assert guide.batches == []
    assert torch.equal(guided, interpolation_stage(Fake(), None, 1).sample(pair, audio, noise))


def test_autoguidance_goes_away_from_the_guide() -> None:
    identity, audio, _, noise = clips(1)
    pair = torch.stack([identity, identity], dim=1)

    def sample(guide: Fake | None, scale: float) -> Tensor:
        stage = interpolation_stage(Anchored(slope=0), guide, scale, "anchored")
        return stage.sample(pair, audio, noise)

    plain = sample(None, 1)
    assert torch.allclose(sample(Anchored(slope=0), 2), plain, atol=1e-3)
    # D = guide + 2 (good - guide): the network's answer, and the difference once more
    away = sample(Anchored(-0.5, slope=0), 2)
    assert torch.allclose(away - plain, torch.full_like(plain, 0.5), atol=1e-3)


def test_an_anchor_guides_where_there_is_no_guide() -> None:
    identity, audio, _, noise = clips(1)
    pair = torch.stack([identity, -identity], dim=1)
    blend = anchor_for("anchored", pair, 14)
    assert blend is not None

    def sample(scale: float) -> Tensor:
        stage = interpolation_stage(Anchored(0.5, slope=0), None, scale, "anchored")
        return stage.sample(pair, audio, noise)

    moved = sample(1) - blend
    assert moved.abs().mean() > 0.1
    assert torch.allclose(sample(3) - blend, 3 * moved, atol=1e-3)


def test_autoguidance_needs_a_guide() -> None:
    with pytest.raises(ValueError, match="autoguidance needs a guide"):
        interpolation_stage(Fake(), None, 2)


def test_progress_counts_updates() -> None:
    identity, audio, emotion, noise = clips(1)
    counted: list[int] = []
    stage = keyframe_stage(Fake(), 1, 1)
    stage.sample(identity, audio, emotion, noise, lambda done, _: counted.append(done))
    assert counted == [1, 2, 3, 4]
