"""Files as trees of parts, each with a tag and a length: what most formats are, and where most parsers stumble.

A tree is taken apart, shaken and put together again: lengths and checksums are right afterwards, unless one lies on
purpose, so that a reader gets past its first check.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

Rng = np.random.Generator
EXTREMES = (
    0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1 << 20, (1 << 24) - 1, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, (1 << 56) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
"""Numbers at which readers overflow, wrap round, allocate, or loop."""


@dataclass
class Part:
    """A piece of a file.

    Args:
        tag: what it is; an empty one is a part without tag and length, just bytes.
        body: its own bytes.
        parts: those inside it, after the body.
        lie: what is written for its length instead of the truth.
    """

    tag: bytes
    body: bytes = b""
    parts: list[Part] = field(default_factory=list)
    lie: int | None = None

    def copy(self) -> Part:
        """A deep one."""
        return Part(self.tag, self.body, [part.copy() for part in self.parts], self.lie)


@dataclass(frozen=True)
class Layout:
    """How a format's files are taken apart and put together."""

    parse: Callable[[bytes], list[Part]]
    build: Callable[[list[Part]], bytes]

    def shaken(self, content: bytes, rng: Rng) -> bytes:
        """The file after one to four changes somewhere in its tree."""
        parts = self.parse(content)
        for _ in range(int(rng.integers(1, 5))):
            shake(parts, rng)
        return self.build(parts)


def extreme(rng: Rng) -> int:
    """One of `EXTREMES`."""
    return int(EXTREMES[rng.integers(len(EXTREMES))])


def number(rng: Rng, size: int) -> bytes:
    """An extreme number in so many bytes."""
    return (extreme(rng) & ((1 << 8 * size) - 1)).to_bytes(size, "big" if rng.random() < 0.5 else "little")


def with_number(data: bytes, rng: Rng, within: int = 64) -> bytes:
    """The bytes with a number of 1 to 8 bytes, near the start, replaced by an extreme one."""
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(0, max(1, min(within, len(data)) - size + 1)))
    return data[:at] + number(rng, size) + data[at + size :]


def everyone(parts: list[Part]) -> Iterator[tuple[list[Part], int]]:
    """Each part of a tree, as its siblings and its place among them."""
    for i, part in enumerate(parts):
        yield parts, i
        yield from everyone(part.parts)


def shake(parts: list[Part], rng: Rng) -> None:
    """Changes one part of a tree."""
    places = list(everyone(parts))
    if not places:
        return
    siblings, i = places[rng.integers(len(places))]
    part = siblings[i]
    match str(
        rng.choice(["number", "number", "number", "lie", "drop", "again", "swap", "noise", "nest", "size", "tag"])
    ):
        case "number":
            part.body = with_number(part.body, rng)
        case "lie":
            part.lie = extreme(rng) if rng.random() < 0.6 else max(0, len(part.body) + int(rng.integers(-9, 10)))
        case "drop":
            del siblings[i]
        case "again":
            siblings[i:i] = [part.copy() for _ in range(int(rng.choice([1, 2, 300])))]
        case "swap":
            j = int(rng.integers(len(siblings)))
            siblings[i], siblings[j] = siblings[j], siblings[i]
        case "noise":
            size = int(rng.integers(1, 33))
            at = int(rng.integers(0, len(part.body) + 1))
            part.body = part.body[:at] + rng.bytes(size) + part.body[at + size :]
        case "nest":
            for _ in range(int(rng.choice([1, 30, 100])) if not part.parts and len(part.body) < 4096 else 1):
                part = Part(part.tag, b"", [part])
            siblings[i] = part
        case "size":
            part.body = part.body[: int(rng.integers(0, len(part.body) + 1))] + b"\0" * int(rng.choice([0, 1, 1 << 16]))
        case _:
            tags = [other[k].tag for other, k in places]
            part.tag = tags[rng.integers(len(tags))] if part.tag else part.tag


def _flat(build_one: Callable[[Part, bytes], bytes]) -> Callable[[list[Part]], bytes]:
    """Puts a tree together from its leaves; without recursion, as trees may be deeper than Python's stack."""

    def build(parts: list[Part]) -> bytes:
        done: dict[int, bytes] = {}
        waiting = [(part, False) for part in reversed(parts)]
        while waiting:
            part, inside_done = waiting.pop()
            if part.parts and not inside_done:
                waiting.append((part, True))
                waiting += [(inner, False) for inner in reversed(part.parts)]
                continue
            content = part.body + b"".join(done[id(inner)] for inner in part.parts)
            done[id(part)] = build_one(part, content) if part.tag else content
        return b"".join(done[id(part)] for part in parts)

    return build


# ---- ISO media: mp4, mov -----------------------------------------------------------------------------------------
ATOMS_OF_ATOMS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"udta", b"moof", b"traf", b"mvex"}


