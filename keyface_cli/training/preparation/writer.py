"""Clips become shards with an index, a shard at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyface_cli.errors import KeyFaceError
from keyface_cli.training import shards

SHARD_BYTES = 2**29


class ShardWriter:
    """Gathers clips, and writes a shard and the index when there are enough of them.

    Args:
        folder: of the shards.
        made_with: facts that all its shards share.

    Raises:
        KeyFaceError: its shards were made with something else.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self.folder, self.made_with = folder, dict(made_with)
        folder.mkdir(parents=True, exist_ok=True)
        self.index: dict[str, dict[str, Any]] = {}
        self.videos: dict[str, list[dict[str, Any]]] = {}
        if (folder / shards.INDEX).is_file():
            known = shards.read_index(folder)
            if known["made_with"] != self.made_with:
                raise KeyFaceError(
                    f"{folder} was made with another model or other options",
                    "give another folder with -o",
                )
            self.index, self.videos = known["shards"], known.get("videos", {})
        self.known = {name for clips in self.index.values() for name in clips}
        self._clips: dict[str, Mapping[str, Any]] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._finished: dict[str, list[dict[str, Any]]] = {}
        self._bytes = 0

    def add(self, name: str, source: str, clip: Mapping[str, Any]) -> None:
        """Take a clip, see `shards.write_shard`; `source` is the video that it is of."""
        self._clips[name] = clip
        self._facts[name] = {"source": source, "frames": len(clip["latents"])}
        self._bytes += sum(
            sum(map(len, part)) if isinstance(part, list) else part.nbytes for part in clip.values()
        )
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def finish(self, video: str, outcome: list[dict[str, Any]]) -> None:
        """Note that nothing more comes of a video, and what became of its stretches."""
        self._finished[video] = outcome

    def flush(self) -> None:
        """Write what was gathered."""
        if self._clips:
            name = f"shard-{len(self.index):05d}.safetensors"
            shards.write_shard(self.folder / name, self._clips)
            self.index[name] = self._facts
        self.videos |= self._finished
        shards.write_index(self.folder, self.made_with, self.index, self.videos)
        self.known |= set(self._clips)
        self._clips, self._facts, self._finished, self._bytes = {}, {}, {}, 0
