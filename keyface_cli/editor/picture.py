"""Strips of keyframes as one picture: a row for each curve, time, valence and arousal beneath."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from keyface_cli.credentials.marks import Mark, xmp_packet
from keyface_cli.emotion.checks import clock
from keyface_cli.emotion.track import KeyframeEmotion
from keyface_cli.errors import VideoError
from keyface_cli.files import replacing

PAPER, INK, SOFT, LINE = "#ffffff", "#1d2126", "#6d757e", "#dfe3e7"
VALENCE, AROUSAL = "#c1440e", "#1f6fb2"
GAP, LABEL, TITLE = 6, 44, 24  # pixels between keyframes, under each, and above a named row


@dataclass(frozen=True)
class Row:
    """The keyframes of one curve.

    Args:
        title: said above; empty says nothing.
        emotions: valence and arousal at each keyframe.
        pictures: RGB (R, R, 3) of each keyframe.
    """

    title: str
    emotions: Sequence[KeyframeEmotion]
    pictures: Sequence[NDArray[np.uint8]]


def draw_strips(rows: Sequence[Row], size: int, columns: int) -> Image.Image:
    """Draw the keyframes of one curve or several, those of the same time beneath each other.

    Args:
        rows: of equally many keyframes.
        size: pixels of a keyframe's side; that of the model leaves them as they are.
        columns: keyframes beside each other; more go on below.
    """
    count = len(rows[0].pictures)
    columns = min(columns, count)
    bands = -(-count // columns)
    tall = [size + LABEL + (TITLE if row.title else 0) for row in rows]
    height = GAP + bands * (sum(tall) + GAP * len(rows))
    sheet = Image.new("RGB", (GAP + columns * (size + GAP), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for band in range(bands):
        for row, high in zip(rows, tall, strict=True):
            top = y
            if row.title:
                draw.text((GAP, y + 3), row.title, INK, ImageFont.load_default(14))
                top += TITLE
            for place, k in enumerate(range(count)[band * columns : (band + 1) * columns]):
                x = GAP + place * (size + GAP)
                picture = Image.fromarray(row.pictures[k])
                if picture.width != size:
                    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
                sheet.paste(picture, (x, top))
                _label(draw, x, top + size, size, row.emotions[k])
            y += high + GAP
    return sheet


def _label(draw: ImageDraw.ImageDraw, x: int, y: int, size: int, emotion: KeyframeEmotion) -> None:
    """Time, and valence and arousal as numbers and as bars from the middle."""
    draw.text((x, y + 3), clock(emotion.time_s), INK, ImageFont.load_default(12))
    values = (("v", VALENCE, emotion.valence), ("a", AROUSAL, emotion.arousal))
    for line, (name, colour, value) in enumerate(values):
        top = y + 18 + 12 * line
        draw.text((x, top - 2), f"{name} {value:+.2f}", colour, ImageFont.load_default(11))
        left, right = x + 48, x + size - 1
        if right - left < 16:
            continue
        middle = (left + right) // 2
        draw.line((left, top + 5, right, top + 5), LINE)
        end = middle + round(value * (right - middle))
        draw.rectangle((min(middle, end), top + 3, max(middle, end), top + 7), colour)
        draw.line((middle, top + 1, middle, top + 9), SOFT)


def save_strip(
    picture: Image.Image,
    path: Path,
    metadata: Mapping[str, Any],
    mark: Mark,
    seal: Callable[[Path], None] | None = None,
) -> None:
    """Write a picture as PNG with its mark, whole or not at all.

    Args:
        picture: what is shown.
        path: FILE.png.
        metadata: how it was made, what JSON can hold; `output.metadata.read_metadata` reads it.
        mark: what it says of its origin.
        seal: signs the finished file, before it gets its name.

    Raises:
        VideoError: it cannot be written.
    """
    with replacing(path, VideoError, shared=True) as part:
        picture.save(part, format="png", pnginfo=png_info(mark, metadata))
        if seal is not None:
            seal(part)


def png_info(mark: Mark, metadata: Mapping[str, Any] | None = None) -> PngInfo:
    """Return what a PNG says of its origin, for Pillow."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp_packet(mark).decode())
    if metadata is not None:
        info.add_text("comment", json.dumps(dict(metadata)))
    return info
