"""How a result was made, written into it and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyface_cli.credentials.marks import Mark, append_to_gif, write_mark
from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import read_tag
from keyface_cli.output.formats import Format

SIDECAR = "keyface.json"  # in a folder of frames
_GIF_COMMENT = b"\x21\xfe"
_GIF_TAIL = 1 << 16  # bytes at its end, among which our comment is


def write_metadata(path: Path, kind: Format, metadata: Mapping[str, Any], mark: Mark) -> None:
    """Write what ffmpeg does not: XMP, a comment into a GIF, a file into a folder of frames.

    Args:
        path: the finished result, under whatever name.
        kind: what it is.
        metadata: what JSON can hold.
        mark: what it says of its origin.

    Raises:
        OSError: it cannot be written.
    """
    write_mark(path, kind.container, mark)
    text = json.dumps(dict(metadata))
    if kind.name == "folder":
        (path / SIDECAR).write_text(text + "\n", encoding="utf-8")
    elif kind.name == ".gif":
        data = text.encode()
        blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
        comment = _GIF_COMMENT + b"".join(bytes([len(b)]) + b for b in blocks) + b"\0"
        append_to_gif(path, comment)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what `write_metadata` and the video writer wrote into a result.

    Raises:
        VideoError: there is no such file, or it says nothing of keyface.
    """
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    try:
        if path.is_dir():
            text = (path / SIDECAR).read_text(encoding="utf-8")
        elif path.suffix.lower() == ".gif":
            text = _gif_comment(path)
        elif path.suffix.lower() == ".png":
            from PIL import Image  # which a help should not load

            with Image.open(path) as picture:
                text = str(picture.info.get("comment", ""))
        else:
            text = read_tag(path, "comment")
        found = json.loads(text)
    except (OSError, ValueError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or not str(found.get("tool", "")).startswith("keyface"):
        raise VideoError(f"{path}: no keyface metadata found")
    return found


def _gif_comment(path: Path) -> str:
    """The comment that is the last block of a GIF; it is ASCII, which its mark is not."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _GIF_TAIL))
        data = file.read()
    position = data.rfind(_GIF_COMMENT) + len(_GIF_COMMENT)
    text = b""
    while position < len(data) and (size := data[position]):
        text += data[position + 1 : position + 1 + size]
        position += 1 + size
    return text.decode("ascii")
