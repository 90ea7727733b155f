"""The renderer of the talking head."""

from __future__ import annotations

import torch
from torch import Tensor

from keyface_cli.avatars import appearance, canvas, renderer, rig
from keyface_cli.avatars.pictures import random_poses, render_uint8


def people(count: int, seed: int = 3) -> appearance.Appearance:
    return appearance.sample_appearances(count, torch.Generator().manual_seed(seed))


def pose(**controls: float) -> Tensor:
    values = torch.tensor([rig.REST])
    for name, value in controls.items():
        values[0, rig.INDEX[name]] = value
    return values


def test_pictures_are_rgb_in_range() -> None:
    image = renderer.render(people(3), random_poses(3, torch.Generator().manual_seed(1)), 64)
    assert image.shape == (3, 3, 64, 64)
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert torch.isfinite(image).all()


def test_same_seed_draws_the_same_head_and_others_differ() -> None:
    rest = pose()
    first = renderer.render(people(1), rest, 64)
    assert torch.equal(first, renderer.render(people(1), rest, 64))
    assert float((first - renderer.render(people(1, seed=4), rest, 64)).abs().mean()) > 0.02


def test_a_batch_draws_each_head_as_alone() -> None:
    heads, poses = people(3), random_poses(3, torch.Generator().manual_seed(2))
    together = renderer.render(heads, poses, 64)
    alone = renderer.render(appearance.select(heads, [1]), poses[1:2], 64)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_every_control_changes_the_picture() -> None:
    head = people(1)
    # teeth and tongue show in an open mouth only
    base = {"jaw": 0.6}
    still = renderer.render(head, pose(**base), 128)
    for control in rig.CONTROLS:
        moved = renderer.render(head, pose(**base | {control.name: control.high}), 128)
        assert float((moved - still).abs().max()) > 0.05, control.name


def test_jaw_moves_the_mouth_and_spares_the_hair() -> None:
    head = people(1)
    change = (renderer.render(head, pose(jaw=1.0), 128) - renderer.render(head, pose(), 128)).abs()
    assert float(change[:, :, 70:110, 40:88].mean()) > 0.05
    assert float(change[:, :, :40].max()) < 1e-3


def test_uint8_pictures_do_not_depend_on_the_batch() -> None:
    heads, poses = people(6), random_poses(6, torch.Generator().manual_seed(5))
    whole = render_uint8(heads, poses, 48)
    part = render_uint8(appearance.select(heads, slice(4, 6)), poses[4:6], 48)
    assert whole.shape == (6, 48, 48, 3)
    assert abs(whole[4:6].astype(int) - part.astype(int)).max() <= 1


def test_a_camera_moves_and_scales_the_whole_head() -> None:
    head = appearance.select(people(40), [_plain(people(40))])
    head = head | {"camera_x": torch.zeros(1), "camera_y": torch.zeros(1), "zoom": torch.ones(1)}
    mouth = (renderer.render(head, pose(jaw=1.0), 128) - renderer.render(head, pose(), 128)).abs()

    def centre(image: Tensor) -> tuple[float, float]:
        weight = image.sum((0, 1))
        place = torch.arange(128.0)
        return float((weight.sum(0) @ place) / weight.sum()), float(
            (weight.sum(1) @ place) / weight.sum()
        )

    moved = head | {"camera_x": torch.tensor([0.04]), "zoom": torch.tensor([1.08])}
    other = (renderer.render(moved, pose(jaw=1.0), 128) - renderer.render(moved, pose(), 128)).abs()
    (x, y), (to_x, to_y) = centre(mouth), centre(other)
    # the mouth's offset from the picture's middle grows with the zoom
    assert abs((to_x - 64) - 1.08 * ((x - 64) + 0.04 * canvas.ZOOM * 64)) < 1
    assert abs((to_y - 64) - 1.08 * (y - 64)) < 1


def _plain(heads: appearance.Appearance) -> int:
    """A head with nothing in front of its face."""
    extras = ("painted", "hat_scarf", "beard", "glasses")
    covered = sum(heads[name] for name in extras)
    assert isinstance(covered, Tensor)
    return int((covered == 0).nonzero()[0])


def test_hats_age_and_brushwork_change_what_they_name() -> None:
    head = appearance.select(people(40), [_plain(people(40))])
    for name in ("hat_cap", "hat_beanie", "hat_scarf", "age", "painted", "pattern"):
        without, within = (head | {name: torch.full((1,), value)} for value in (0.0, 1.0))
        change = (
            renderer.render(within, pose(), 128) - renderer.render(without, pose(), 128)
        ).abs()
        assert float(change.max()) > 0.05, name
        if name.startswith("hat"):
            assert float(change[:, :, 64:96, 52:76].max()) < 1e-3, name  # eyes, nose, mouth
