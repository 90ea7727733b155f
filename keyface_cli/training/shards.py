"""Shards of real videos, as `keyface dataset prepare` writes them: safetensors with an index.

    DIR/index.json            what the shards were made with, the clips of each, the videos done
    DIR/shard-00000.safetensors

A clip is an unbroken stretch of one video in which one face was followed. Its tensors are named
`CLIP/latents` float16 (N, C, h, w), scaled; `CLIP/NAME` float16 (N, 2, D) for each audio encoder;
`CLIP/emotion` float16 (N, 2) valence and arousal; `CLIP/pictures` uint8, the JPEG files of the N
frames one after another, and `CLIP/offsets` int64 (N + 1), where each begins.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keyface_cli.config import NUM_FRAMES
from keyface_cli.errors import KeyFaceError
from keyface_cli.files import replacing, write_text

if TYPE_CHECKING:
    from keyface_cli.training.clips import Window

INDEX = "index.json"
FORMAT = "keyface dataset 1"
JPEG_QUALITY = 95


def prepared_shards(data: Path) -> list[Path]:
    """Return the shards that a data folder's index lists; none where there is no index.

    Raises:
        KeyFaceError: the index or a shard that it lists is damaged or missing.
    """
    if not (data / INDEX).is_file():
        return []
    index = read_index(data)
    paths = [data / name for name in index["shards"]]
    for path in paths:
        if not path.is_file():
            raise KeyFaceError(f"missing shard: {path}", "run keyface dataset prepare again")
    return paths


def read_index(data: Path) -> dict[str, Any]:
    """Read a data folder's index: "format", "made_with" and "shards", file -> clip -> facts.

    Raises:
        KeyFaceError: it is damaged or of another format.
    """
    path = data / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] == FORMAT and isinstance(index["shards"], dict):
            return dict(index)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise KeyFaceError(f"not an index of shards: {path}", "run keyface dataset prepare again")


def check_vae(data: Path, fingerprint: str) -> None:
    """Refuse data whose latents are another VAE's.

    Args:
        data: a data folder, of any kind.
        fingerprint: of the VAE that the latents are to be decoded with, see `run.fingerprint`.

    Raises:
        KeyFaceError: the data was prepared with another one.
    """
    if (data / INDEX).is_file() and read_index(data)["made_with"].get("vae") != fingerprint:
        raise KeyFaceError(
            f"{data} was prepared with another VAE than the run's",
            "prepare the data with the model that is to be trained",
        )


def write_index(
    data: Path,
    made_with: Mapping[str, Any],
    shards: Mapping[str, Mapping[str, Any]],
    videos: Mapping[str, Any],
) -> None:
    """Write a data folder's index; it is whole or the old one.

    Args:
        data: the folder.
        made_with: facts that all shards share; "encoders" names those of the audio.
        shards: file -> clip -> "source", the video that it is of, and "frames", how many.
        videos: video -> what became of its stretches, for those that are done.
    """
    content = {"format": FORMAT, "made_with": dict(made_with), "shards": dict(shards)}
    text = json.dumps(content | {"videos": dict(videos)}, indent=1)
    write_text(data / INDEX, text + "\n")


def write_shard(path: Path, clips: Mapping[str, Mapping[str, Any]]) -> None:
    """Write clips into one file; it is whole or not there.

    Args:
        path: of the file.
        clips: name -> arrays "latents", "emotion" and each encoder's, and "pictures", a list of
            N JPEG files as `encode_jpeg` makes them.

    Raises:
        KeyFaceError: the disk is full or cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for clip, arrays in clips.items():
        for name, array in arrays.items():
            if name == "pictures":
                tensors |= _pack(clip, array)
            else:
                tensors[f"{clip}/{name}"] = np.ascontiguousarray(array.astype(np.float16))
    hint = "free some space and run the command again: it resumes"
    with replacing(path, hint=hint, also=(SafetensorError,)) as part:
        save_file(tensors, part)


def read_clips(data: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the clips of a data folder in the order in which they were written.

    Yields:
        The name of each, its source, and its arrays as `write_shard` takes them.

    Raises:
        KeyFaceError: the index or a shard is damaged or missing.
    """
    listed = read_index(data)["shards"]
    for path in prepared_shards(data):
        try:
            with safe_open(path, framework="np") as file:
                names = [str(name) for name in file.keys()]  # noqa: SIM118
                for clip, facts in listed[path.name].items():
                    found = {
                        name.removeprefix(f"{clip}/"): file.get_tensor(name)
                        for name in names
                        if name.startswith(f"{clip}/")
                    }
                    pictures, offsets = found.pop("pictures"), found.pop("offsets")
                    files = [pictures[i:j].tobytes() for i, j in pairwise(offsets)]
                    yield clip, facts["source"], found | {"pictures": files}
        except (OSError, SafetensorError) as error:
            raise KeyFaceError(
                f"the shard is damaged: {path}", "delete it and prepare the data again"
            ) from error


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (H, W, 3) as a JPEG file with full resolution of colour."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _pack(clip: str, files: list[bytes]) -> dict[str, NDArray[Any]]:
    offsets = np.cumsum([0, *map(len, files)], dtype=np.int64)
    pictures = np.frombuffer(b"".join(files), np.uint8)
    return {f"{clip}/pictures": pictures, f"{clip}/offsets": offsets}


class PreparedShard:
    """One file of clips, read a window at a time.

    Args:
        path: of the file; its folder has the index.
        step: frames from one of a clip to the next.
        encoders: whose features are wanted, side by side in this order.

    Raises:
        KeyFaceError: the file is damaged, or was made with other encoders.
    """

    def __init__(self, path: Path, step: int, encoders: Sequence[str]) -> None:
        self.path, self.step, self.encoders = path, step, encoders
        index = read_index(path.parent)
        clips = index["shards"][path.name]
        self.names = sorted(clips)
        self.sources = [str(clips[name]["source"]) for name in self.names]
        self.lengths = [int(clips[name]["frames"]) for name in self.names]
        for name in encoders:
            if name not in index["made_with"]["encoders"]:
                raise KeyFaceError(
                    f"{path.parent} was made without {name}",
                    "prepare the data with the model that is to be trained",
                )

    def windows(self, clip: int) -> int:
        """See `clips.Shard`."""
        return max(0, self.lengths[clip] - self.step * (NUM_FRAMES - 1))

    def read(self, window: Window) -> tuple[NDArray[np.float16], ...]:
        """See `clips.Shard`."""
        frames = [window.start + self.step * i for i in range(NUM_FRAMES)]

        def rows(name: str) -> NDArray[np.float16]:
            part = self._file.get_slice(f"{self.names[window.clip]}/{name}")
            return np.concatenate([part[i : i + 1] for i in frames])

        features = [rows(name) for name in self.encoders]
        return rows("latents"), np.concatenate(features, -1), rows("emotion")

    def picture(self, window: Window, frame: int) -> NDArray[np.uint8]:
        """See `clips.Shard`."""
        name, number = self.names[window.clip], window.start + self.step * frame
        begin, end = self._file.get_slice(f"{name}/offsets")[number : number + 2].tolist()
        data = self._file.get_slice(f"{name}/pictures")[begin:end].tobytes()
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    @cached_property
    def _file(self) -> Any:
        try:
            return safe_open(self.path, framework="np")
        except (OSError, SafetensorError) as error:
            raise KeyFaceError(
                f"the shard is damaged: {self.path}", "delete it and prepare the data again"
            ) from error
