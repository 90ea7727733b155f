"""Shards of real videos: what is written is what training draws."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from keyface_cli.errors import KeyFaceError
from keyface_cli.training import shards
from keyface_cli.training.clips import ClipSource

LENGTHS = {"anna-000000": 180, "anna-000180": 100, "ben-000000": 175, "cleo-000000": 200}


def clip(length: int, number: int) -> dict[str, Any]:
    """Arrays that tell which clip and frame they are."""
    frames = np.arange(length)
    picture = [np.full((8, 8, 3), frame % 200 + number, np.uint8) for frame in frames]
    return {
        "latents": np.broadcast_to(frames[:, None, None, None], (length, 4, 2, 2)),
        "emotion": np.stack([np.full(length, number), frames], 1) / 256,
        "wavlm": np.broadcast_to(frames[:, None, None], (length, 2, 3)),
        "beats": np.full((length, 2, 3), number),
        "pictures": [shards.encode_jpeg(p) for p in picture],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = {name: clip(length, i) for i, (name, length) in enumerate(LENGTHS.items())}
    names = list(clips)
    index = {}
    for number, part in enumerate((names[:2], names[2:])):
        file = f"shard-{number:05d}.safetensors"
        shards.write_shard(tmp_path / file, {name: clips[name] for name in part})
        index[file] = {
            name: {"source": name.split("-")[0], "frames": LENGTHS[name]} for name in part
        }
    shards.write_index(tmp_path, {"encoders": {"wavlm": "", "beats": ""}}, index, {})
    return tmp_path


@pytest.mark.parametrize(("kind", "step"), [("keyframes", 13), ("runs", 1)])
def test_training_draws_windows_of_the_shards(data: Path, kind: str, step: int) -> None:
    source = ClipSource(data, kind, ("wavlm", "beats"), pictures=True)
    expected = sum(max(0, n - 13 * step) for n in LENGTHS.values())
    assert len(source) == expected
    clips = source.batch(24, torch.Generator().manual_seed(0))
    assert clips.pictures is not None
    assert clips.frame is not None
    frames = clips.latents[:, :, 0, 0, 0].long()
    assert (frames.diff(dim=1) == step).all()
    assert torch.equal(clips.features[:, :, 0, 0].long(), frames)
    number = clips.features[:, 0, 0, -1]
    assert torch.equal(clips.emotion[:, 0, 0] * 256, number)
    shown = clips.pictures.float().mean((1, 2, 3))
    expected_shade = frames[:, int(clips.frame)] % 200 + number
    torch.testing.assert_close(shown, expected_shade.float(), atol=1.5, rtol=0)
    assert len(set(number.tolist())) >= 3


def test_no_clip_of_a_held_out_person_is_drawn(data: Path) -> None:
    # of the first shard's clips that are long enough the last one is anna's
    source = ClipSource(data, "runs", ("wavlm", "beats"), held_out=1)
    assert len(source) == 175 + 200 - 26
    drawn = source.batch(50, torch.Generator().manual_seed(0)).features[:, 0, 0, -1]
    assert set(drawn.tolist()) == {2, 3}
    ((held_out, pictures),) = source.held_out()
    assert float(held_out.features[0, 0, 0, -1]) in (0, 1)
    assert pictures.shape == (14, 8, 8, 3)


def test_pictures_keep_their_colours() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8] = (200, 30, 30)
    picture[:, 8:] = (30, 30, 200)
    back = np.asarray(Image.open(io.BytesIO(shards.encode_jpeg(picture))))
    assert np.abs(back.astype(int) - picture).max() < 12  # no colour is halved in resolution


def test_damage_is_named(data: Path) -> None:
    with pytest.raises(KeyFaceError, match="was made without wav2vec2"):
        ClipSource(data, "runs", ("wav2vec2", "beats"))
    shard = data / "shard-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    source = ClipSource(data, "runs", ("wavlm", "beats"))
    with pytest.raises(KeyFaceError, match="the shard is damaged"):
        source.batch(50, torch.Generator().manual_seed(0))
    shard.unlink()
    with pytest.raises(KeyFaceError, match="missing shard"):
        ClipSource(data, "runs", ("wavlm", "beats"))
    for content_of_index in ("{", "[]", json.dumps({"format": "other", "shards": {}})):
        (data / "index.json").write_text(content_of_index)
        with pytest.raises(KeyFaceError, match="not an index of shards"):
            ClipSource(data, "runs", ("wavlm", "beats"))


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyFaceError, match="cannot be written to"):
        shards.write_shard(tmp_path / "none" / "x.safetensors", {"a": clip(20, 0)})
    assert list(tmp_path.iterdir()) == []