def _parse_atoms(content: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(content):
        size, tag = struct.unpack_from(">I4s", content, at)
        size = size if 8 <= size <= len(content) - at else len(content) - at
        body = content[at + 8 : at + size]
        parts.append(Part(tag, b"", _parse_atoms(body)) if tag in ATOMS_OF_ATOMS else Part(tag, body))
        at += size
    return parts + ([Part(b"", content[at:])] if at < len(content) else [])


def _build_atom(part: Part, content: bytes) -> bytes:
    size = len(content) + 8 if part.lie is None else part.lie
    if size >= 1 << 32:
        return struct.pack(">I4sQ", 1, part.tag, size & ((1 << 64) - 1)) + content
    return struct.pack(">I4s", size, part.tag) + content


ATOMS = Layout(_parse_atoms, _flat(_build_atom))


# ---- Matroska ----------------------------------------------------------------------------------------------------
# EBML, Segment, SeekHead, Seek, Info, Cluster, BlockGroup, Tracks, TrackEntry, Video, Audio, ContentEncodings, …
MASTERS = (
    "1a45dfa3 18538067 114d9b74 4dbb 1549a966 1f43b675 a0 1654ae6b ae e0 e1 6d80 6240 5034 1c53bb6b bb b7 1941a469 "
    "61a7 1043a770 45b9 b6 1254c367 7373"
)
MASTER_IDS = {bytes.fromhex(tag) for tag in MASTERS.split()}


def _parse_elements(content: bytes) -> list[Part]:
    parts, at = [], 0
    while at < len(content) and content[at]:
        tag = content[at : at + 9 - content[at].bit_length()]
        start = at + len(tag)
        if start >= len(content) or not content[start]:
            break
        length = 9 - content[start].bit_length()
        size = int.from_bytes(content[start : start + length], "big") - (1 << 7 * length)
        body = content[start + length : start + length + size]
        parts.append(Part(tag, b"", _parse_elements(body)) if tag in MASTER_IDS else Part(tag, body))
        at = start + length + size
    return parts + ([Part(b"", content[at:])] if at < len(content) else [])


def vint(value: int, length: int = 8) -> bytes:
    """A number as EBML writes lengths: a leading one bit tells how many bytes there are."""
    return ((value & ((1 << 7 * length) - 1)) | 1 << 7 * length).to_bytes(length, "big")


def _build_element(part: Part, content: bytes) -> bytes:
    return part.tag + vint(len(content) if part.lie is None else part.lie) + content


ELEMENTS = Layout(_parse_elements, _flat(_build_element))


# ---- RIFF: avi, webp ---------------------------------------------------------------------------------------------
def _parse_riff(content: bytes) -> list[Part]:
    parts, at = [], 0
    while at + 8 <= len(content):
        tag, size = struct.unpack_from("<4sI", content, at)
        body = content[at + 8 : at + 8 + size]
        nested = tag in (b"RIFF", b"LIST")
        parts.append(Part(tag, body[:4], _parse_riff(body[4:])) if nested else Part(tag, body))
        at += 8 + size + size % 2
    return parts


def _build_chunk(part: Part, content: bytes) -> bytes:
    size = (len(content) if part.lie is None else part.lie) & 0xFFFFFFFF
    return struct.pack("<4sI", part.tag, size) + content + b"\0" * (len(content) % 2)


RIFF = Layout(_parse_riff, _flat(_build_chunk))

# ---- PNG ---------------------------------------------------------------------------------------------------------
PNG_START = b"\x89PNG\r\n\x1a\n"


def _parse_png(content: bytes) -> list[Part]:
    parts, at = [Part(b"", PNG_START)], 8
    while at + 12 <= len(content):
        size, tag = struct.unpack_from(">I4s", content, at)
        parts.append(Part(tag, content[at + 8 : at + 8 + size]))
        at += 12 + size
    return parts


def _build_png_chunk(part: Part, content: bytes) -> bytes:
    size = (len(content) if part.lie is None else part.lie) & 0xFFFFFFFF
    return struct.pack(">I4s", size, part.tag) + content + struct.pack(">I", zlib.crc32(part.tag + content))


PNG = Layout(_parse_png, _flat(_build_png_chunk))


# ---- JPEG --------------------------------------------------------------------------------------------------------
def _parse_jpeg(content: bytes) -> list[Part]:
    parts, at = [Part(b"", content[:2])], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] not in (0xD9, 0x00):
        (size,) = struct.unpack_from(">H", content, at + 2)
        parts.append(Part(content[at : at + 2], content[at + 4 : at + 2 + size]))
        at += 2 + size
        if parts[-1].tag == b"\xff\xda":
            end = at
            while end + 1 < len(content) and not (
                content[end] == 0xFF and content[end + 1] not in (0, *range(0xD0, 0xD8))
            ):
                end += 1
            parts.append(Part(b"", content[at:end]))
            at = end
    return [*parts, Part(b"", content[at:])]


def _build_segment(part: Part, content: bytes) -> bytes:
    return part.tag + struct.pack(">H", (len(content) + 2 if part.lie is None else part.lie) & 0xFFFF) + content


JPEG = Layout(_parse_jpeg, _flat(_build_segment))


# ---- GIF ---------------------------------------------------------------------------------------------------------
def _parse_gif(content: bytes) -> list[Part]:
    """Header with colours, then extensions, image headers and chains of data blocks, all parts without a length."""
    at = 13 + (3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0)
    parts = [Part(b"", content[:at])]
    while at < len(content) and content[at] in (0x21, 0x2C):
        end = at + 2
        if content[at] == 0x2C:
            end = at + 11 + (3 << (content[at + 9] & 7) + 1 if content[at + 9] & 0x80 else 0)
        parts.append(Part(b"", content[at:end]))
        at = end
        while at < len(content) and content[at]:
            end = at + 1 + content[at]
            parts.append(Part(b"", content[at:end]))
            at = end
        parts.append(Part(b"", b"\0"))
        at += 1
    return [*parts, Part(b"", content[at:])]


GIF = Layout(_parse_gif, _flat(lambda part, content: content))
