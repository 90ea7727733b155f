"""The portrait's detail, put back where the face has not moved."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from keyface_cli.stages.detail import PortraitDetail

SIZE = 128


def portrait() -> tuple[Tensor, Tensor]:
    """A portrait with grain and what a soft decoder makes of it."""
    soft = torch.linspace(-0.5, 0.5, SIZE).expand(3, SIZE, SIZE).clone()
    grain = 0.2 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return soft + grain, soft


def test_a_still_frame_becomes_the_portrait() -> None:
    sharp, soft = portrait()
    restored = PortraitDetail(sharp, soft, 1.0).restore(soft.expand(3, -1, -1, -1))
    assert torch.allclose(restored, sharp.expand(3, -1, -1, -1), atol=1e-6)
    half = PortraitDetail(sharp, soft, 0.5).restore(soft[None])
    assert torch.allclose(half[0], (sharp + soft) / 2, atol=1e-6)


def test_what_has_moved_stays_as_it_was_decoded() -> None:
    sharp, soft = portrait()
    frame = soft.clone()
    frame[:, 40:70, 40:70] += 0.6  # a mouth that opens
    restored = PortraitDetail(sharp, soft, 1.0).restore(frame[None])[0]
    assert torch.allclose(restored[:, 44:66, 44:66], frame[:, 44:66, 44:66], atol=1e-3)
    assert torch.allclose(restored[:, 80:], sharp[:, 80:], atol=1e-6)


def test_the_detail_fades_smoothly_as_a_face_moves() -> None:
    sharp, soft = portrait()
    detail = PortraitDetail(sharp, soft, 1.0)
    shares = []
    for moved in torch.linspace(0, 0.4, 41):
        change = detail.restore((soft + moved)[None])[0] - (soft + moved)
        shares.append(float((change / (sharp - soft)).mean()))
    steps = [a - b for a, b in pairwise(shares)]
    assert shares[0] > 0.999
    assert shares[-1] < 0.001
    assert all(0 <= step < 0.09 for step in steps)


def test_frames_do_not_depend_on_each_other() -> None:
    sharp, soft = portrait()
    detail = PortraitDetail(sharp, soft, 1.0)
    frames = soft + 0.1 * torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    together = detail.restore(frames)
    for frame, restored in zip(frames, together, strict=True):
        assert torch.equal(detail.restore(frame[None])[0], restored)
