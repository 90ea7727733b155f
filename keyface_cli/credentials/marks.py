"""The mark that machines read: IPTC's digital source type, as XMP or, in WebM, as tags.

The property and its values are IPTC's (Photo Metadata Standard 2025.1); where XMP is in a file
is said by Adobe's XMP specification, part 3.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from keyface_cli.credentials.boxes import read_boxes
from keyface_cli.errors import VideoError
from keyface_cli.media.ffmpeg import find_ffmpeg, read_tag
from keyface_cli.version import __version__

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = "trainedAlgorithmicMedia"
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"  # a generated face within a given picture
DRAWN = "algorithmicMedia"  # by a program that was not trained
MIXED = "compositeSynthetic"  # of several, one of which is synthetic

_XMP_BOX = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")  # in MP4
_PNG_HEADER = 33  # bytes up to the end of the header's chunk
_PNG_XMP = b"XML:com.adobe.xmp" + bytes(5)  # uncompressed, of no language
_GIF_XMP, _GIF_END = b"\x21\xff\x0bXMP DataXMP", b"\x3b"
# reads as the lengths of blocks from wherever a decoder that skips them lands
_GIF_TRAILER = bytes((1, *range(255, -1, -1), 0))
_WEBM_TAG = "DIGITAL_SOURCE_TYPE"
_SAID = re.compile(rb"DigitalSourceType(?:=[\"']|>)[^\"'<]*/([A-Za-z]+)")
_LONGEST_XMP = 1 << 20  # bytes that are read of one


@dataclass(frozen=True)
class Mark:
    """What a result says of itself.

    Args:
        source: one of IPTC's digital source types, `GENERATED` for example.
        tool: what made it, and which version: "keyface 0.1.0".
    """

    source: str = GENERATED
    tool: str = f"keyface {__version__}"

    @property
    def uri(self) -> str:
        """The digital source type as IPTC's vocabulary names it."""
        return VOCABULARY + self.source


def combined(sources: Iterable[str | None]) -> str | None:
    """Return the digital source type of what is put together of several files.

    Args:
        sources: of the files; None of one that says nothing.

    Returns:
        The type that all share, else that of a mixture; None where none is said to be synthetic.
    """
    found = set(sources)
    if not found & {GENERATED, COMPOSITE, DRAWN, MIXED}:
        return None
    if len(found) == 1:
        return found.pop()
    return COMPOSITE if found & {GENERATED, COMPOSITE} else MIXED


def xmp_packet(mark: Mark) -> bytes:
    """Return a mark as an XMP packet."""
    name, _, version = mark.tool.partition(" ")
    said = {
        "Iptc4xmpExt:DigitalSourceType": mark.uri,
        "Iptc4xmpExt:AISystemUsed": name,
        "Iptc4xmpExt:AISystemVersionUsed": version,
        "xmp:CreatorTool": mark.tool,
    }
    properties = " ".join(f"{key}={quoteattr(value)}" for key, value in said.items() if value)
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f"{properties}/></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="r"?>'
    ).encode()


def mark_tags(container: str, mark: Mark) -> dict[str, str]:
    """Return the metadata by which ffmpeg writes a mark while it muxes; empty where it cannot.

    Args:
        container: ffmpeg's name: "mov" has a place for XMP, "webm" has tags.
        mark: what to say.
    """
    if container == "mov":
        return {"xmp": xmp_packet(mark).decode()}
    if container == "webm":
        return {_WEBM_TAG: mark.uri, "CREATOR_TOOL": mark.tool}
    return {}


def write_mark(path: Path, container: str, mark: Mark) -> None:
    """Write a mark into a finished file that ffmpeg could not mark, see `mark_tags`.

    Args:
        path: the file; for "image2" a folder of PNGs, each of which is marked.
        container: "mp4", "gif" or "image2"; others are left as they are.
        mark: what to say.

    Raises:
        OSError: it cannot be read or written.
    """
    packet = xmp_packet(mark)
    if container == "mp4":
        with path.open("ab") as file:
            size = 8 + len(_XMP_BOX) + len(packet)
            file.write(struct.pack(">I4s", size, b"uuid") + _XMP_BOX + packet)
    elif container == "gif":
        append_to_gif(path, _GIF_XMP + packet + _GIF_TRAILER)
    elif container == "image2":
        chunk = _png_chunk(b"iTXt", _PNG_XMP + packet)
        for picture in path.glob("*.png"):
            data = picture.read_bytes()
            picture.write_bytes(data[:_PNG_HEADER] + chunk + data[_PNG_HEADER:])


def append_to_gif(path: Path, block: bytes) -> None:
    """Write a block behind the last one of a GIF."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        assert file.read() == _GIF_END
        file.seek(-1, os.SEEK_END)
        file.write(block + _GIF_END)


def read_mark(path: Path) -> str | None:
    """Return the digital source type that a file says it has, None where it says none.

    Args:
        path: MP4, MOV, PNG, GIF or WebM, by whatever tool; of a folder its first PNG is read.

    Raises:
        OSError: it cannot be read.
        VideoError: ffmpeg is absent.
    """
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        return read_mark(pictures[0]) if pictures else None
    suffix = path.suffix.lower()
    if suffix in (".webm", ".mkv"):
        said = _webm_tag(path)
    elif suffix == ".png":
        said = _png_xmp(path)
    elif suffix == ".gif":
        said = _gif_xmp(path)
    else:
        said = _box_xmp(path)
    found = _SAID.search(said)
    return None if found is None else found[1].decode()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _box_xmp(path: Path) -> bytes:
    """The XMP of an MP4 (a box of its own) or a MOV (in the movie's user data)."""
    with path.open("rb") as file:
        for box in read_boxes(file):
            file.seek(box.start + box.header)
            if box.kind == b"uuid" and file.read(16) == _XMP_BOX:
                return file.read(min(box.size, _LONGEST_XMP))
            if box.kind != b"moov":
                continue
            for part in read_boxes(file, box.start + box.header, box.end):
                if part.kind != b"udta":
                    continue
                for field in read_boxes(file, part.start + part.header, part.end):
                    if field.kind == b"XMP_":
                        file.seek(field.start + field.header)
                        return file.read(min(field.size, _LONGEST_XMP))
    return b""


def _png_xmp(path: Path) -> bytes:
    from PIL import Image, UnidentifiedImageError  # which a help should not load

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return str(picture.info.get("XML:com.adobe.xmp", "")).encode()
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
        return b""


def _gif_xmp(path: Path) -> bytes:
    """The XMP of a GIF; it may be anywhere between the pictures."""
    step, kept = 1 << 20, b""
    with path.open("rb") as file:
        while block := file.read(step):
            kept += block
            if (place := kept.find(_GIF_XMP)) >= 0:
                return kept[place:] + file.read(_LONGEST_XMP)
            kept = kept[-len(_GIF_XMP) :]
    return b""


def _webm_tag(path: Path) -> bytes:
    find_ffmpeg()  # without it nothing can be said
    with suppress(VideoError):
        return b"DigitalSourceType>" + read_tag(path, _WEBM_TAG).encode()
    return b""
