"""Photographs, clips and arrays whose headers, boxes and checksums are right where that lets a lie get further."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from PIL import Image

from tests.chaos.mutants.parts import (
    ATOMS,
    ELEMENTS,
    GIF,
    JPEG,
    PNG,
    PNG_START,
    RIFF,
    Layout,
    Part,
    Rng,
    extreme,
    number,
    vint,
    with_number,
)
from tests.pipelines.reading.media.test_decode import clip_bytes, image_bytes, png_chunk

Mutator = Callable[[Rng], bytes]
GREYS = [40, 90, 140, 200]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Smooth colours."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([x * 6 % 256, y * 6 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def frames(count: int = 3) -> list[Image.Image]:
    """Pictures that move."""
    return [picture().rotate(90 * i) for i in range(count)]


@cache
def jpeg(number: int) -> bytes:
    """A good photograph."""
    return image_bytes(picture().rotate(10 * number), "JPEG")


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description " * 5
    return exif.tobytes()


@cache
def zeros(count: int) -> bytes:
    """So many zeros, compressed by zlib."""
    return zlib.compress(b"\0" * count, 9)


# ---- good files --------------------------------------------------------------------------------------------------
@cache
def bases(kind: str) -> Sequence[bytes]:
    """Good files of a kind, as different from each other as encoders make them."""
    still, moving = picture(), {"save_all": True, "append_images": frames()[1:]}
    extra = {"exif": _exif(), "icc_profile": b"\0" * 300}
    makers: dict[str, Callable[[], list[bytes]]] = {
        "jpg": lambda: [
            image_bytes(still, "JPEG", **extra), image_bytes(still, "JPEG", progressive=True),
            image_bytes(picture("CMYK"), "JPEG"), image_bytes(picture("L"), "JPEG", restart_marker_blocks=2),
            image_bytes(frames()[0], "MPO", **moving),
        ],
        "png": lambda: [
            image_bytes(still, "PNG", **extra), image_bytes(picture("P"), "PNG", transparency=3),
            image_bytes(picture("I;16"), "PNG"), image_bytes(picture("1"), "PNG"),
            image_bytes(frames()[0], "PNG", **moving),
        ],
        "webp": lambda: [
            image_bytes(still, "WEBP", **extra), image_bytes(still, "WEBP", lossless=True),
            image_bytes(picture("RGBA"), "WEBP"), image_bytes(frames()[0], "WEBP", **moving),
        ],
        "bmp": lambda: [image_bytes(image, "BMP") for image in (still, picture("P"), picture("1"))],
        "tiff": lambda: [
            *(image_bytes(still, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_deflate", "jpeg")),
            image_bytes(picture("I;16"), "TIFF"), image_bytes(picture("CMYK"), "TIFF"),
            image_bytes(picture("1"), "TIFF", compression="group4"),
        ],
        "avif": lambda: [
            image_bytes(still, "AVIF"), image_bytes(picture("RGBA"), "AVIF"),
            image_bytes(frames()[0], "AVIF", **moving),
        ],
        "jp2": lambda: [image_bytes(still, "JPEG2000"), image_bytes(picture("I;16"), "JPEG2000")],
        "heic": lambda: [
            image_bytes(still, "HEIF", exif=extra["exif"]), image_bytes(picture("RGBA"), "HEIF"),
            image_bytes(still.resize((256, 256)), "HEIF", tile_size=64),
        ],
        "gif": lambda: [
            image_bytes(still, "GIF"), image_bytes(frames()[0], "GIF", **moving, loop=0, duration=40),
            image_bytes(picture("L"), "GIF", interlace=True, comment=b"a comment"),
        ],
        "mp4": lambda: [
            clip_bytes("mp4", "libx264", GREYS), clip_bytes("mp4", "mpeg4", GREYS),
            clip_bytes("mp4", "libx264", GREYS, movflags="frag_keyframe+empty_moov"),
            clip_bytes("mp4", "libvpx-vp9", GREYS), clip_bytes("mp4", "libx265", GREYS),
        ],
        "mov": lambda: [
            clip_bytes("mov", "mpeg4", GREYS), clip_bytes("mov", "mjpeg", GREYS, "yuvj420p"),
            clip_bytes("mov", "libx264", GREYS), clip_bytes("mov", "qtrle", GREYS, "rgb24"),
        ],
        "mkv": lambda: [
            clip_bytes("matroska", "libx264", GREYS), clip_bytes("matroska", "mpeg4", GREYS),
            clip_bytes("matroska", "ffv1", GREYS), clip_bytes("matroska", "mjpeg", GREYS, "yuvj420p"),
        ],
        "webm": lambda: [clip_bytes("webm", "libvpx-vp9", GREYS), clip_bytes("webm", "libvpx", GREYS)],
        "avi": lambda: [
            clip_bytes("avi", "mpeg4", GREYS), clip_bytes("avi", "mjpeg", GREYS, "yuvj420p"),
            clip_bytes("avi", "rawvideo", GREYS), clip_bytes("avi", "huffyuv", GREYS, "yuv422p"),
        ],
    }  # fmt: skip
    return makers[kind]()


LAYOUTS: dict[str, Layout] = {
    "jpg": JPEG, "png": PNG, "webp": RIFF, "gif": GIF, "mp4": ATOMS, "mov": ATOMS, "mkv": ELEMENTS, "webm": ELEMENTS,
    "avi": RIFF, "avif": ATOMS, "heic": ATOMS, "jp2": ATOMS,
}  # fmt: skip


def _base(kind: str, rng: Rng) -> bytes:
    files = bases(kind)
    return files[rng.integers(len(files))]


def _shaken(kind: str) -> Mutator:
    def shaken(rng: Rng) -> bytes:
        return LAYOUTS[kind].shaken(_base(kind, rng), rng)

    return shaken


def _torn(kind: str) -> Mutator:
    def torn(rng: Rng) -> bytes:
        content = _base(kind, rng)
        cut = content[: int(rng.integers(1, len(content)))]
        return cut + (rng.bytes(int(rng.integers(0, 4000))) if rng.random() < 0.5 else _base(kind, rng))

    return torn


def _garbled(kind: str) -> Mutator:
    """Extreme numbers among the first bytes, where sizes, depths and offsets are."""

    def garbled(rng: Rng) -> bytes:
        content = _base(kind, rng)
        for _ in range(int(rng.integers(1, 4))):
            content = with_number(content, rng, 512)
        return content

    return garbled


# ---- photographs -------------------------------------------------------------------------------------------------
def _side(rng: Rng) -> int:
    return int(rng.choice([0, 1, 2, 7, 255, 8000, 16384, 65535, (1 << 31) - 1, (1 << 32) - 1]))


def jpg_of_any_size(rng: Rng) -> bytes:
    parts = JPEG.parse(_base("jpg", rng))
    for part in parts:
        if part.tag[1:] in (b"\xc0", b"\xc2"):
            size = struct.pack(">HH", _side(rng) & 0xFFFF, _side(rng) & 0xFFFF)
            tail = bytearray(part.body[5:])
            tail[int(rng.integers(len(tail)))] = int(rng.choice([0, 1, 4, 0x11, 0x44, 255]))
            part.body, part.tag = (
                part.body[:1] + size + bytes(tail),
                b"\xff" + bytes([rng.choice([0xC0, 0xC2, 0xC9, 0xC3])]),
            )
    return JPEG.build(parts)


def jpg_of_many_scans(rng: Rng) -> bytes:
    """Each scan of a progressive photograph goes over all its pixels again."""
    parts = JPEG.parse(bases("jpg")[1])
    for part in parts:
        if part.tag[1:] == b"\xc2":
            part.body = part.body[:1] + struct.pack(">HH", 4000, 4000) + part.body[5:]
    at = next(i for i, part in enumerate(parts) if part.tag == b"\xff\xda")
    scan = JPEG.build(parts[at : at + 2])
    parts.insert(at, Part(b"", scan * int(rng.choice([10, 100, 400]))))
    return JPEG.build(parts)


def jpg_with_broken_exif(rng: Rng) -> bytes:
    parts = JPEG.parse(bases("jpg")[0])
    for part in parts:
        if part.body.startswith(b"Exif"):
            part.body = part.body[:6] + with_number(with_number(part.body[6:], rng, 200), rng, 200)
    return JPEG.build(parts)


def png_of_any_size(rng: Rng) -> bytes:
    bits, colour, lace = rng.choice([1, 2, 4, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 1]), rng.choice([0, 1, 2])
    header = struct.pack(">IIBBBBB", _side(rng), _side(rng), bits, colour, 0, 0, lace)
    pixels = zlib.compress(b"\0" * int(rng.choice([0, 1000, 1 << 22])), 9)
    palette = png_chunk(b"PLTE", b"\0" * int(rng.choice([0, 3, 4, 768, 771])))
    return PNG_START + png_chunk(b"IHDR", header) + palette + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_with_a_bomb_of_text(rng: Rng) -> bytes:
    bomb = zeros(64 << 20)
    kind, head = [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")][rng.integers(3)]
    parts = PNG.parse(_base("png", rng))
    parts[2:2] = [Part(kind, head + bomb) for _ in range(int(rng.choice([1, 3])))]
    return PNG.build(parts)


def png_of_many_frames(rng: Rng) -> bytes:
    parts = PNG.parse(bases("png")[4])
    for part in parts:
        if part.tag == b"acTL":
            part.body = struct.pack(">II", extreme(rng) & 0xFFFFFFFF, 0)
        if part.tag == b"fcTL" and rng.random() < 0.7:
            part.body = part.body[:4] + struct.pack(">IIII", _side(rng), _side(rng), _side(rng), 0) + part.body[20:]
    return PNG.build(parts)


def webp_of_any_size(rng: Rng) -> bytes:
    parts = RIFF.parse(_base("webp", rng))
    for part in parts[0].parts:
        if part.tag in (b"VP8X", b"VP8L", b"VP8 ", b"ANMF"):
            part.body = with_number(part.body, rng, 16)
    return RIFF.build(parts)


def gif_of_any_size(rng: Rng) -> bytes:
    content = bytearray(_base("gif", rng))
    content[6:10] = struct.pack("<HH", _side(rng) & 0xFFFF, _side(rng) & 0xFFFF)
    at = content.find(b"\x2c", 13)
    if rng.random() < 0.5 and at > 0:
        content[at + 1 : at + 9] = struct.pack("<4H", *(_side(rng) & 0xFFFF for _ in range(4)))
    return bytes(content)


def gif_of_very_many_frames(rng: Rng) -> bytes:
    width = int(rng.choice([1, 64, 2000]))
    frame = b"\x21\xf9\x04\x08\0\0\0\0" + b"\x2c\0\0\0\0\1\0\1\0\0" + b"\x02\x02\x44\x01\0"
    screen = struct.pack("<HH", width, width) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + frame * int(rng.choice([300, 3000])) + b"\x3b"


DISGUISES = (
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
    b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"BM" + b"\xff" * 60,
    b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 60, b"P6 99999 99999 255\n", b"8BPS\0\1" + b"\xff" * 60,
    b"\0\0\1\0\1\0" + b"\xff" * 30, b"#!/bin/sh\n", b"\x1f\x8b\x08\0" + b"\xff" * 20, b"", b"\0" * 4096,
)  # fmt: skip


def disguise(rng: Rng) -> bytes:
    """Something else under this name, now and then behind the right first bytes."""
    start = [b"", b"\xff\xd8\xff", PNG_START, b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3"][rng.integers(5)]
    return start + DISGUISES[rng.integers(len(DISGUISES))]


# ---- clips -------------------------------------------------------------------------------------------------------
def _each(parts: list[Part], tags: set[bytes]) -> list[Part]:
    return [p for part in parts for p in ([part] if part.tag in tags else []) + _each(part.parts, tags)]


def _atoms(kind: str, *tags: bytes) -> Mutator:
    def atoms(rng: Rng) -> bytes:
        parts = ATOMS.parse(_base(kind, rng))
        for part in _each(parts, set(tags)):
            part.body = with_number(part.body, rng, 32)
        return ATOMS.build(parts)

    atoms.__name__ = "atoms_" + b"_".join(tags).decode()
    return atoms


def atoms_that_point_outside(kind: str) -> Mutator:
    """The samples are said to lie in another file."""

    def outside(rng: Rng) -> bytes:
        parts = ATOMS.parse(_base(kind, rng))
        target = [b"file:///etc/passwd\0", b"http://127.0.0.1:9/x\0", b"/proc/self/environ\0", b"pipe:0\0"][
            rng.integers(4)
        ]
        reference = ATOMS.build([Part(b"url ", b"\0\0\0\0" + target)])
        for part in _each(parts, {b"dref"}):
            part.body = struct.pack(">II", 0, 1) + reference
        return ATOMS.build(parts)

    return outside


def atoms_in_atoms(kind: str) -> Mutator:
    """Boxes in boxes, thousands deep."""

    def deep(rng: Rng) -> bytes:
        content = _base(kind, rng)
        for _ in range(int(rng.choice([100, 3000]))):
            content = struct.pack(">I4s", len(content) + 8, [b"moov", b"trak", b"meta"][rng.integers(3)]) + content
        return struct.pack(">I4s4s", 12, b"ftyp", b"isom") + content

    return deep


def _elements(kind: str, *tags: str) -> Mutator:
    def elements(rng: Rng) -> bytes:
        parts = ELEMENTS.parse(_base(kind, rng))
        for part in _each(parts, {bytes.fromhex(tag) for tag in tags}):
            part.body = number(rng, max(1, len(part.body))) if rng.random() < 0.5 else with_number(part.body, rng, 16)
        return ELEMENTS.build(parts)

    elements.__name__ = "elements_" + "_".join(tags)
    return elements


def elements_that_link(kind: str) -> Mutator:
    """Segments that ask for others by name, and attached files."""

    def links(rng: Rng) -> bytes:
        parts = ELEMENTS.parse(_base(kind, rng))
        for info in _each(parts, {bytes.fromhex("1549a966")}):
            info.parts += [
                Part(bytes.fromhex("3eb923"), rng.bytes(16)), Part(bytes.fromhex("3e83bb"), b"/etc/passwd"),
                Part(bytes.fromhex("3c83ab"), b"/etc/passwd"), Part(bytes.fromhex("3cb923"), rng.bytes(16)),
            ]  # fmt: skip
        attached = [Part(bytes.fromhex("466e"), b"../../etc/cron.d/x"), Part(bytes.fromhex("465c"), rng.bytes(200))]
        parts[-1].parts.append(Part(bytes.fromhex("1941a469"), b"", [Part(bytes.fromhex("61a7"), b"", attached)]))
        return ELEMENTS.build(parts)

    return links


def elements_that_unpack(kind: str) -> Mutator:
    """A track that says that its blocks are compressed: by zlib a bomb, or by stripped headers."""

    def packed(rng: Rng) -> bytes:
        parts = ELEMENTS.parse(_base(kind, rng))
        method = int(rng.choice([0, 1, 2, 3, 9]))
        settings = [Part(bytes.fromhex("4254"), bytes([method])), Part(bytes.fromhex("4255"), rng.bytes(8))]
        encoding = Part(bytes.fromhex("6240"), b"", [Part(bytes.fromhex("5034"), b"", settings)])
        for track in _each(parts, {b"\xae"}):
            track.parts.append(Part(bytes.fromhex("6d80"), b"", [encoding]))
        for block in _each(parts, {b"\xa3"}):
            block.body = block.body[:4] + zeros(16 << 20)
        return ELEMENTS.build(parts)

    return packed


def elements_of_any_length(kind: str) -> Mutator:
    def lengths(rng: Rng) -> bytes:
        content = _base(kind, rng)
        at = content.find(bytes.fromhex("18538067")) + 4
        return content[:at] + vint(extreme(rng)) + content[at + 8 :]

    return lengths


def _chunks(*tags: bytes) -> Mutator:
    def chunks(rng: Rng) -> bytes:
        parts = RIFF.parse(_base("avi", rng))
        for part in _each(parts, set(tags)):
            part.body = with_number(part.body, rng, 56)
        return RIFF.build(parts)

    chunks.__name__ = "chunks_" + b"_".join(tags).decode()
    return chunks


# ---- arrays ------------------------------------------------------------------------------------------------------
def npy_with_header(header: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """A NumPy file of this header and some data."""
    size = len(header) if length is None else length
    packed = struct.pack("<H", size & 0xFFFF) if version == (1, 0) else struct.pack("<I", size & 0xFFFFFFFF)
    return b"\x93NUMPY" + bytes(version) + packed + header + bytes(range(256)) * 3


SHAPES = (
    "(3, 8, 8)", "(-3, 8, 8)", "(0, 8, 8)", "(3, 1000000, 1000000)", "(99999999999999999999, 1, 1)", "(3, 8)", "()",
    "(3, 8, 8, 1)", "3", "None", "(3.0, 8, 8)", "(True, 8, 8)", "[3, 8, 8]", "('3', 8, 8)",
    "(1, 2, 3" + ",1" * 100 + ")",
    "(9223372036854775807, 9223372036854775807, 9223372036854775807)", "(3, -1, -64)", "(4294967296, 4294967296, 1)",
)  # fmt: skip
DTYPES = (
    "'<f4'", "'<f8'", "'>u2'", "'|O'", "'|V8'", "'<U4'", "'|S9'", "'<M8[ns]'", "'<c8'", "'|b1'", "'<f16'", "'<i8'",
    "[('a', '<f4'), ('b', '|O')]", "('<f4', (2, 2))", "'x'", "None", "''", "{'names': ['a'], 'formats': ['O']}",
    "'<f2'",
    "'f4,' * 1000", "[('a', '<f4', (1000000000, 1000000000))]", "'<V0'", "'<i4, (100,100)f8'", "'" + "f" * 5000 + "'",
)  # fmt: skip


def npy_header(rng: Rng) -> bytes:
    order = ["False", "True", "None", "1", "'no'"][rng.integers(5)]
    dtype, shape = DTYPES[rng.integers(len(DTYPES))], SHAPES[rng.integers(len(SHAPES))]
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text += "" if rng.random() < 0.8 else ", 'more': 1"
    version = [(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)][rng.integers(5)]
    length = None if rng.random() < 0.7 else extreme(rng)
    return npy_with_header(text.encode() + b" " * 20 + b"\n", version, length)


def npy_header_is_code(rng: Rng) -> bytes:
    texts = (
        "__import__('os').system('touch /tmp/owned')", "(" * 5000 + ")" * 5000, "[" * 300 + "]" * 300, "1" * 9000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 4000 + ")}", "9**9**9", "{**{}}", "\0",
        "'\\N{x}'",
        "{" + "'a':1," * 1000 + "}", "- " * 5000 + "1", "f'{1}'", "{'descr': '<f4'} # comment", "lambda: 0",
    )  # fmt: skip
    return npy_with_header(texts[rng.integers(len(texts))].encode() + b"\n")


def npy_values(rng: Rng) -> bytes:
    """Right in form, for a nowcaster of 32 x 32; the numbers are not."""
    values = rng.random((3, 32, 32)).astype(rng.choice(["<f2", "<f4", "<f8", ">f4"]))
    with np.errstate(over="ignore"):
        values[rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf, -1, 1e5, 1e-40])
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 32, 32), np.float32))
    return buffer.getvalue()


def npz_of_members(rng: Rng) -> bytes:
    """Names that lead elsewhere, several, none, the same twice, other methods of compression."""
    names = [
        "arr_0.npy",
        "/etc/passwd",
        "../../x.npy",
        "a.npy",
        "a.npy",
        "",
        "x" * 60000,
        "C:\\x.npy",
        "dir/",
        "a\0b.npy",
    ]
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:
        for _ in range(int(rng.choice([0, 1, 1, 1, 2, 200]))):
            info = zipfile.ZipInfo(names[rng.integers(len(names))])
            info.compress_type = int(
                rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            )
            info.external_attr = int(rng.choice([0, 0o120777 << 16]))
            archive.writestr(info, _npy() if rng.random() < 0.7 else npy_header(rng))
    return buffer.getvalue()


@cache
def _bomb(method: int, frames: int) -> bytes:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 1000, 1000), }\n" % frames
    data = npy_with_header(header)[: 10 + len(header)] + b"\0" * (frames * 1_000_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=9) as archive:
        archive.writestr("a.npy", data)
    return buffer.getvalue()


def npz_that_is_a_bomb(rng: Rng) -> bytes:
    return _bomb(zipfile.ZIP_DEFLATED, 300) if rng.random() < 0.7 else _bomb(zipfile.ZIP_BZIP2, 30)


def npz_with_fields(rng: Rng) -> bytes:
    """A zip whose local header, directory entry or end record has an extreme number or a wrong flag."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, np.ones((3, 32, 32), np.float32))
    content = buffer.getvalue()
    for _ in range(int(rng.integers(1, 4))):
        mark = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"][rng.integers(3)]
        at = content.rfind(mark)
        content = content[: at + 4] + with_number(content[at + 4 :], rng, {3: 26, 1: 42, 5: 18}[mark[2]])
    return content + (b"" if rng.random() < 0.8 else rng.bytes(70000))


