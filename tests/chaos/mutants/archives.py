"""Tar archives, header by header, with checksums that are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.chaos.mutants.media import jpeg
from tests.chaos.mutants.parts import Rng, extreme

Mutator = Callable[[Rng], bytes]
BLOCK = 512
END = b"\0" * 2 * BLOCK


@dataclass(frozen=True)
class Header:
    """The fields of a ustar header as they are written."""

    name: bytes = b"good.jpg"
    mode: bytes = b"0000644\0"
    owner: bytes = b"0000000\0"
    group: bytes = b"0000000\0"
    size: bytes = b"00000000000\0"
    time: bytes = b"00000000000\0"
    kind: bytes = b"0"
    link: bytes = b""
    magic: bytes = b"ustar\x0000"
    user: bytes = b""
    groupname: bytes = b""
    major: bytes = b"0000000\0"
    minor: bytes = b"0000000\0"
    prefix: bytes = b""
    tail: bytes = b""

    def block(self, right: bool = True) -> bytes:
        """512 bytes, with a checksum that is right, or not."""
        fields = [
            (self.name, 100), (self.mode, 8), (self.owner, 8), (self.group, 8), (self.size, 12), (self.time, 12),
            (b" " * 8, 8), (self.kind, 1), (self.link, 100), (self.magic, 8), (self.user, 32), (self.groupname, 32),
            (self.major, 8), (self.minor, 8), (self.prefix, 155), (self.tail, 12),
        ]  # fmt: skip
        block = b"".join(value[:width].ljust(width, b"\0") for value, width in fields)
        checksum = b"%06o\0 " % (sum(block) + (0 if right else 1))
        return block[:148] + checksum + block[156:]


def octal(value: int) -> bytes:
    """A number as a size is written."""
    return b"%011o\0" % value


def binary(value: int, width: int = 12) -> bytes:
    """A number in base 256, negative if it is; cut off where it does not fit."""
    return ((value + (1 << 8 * width)) & ((1 << 8 * width) - 1) | (1 << (8 * width - 1))).to_bytes(width, "big")


def padded(content: bytes) -> bytes:
    """Content up to the next block."""
    return content + b"\0" * (-len(content) % BLOCK)


def member(name: bytes = b"good.jpg", content: bytes | None = None, **fields: bytes) -> bytes:
    """A header and its content, a photograph by default."""
    content = jpeg(0) if content is None else content
    return replace(Header(name=name, size=octal(len(content))), **fields).block() + padded(content)


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header that holds these records."""
    return Header(name=b"pax", size=octal(len(records)), kind=kind).block() + padded(records)


