"""What a container's header says of its length."""

from __future__ import annotations

import io
from typing import BinaryIO

from hybrid_models.errors import BadSample


def check_matroska_length(stream: BinaryIO) -> None:
    """The demuxer takes a Matroska file that was cut off for a shorter one; its header says how long it should be.

    The file is an EBML header and one Segment, each an id, a size and content (RFC 8794, section 5; RFC 9559). A
    segment of unknown size (all bits set) is a live recording.
    """
    present = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if not stream.read(4).startswith(b"\x1aE\xdf\xa3"):
        raise BadSample("VideoDecodeError", "not a Matroska or WebM file")
    header_size, _ = _ebml_size(stream)
    stream.seek(header_size + 4, io.SEEK_CUR)
    segment_size, length = _ebml_size(stream)
    unknown = segment_size == (1 << 7 * length) - 1
    promised = stream.tell() + segment_size
    if not unknown and promised > present:
        raise BadSample("VideoDecodeError", f"the file is cut off: {present:,} of {promised:,} bytes are there")


def _ebml_size(stream: BinaryIO) -> tuple[int, int]:
    """The variable-length number that comes next, and how many bytes it has: leading zero bits tell that."""
    start = stream.read(1)
    length = 9 - start[0].bit_length()
    number = int.from_bytes(start + stream.read(length - 1), "big")
    return number - (1 << 7 * length), length