# ---- all of them -------------------------------------------------------------------------------------------------
def _named(mutators: Sequence[Mutator]) -> dict[str, Mutator]:
    return {mutator.__name__: mutator for mutator in mutators}


def _of(kind: str, *special: Mutator) -> dict[str, Mutator]:
    shaken = _shaken(kind)
    return {"shaken": shaken, **_named(special), "shaken_again": shaken, **_named([_torn(kind), disguise])}


_TABLES = (b"stsz", b"stco", b"stsc", b"stts", b"ctts", b"stss")
MEMBERS: dict[str, dict[str, Mutator]] = {
    "jpg": _of("jpg", jpg_of_any_size, jpg_of_many_scans, jpg_with_broken_exif),
    "png": _of("png", png_of_any_size, png_with_a_bomb_of_text, png_of_many_frames),
    "webp": _of("webp", webp_of_any_size),
    "bmp": _named([_garbled("bmp"), _torn("bmp"), disguise]),
    "tiff": _named([_garbled("tiff"), _torn("tiff"), disguise]),
    "avif": _of("avif", _atoms("avif", b"ispe", b"iloc", b"av1C"), _garbled("avif")),
    "heic": _of("heic", _atoms("heic", b"ispe", b"iloc", b"hvcC"), _atoms("heic", b"ipma", b"iref"), _garbled("heic")),
    "jp2": _of("jp2", _atoms("jp2", b"ihdr", b"colr"), _garbled("jp2")),
    "gif": _of("gif", gif_of_any_size, gif_of_very_many_frames),
    "mp4": _of(
        "mp4", _atoms("mp4", *_TABLES), _atoms("mp4", b"stsd"), _atoms("mp4", b"mdhd", b"mvhd", b"tkhd", b"elst"),
        _atoms("mp4", b"trun", b"tfhd", b"tfdt", b"trex"), atoms_that_point_outside("mp4"), atoms_in_atoms("mp4"),
    ),
    "mov": _of(
        "mov", _atoms("mov", *_TABLES), _atoms("mov", b"stsd"), _atoms("mov", b"mdhd", b"hdlr", b"tkhd"),
        atoms_that_point_outside("mov"), atoms_in_atoms("mov"),
    ),
    "mkv": _of(
        "mkv", _elements("mkv", "b0", "ba", "54b0", "54ba"), _elements("mkv", "63a2", "86"),
        _elements("mkv", "a3", "a1"),
        elements_that_link("mkv"), elements_that_unpack("mkv"), elements_of_any_length("mkv"),
    ),
    "webm": _of(
        "webm", _elements("webm", "b0", "ba"), _elements("webm", "a3", "e7"), _elements("webm", "2ad7b1", "4489"),
        elements_that_unpack("webm"), elements_of_any_length("webm"),
    ),
    "avi": _of("avi", _chunks(b"avih"), _chunks(b"strh", b"strf"), _chunks(b"idx1"), _chunks(b"00dc", b"00db")),
    "npy": _named([npy_header, npy_header_is_code, npy_values, disguise]),
    "npz": _named([npz_of_members, npz_with_fields, npz_that_is_a_bomb, disguise]),
}  # fmt: skip