def record(key: bytes, value: bytes, length: int | None = None) -> bytes:
    """A PAX record, whose length counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % (size if length is None else length) + rest


def between(*middle: bytes) -> bytes:
    """The archive with a good member before and after."""
    return member(b"before.jpg") + b"".join(middle) + member(b"after.jpg") + END


# ---- PAX ---------------------------------------------------------------------------------------------------------
SPARSE = (b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.realsize", b"GNU.sparse.numblocks", b"GNU.sparse.offset",
          b"GNU.sparse.numbytes", b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name")  # fmt: skip
NUMBERS = (b"0", b"1", b"-1", b"512", b"9999999999999", b"99999999999999999999999", b"x", b"", b"1.5", b"0,512,1024,9",
b"1e9",
           b"0x10", b"-9223372036854775808", b" 7", b"1_0", b"\xd9\xa3", b"0,0,0,0,", b"9,9,9")  # fmt: skip


def pax_of_sparse_files(rng: Rng) -> bytes:
    keys = rng.choice(len(SPARSE), int(rng.integers(1, len(SPARSE) + 1)), replace=False)
    records = b"".join(record(SPARSE[i], NUMBERS[rng.integers(len(NUMBERS))]) for i in keys)
    if rng.random() < 0.3:
        records = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0") + records
    content = [jpeg(1), b"3\n0\n512\n", b"999999999\n0\n1\n", b"-1\n" * 200, b"x\n" * 200, b"1" * 600][rng.integers(6)]
    return between(extended(records), member(b"sparse.jpg", content))


def pax_of_sizes(rng: Rng) -> bytes:
    return between(extended(record(b"size", NUMBERS[rng.integers(len(NUMBERS))])), member(b"sized.jpg"))


def pax_of_anything(rng: Rng) -> bytes:
    keys = (
        b"path",
        b"linkpath",
        b"mtime",
        b"uid",
        b"gid",
        b"hdrcharset",
        b"uname",
        b"SCHILY.xattr.x",
        b"size",
        b"",
        b"comment",
    )
    values = (
        *NUMBERS,
        b"nan",
        b"inf",
        b"\xff\xfe",
        b"a" * 5000,
        b"../../x.jpg",
        b"/etc/passwd",
        b"BINARY",
        b"a\0b",
        b".",
        b"/",
        b"\n",
    )
    records = b"".join(
        record(keys[rng.integers(len(keys))], values[rng.integers(len(values))]) for _ in range(int(rng.integers(1, 6)))
    )
    return between(extended(records, [b"x", b"g", b"X"][rng.integers(3)]), member(b"any.jpg"))


def pax_of_wrong_lengths(rng: Rng) -> bytes:
    lengths = (0, 1, 3, 5, 99, 10**6, 10**30, -5)
    records = b"".join(
        record(b"path", b"a.jpg", lengths[rng.integers(len(lengths))]) for _ in range(int(rng.integers(1, 4)))
    )
    records += [b"", b"no equals sign\n", b"9 a=b", b" \n", b"12", b"\0" * 600, b"=" * 600, b"9" * 600 + b" a=b\n"][
        rng.integers(8)
    ]
    return between(extended(records), member(b"any.jpg"))


def chained_headers(rng: Rng) -> bytes:
    """Long names of long names: a recursion in some readers."""
    count, kind = int(rng.choice([2, 100, 1200, 3000])), [b"L", b"K", b"x", b"g"][rng.integers(4)]
    content = record(b"path", b"a.jpg") if kind in b"xg" else b"a.jpg\0"
    return between(member(b"long", content, kind=kind) * count, member(b"long.jpg"))


def long_names(rng: Rng) -> bytes:
    name = [b"a" * 70_000 + b".jpg", b"a/" * 3000 + b"b.jpg", b"", b"\xff\xfe\xed.jpg", b"\0", b".", b"a.jpg"][
        rng.integers(7)
    ]
    size = octal(len(name)) if rng.random() < 0.6 else octal(int(rng.choice([0, 1 << 31, (1 << 33) - 1])))
    header = Header(name=b"././@LongLink", size=size, kind=[b"L", b"K"][rng.integers(2)])
    return between(header.block(), padded(name), member(b"short.jpg"))


# ---- headers -----------------------------------------------------------------------------------------------------
SIZES = (
    octal(0), octal(1), octal((1 << 33) - 1), binary(-1), binary(-512), binary(1 << 40), binary((1 << 94) - 1),
    binary(3), b"-0000000001\0",
    b"999999999999", b"            ", b"\0" * 12, b"0x10\0", b"12 34\0", b"+12\0", b"\xff" * 12, b"\x80" + b"\0" * 11,
    b"1_0\0", "١٢".encode(),
)  # fmt: skip


def sizes(rng: Rng) -> bytes:
    field = ["size", "size", "size", "mode", "owner", "time", "major"][rng.integers(7)]
    return between(member(b"sized.jpg", **{field: SIZES[rng.integers(len(SIZES))]}))


def kinds(rng: Rng) -> bytes:
    kind = bytes([int(rng.choice([*b"0123456789ABDEFGIKLMNSVXagx", 0, 128, 255]))])
    target = [b"before.jpg", b"kind.jpg", b"/etc/passwd", b"../../../etc/passwd", b"after.jpg", b"", b"\xff"][
        rng.integers(7)
    ]
    size = octal(int(rng.choice([0, 600, len(jpeg(0))])))
    magic = [b"ustar\x0000", b"ustar  \0", b"", b"\xff" * 8][rng.integers(4)]
    return between(member(b"kind.jpg", kind=kind, link=target, size=size, magic=magic))


def old_sparse(rng: Rng) -> bytes:
    """GNU's own sparse files, whose map lies in the header and in blocks after it."""
    numbers = (octal(0), octal(512), octal((1 << 33) - 1), binary(-1), binary(1 << 60), b"x" * 12, b"\0" * 12)
    pairs = b"".join(numbers[rng.integers(len(numbers))] for _ in range(8))
    more = bytes([rng.choice([0, 1])])
    prefix = b"\0" * 41 + pairs + more + numbers[rng.integers(len(numbers))]
    header = Header(
        name=b"sparse.jpg", size=octal(600), kind=b"S", magic=b"ustar  \0", prefix=prefix[:155], tail=prefix[155:]
    )
    extra = (pairs * 6)[:504] + bytes([rng.choice([0, 1])]) + b"\0" * 7
    return between(header.block(), extra * int(rng.choice([0, 1, 40])), padded(jpeg(0)))


