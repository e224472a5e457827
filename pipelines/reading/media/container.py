"""What a file's bytes say of what it is and how long it should be, where a decoder does not say it."""

from __future__ import annotations

import io
from typing import BinaryIO

from hybrid_models.errors import BadSample

MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG", "png"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (4, b"jP  \r\n\x87\n", "jp2"),
    (8, b"AVI ", "avi"),
    (4, b"ftypavi", "avif"),
    (4, b"ftyphei", "heic"),
    (4, b"ftypmif1", "heif"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (0, b"\x93NUMPY", "npy"),
    (0, b"PK\x03\x04", "npz"),
)
"""(offset, bytes there, media type): how files that have no name are told apart."""
MAGIC_BYTES = 16
ALIKE = {"mov": "mp4", "webm": "mkv"}
"""Media type → the one whose first bytes it has."""
SEGMENT, SKIPPED = b"\x18\x53\x80\x67", (b"\xec", b"\xbf")
"""Ids of what a Matroska file is made of, and of what may stand before it: padding, a checksum."""
MOST_LENGTH = 8
"""Bytes of a number there."""
MOST_BOXES = 1000
"""Of an MP4 file that are looked at: a small one may claim to have a million."""


def sniff_media_type(media: bytes) -> str:
    """The media type that the first bytes tell, or `unknown`."""
    return next((kind for offset, magic, kind in MAGIC if media[offset : offset + len(magic)] == magic), "unknown")


def why_unreadable(stream: BinaryIO, media_type: str, otherwise: str) -> str:
    """Why a file cannot be opened as what its name says it is."""
    present = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(MAGIC_BYTES)
    if not head:
        return "the file is empty"
    found = sniff_media_type(head)
    if found not in ("unknown", ALIKE.get(media_type, media_type)):
        return f"by its name it is {media_type}, by its first bytes {found}"
    promised = _riff_length(head) if found == "avi" else _boxes_length(stream, present) if found == "mp4" else 0
    return cut_off(present, promised) if promised > present else otherwise


def cut_off(present: int, promised: int) -> str:
    """That a file is shorter than it should be."""
    return f"the file is cut off: {present:,} of {promised:,} bytes are there"


def _riff_length(head: bytes) -> int:
    return 8 + int.from_bytes(head[4:8], "little")


def _boxes_length(stream: BinaryIO, present: int) -> int:
    """Where the last box of an MP4 file ends: each begins with its size and its name (ISO 14496-12, 4.2)."""
    place = 0
    for _ in range(MOST_BOXES):
        stream.seek(place)
        header = stream.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # too large for four bytes
            size = int.from_bytes(header[8:], "big")
        if size < 8:  # nothing, or as much as there is
            break
        place += size
        if place >= present:
            break
    return place


def matroska_cut_off(stream: BinaryIO, media_type: str) -> str | None:
    """What is to be said of a Matroska file that is shorter than its header says; the demuxer takes it for a whole one.

    The file is an EBML header and one Segment, each an id, a size and content (RFC 8794, section 5; RFC 9559). A
    segment of unknown size (all bits set) is a live recording.

    Raises:
        BadSample: it is none.
    """
    present = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if not stream.read(4).startswith(b"\x1aE\xdf\xa3"):
        raise BadSample("VideoDecodeError", why_unreadable(stream, media_type, "not a Matroska or WebM file"))
    size, _ = _ebml_size(stream)
    while True:
        stream.seek(min(stream.tell() + size, present))
        name = stream.read(1)
        if name not in SKIPPED:
            break
        size, _ = _ebml_size(stream)
    if name + stream.read(3) != SEGMENT:
        return None  # the demuxer knows better
    size, length = _ebml_size(stream)
    unknown = size == (1 << 7 * length) - 1
    promised = stream.tell() + size
    return cut_off(present, promised) if promised > present and not unknown else None


def _ebml_size(stream: BinaryIO) -> tuple[int, int]:
    """The variable-length number that comes next, and how many bytes it has: leading zero bits tell that."""
    start = stream.read(1)
    length = 9 - start[0].bit_length() if start else 1
    rest = stream.read(length - 1)
    if not start or len(rest) < length - 1:
        raise BadSample("VideoDecodeError", "the file is cut off in its header")
    if length > MOST_LENGTH:
        raise BadSample("VideoDecodeError", "its header tells no length")
    number = int.from_bytes(start + rest, "big")
    return number - (1 << 7 * length), length


def check_gif_length(stream: BinaryIO) -> None:
    """The demuxer takes a GIF file that was cut off for a shorter one, whose last frame is half there.

    The file is a header and blocks, most of them in sub-blocks that begin with their length (GIF89a, sections 15 to
    27). One that ends between two blocks may be all that there was.
    """
    stream.seek(0)
    header = stream.read(13)
    stream.seek(_colours_size(header[10:]), io.SEEK_CUR)
    frames = 0
    while (block := stream.read(1)) in (b"!", b","):
        if block == b"!":
            stream.seek(1, io.SEEK_CUR)  # which extension it is
        else:
            frames += 1
            stream.seek(_colours_size(stream.read(9)[8:]) + 1, io.SEEK_CUR)  # and how its codes begin
        while (length := stream.read(1)) != b"\0":
            if not length:
                raise BadSample("VideoDecodeError", f"the file is cut off in frame {frames}")
            stream.seek(length[0], io.SEEK_CUR)


def _colours_size(flags: bytes) -> int:
    """Bytes of the table of colours that follows a header whose flags begin here."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