def names(rng: Rng) -> bytes:
    found = (b"", b"/", b".", b"..", b".jpg", b"a.", b"a.jpg/", b"\xff\xfe.jpg", b"a\0b.jpg", b"." * 100,
    b"a.b.c.d.jpg", b"a" * 100,
             b"\xe2\x80\xae.jpg", b"C:\\a.jpg", b"%00.jpg", b"\n.jpg", b"a.JPG", b"a.jpg.gz",
             "ä.jpg".encode("latin-1"))  # fmt: skip
    chosen = [
        member(found[rng.integers(len(found))], prefix=[b"", b"\xff", b"p" * 155][rng.integers(3)]) for _ in range(4)
    ]
    return between(*chosen)


def fields(rng: Rng) -> bytes:
    """Bytes of a header replaced, the checksum right again, or in one of ten files not."""
    content = jpeg(0)
    block = bytearray(Header(name=b"field.jpg", size=octal(len(content))).block())
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, BLOCK))
        block[at : at + 4] = rng.bytes(4) if rng.random() < 0.5 else (extreme(rng) & 0xFFFFFFFF).to_bytes(4, "big")
    block = block[:BLOCK]
    if rng.random() < 0.9:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return between(bytes(block), padded(content))


# ---- archives ----------------------------------------------------------------------------------------------------
def torn(rng: Rng) -> bytes:
    whole = between(member(b"a.jpg"), member(b"a.json", b'{"text": "x"}'))
    return whole[: int(rng.integers(0, len(whole)))]


def one_after_the_other(rng: Rng) -> bytes:
    """Archives that follow each other, with and without end marks, or the same members twice."""
    pieces = [between(), member(), member(b"good.txt", b"ein Hund"), member(b"good.txt", b"\xff"), b"\0" * BLOCK,
    END * 20, b"\0" * 100,
              b"\x1f\x8b\x08" + b"\0" * 509, rng.bytes(BLOCK), Header().block(right=False)]  # fmt: skip
    return b"".join(pieces[rng.integers(len(pieces))] for _ in range(int(rng.integers(1, 9))))


def other_members(rng: Rng) -> bytes:
    suffixes = [b"txt", b"json", b"cls", b"jpg", b"JPG", b"png", b"", b"json.gz", b"npy", b"mp4", b"pkl", b"xml"]
    contents = [
        b"",
        b"ein Hund",
        b"\xff\xfe\0",
        b'{"text": "a"}',
        b"[1]",
        b"[" * 100_000,
        b"NaN",
        jpeg(0),
        b'{"a": 1e999}',
        b"\x93NUMPY",
    ]
    stems = [b"a", b"a", b"b", b""]
    return (
        b"".join(
            member(
                stems[rng.integers(len(stems))] + b"." + suffixes[rng.integers(len(suffixes))],
                contents[rng.integers(len(contents))],
            )
            for _ in range(int(rng.integers(1, 12)))
        )
        + END
    )


def very_many_members(rng: Rng) -> bytes:
    return Header(name=b"a.jpg", kind=[b"0", b"5", b"1"][rng.integers(3)]).block() * int(rng.choice([500, 3000])) + END


SHARDS: dict[str, dict[str, Mutator]] = {
    "tar": {
        mutator.__name__: mutator
        for mutator in (
            pax_of_sparse_files, pax_of_sizes, pax_of_anything, pax_of_wrong_lengths, chained_headers, long_names,
            sizes, kinds,
            old_sparse, names, fields, torn, one_after_the_other, other_members, very_many_members,
        )
    }
}  # fmt: skip
