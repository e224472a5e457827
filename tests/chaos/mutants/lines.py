"""Text of one row a line, and gzip around it."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache

from tests.chaos.mutants.parts import Rng, number

Mutator = Callable[[Rng], bytes]
GOOD = '{"id": "good", "text": "ein Hund läuft", "en": "ein Hund läuft"}'
DEEP = 100_000

# ---- one line of JSON --------------------------------------------------------------------------------------------
VALUES: Sequence[Callable[[], str]] = (
    lambda: "[" * DEEP, lambda: "[" * 900 + "]" * 900, lambda: '{"a":' * DEEP, lambda: '{"a":' * 400 + "1" + "}" * 400,
    lambda: "NaN", lambda: "-Infinity", lambda: "1e999", lambda: "1" * 5000, lambda: "9" * 4300, lambda: "-0",
    lambda: "0.1" * 9,
    lambda: '"\\ud800"', lambda: '"\\udfff\\ud800"', lambda: '"\\u0000"', lambda: '"\x00"', lambda: '"\t"',
    lambda: "null",
    lambda: "true", lambda: "[]", lambda: "{}", lambda: '[["a"]]', lambda: '{"bytes": "aGk="}',
    lambda: '"' + "x" * 100_000 + '"',
    lambda: '"' + "ein Hund " * 3000 + '"', lambda: '"' + "\\ud83d\\ude00" * 100 + '"',
    lambda: '"' + "\u202e\u0301" * 300 + '"',
    lambda: '"=cmd|\' /C calc\'!A0"', lambda: '"<script>alert(1)</script>"', lambda: '"../../etc/passwd"',
    lambda: '"http://127.0.0.1:9/"', lambda: '"\\uFFFF\\uFFFE"', lambda: '"a"  "b"', lambda: "'a'",
    lambda: "/* c */ 1", lambda: "",
)  # fmt: skip
KEYS = (
    "text",
    "en",
    "id",
    "step_minutes",
    "issue_time",
    "captions",
    "shard",
    "index",
    "last",
    "error",
    "",
    "a\\u0000b",
    "__class__",
)


def object_of_values(rng: Rng) -> str:
    """A row whose fields are anything."""
    pairs = []
    for _ in range(int(rng.integers(1, 5))):
        key, value = KEYS[rng.integers(len(KEYS))], VALUES[rng.integers(len(VALUES))]()
        pairs.append(f'"{key}": {value}')
    return "{" + ", ".join(pairs) + "}"


def _id_of_a_megabyte(rng: Rng) -> str:
    return json.dumps({"id": "x" * int(rng.choice([70_000, 1_100_000])), "text": "ein Hund"})


def _many_keys(rng: Rng) -> str:
    return json.dumps({f"k{i}": i for i in range(20_000)} | {"text": "ein Hund"})


def _no_object(rng: Rng) -> str:
    return [
        "[]",
        '"text"',
        "12",
        "null",
        "NaN",
        "{",
        "}",
        '{"text" "x"}',
        '{"text": "a"} {"text": "b"}',
        "\ufeff{}",
        "//",
    ][rng.integers(11)]


OBJECTS: Sequence[Callable[[Rng], str]] = (
    object_of_values, object_of_values, object_of_values, _id_of_a_megabyte, _many_keys, _no_object,
)  # fmt: skip


def lines_of_objects(rng: Rng) -> bytes:
    found = [OBJECTS[rng.integers(len(OBJECTS))](rng) for _ in range(int(rng.integers(1, 6)))]
    return "\n".join([GOOD, *found, GOOD]).encode("utf-8", "surrogatepass") + b"\n"


def ids_of_a_megabyte(rng: Rng) -> bytes:
    """Ten lines whose names alone fill a block."""
    return b"".join(
        json.dumps({"id": f"{i}" + "x" * 1_100_000, "text": "der Hund"}).encode() + b"\n" for i in range(10)
    )


# ---- a line of text ----------------------------------------------------------------------------------------------
TEXTS: Sequence[bytes] = (
    b"", b" ", b"\t", b"\t\t\t\t", b"\0", b"\0" * 5000, b"x" * 2_000_000, b"ein Hund " * 200, b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", b"\xc0\x80", b"a\rb", b"a\x0bb\x0cc\x1cd", "a\u2028b\u2029c\u0085d".encode(), b"\x1b[31m",
    b"\\N", b"NULL",
    "\ufeff".encode(), "\u202eabc".encode(), ("a" + "\u0301" * 3000).encode(), "雨" * 10, b'"ein\tHund"', b"=1+1", b"-",
    "\U0010ffff\U000e0001".encode(), b"ein Hund",
)  # fmt: skip
TEXTS = tuple(text.encode() if isinstance(text, str) else text for text in TEXTS)


def lines_of_texts(rng: Rng) -> bytes:
    end = [b"\n", b"\r\n", b"\r", b"\n\n"][rng.integers(4)]
    return end.join(TEXTS[rng.integers(len(TEXTS))] for _ in range(int(rng.integers(1, 30)))) + (
        b"" if rng.random() < 0.5 else end
    )


def in_another_encoding(rng: Rng) -> bytes:
    text = "id\ten\na\tein Hund läuft\n" if rng.random() < 0.5 else GOOD + "\n"
    return text.encode(["utf-16", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037"][rng.integers(7)])


def very_many_short_lines(rng: Rng) -> bytes:
    return [b"\n", b"a\n", b"{}\n", b"\r\n"][rng.integers(4)] * int(rng.choice([1000, 10_000]))


def noise(rng: Rng) -> bytes:
    return rng.bytes(int(rng.integers(0, 20_000)))


def flipped(rng: Rng) -> bytes:
    content = bytearray((GOOD + "\n").encode() * 5)
    for _ in range(int(rng.integers(1, 8))):
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


def tables(rng: Rng) -> bytes:
    """Headers without columns, with the same twice, with ten thousand; rows that do not fit them."""
    headers = (
        "id\ten",
        "id\ten\ten",
        "\t",
        "",
        "id",
        "text",
        "text\t" * 10_000,
        "\ufeffid\ten",
        "id\tid\ttext",
        "x" * 300_000,
    )
    rows = (
        "a\tein Hund",
        "a\tein Hund\tmore",
        "a",
        "",
        "\t",
        "\t" * 50_000,
        "\x00\t\x00",
        "x" * 200_000 + "\tein Hund",
        "a\t\ud800",
    )
    found = [rows[rng.integers(len(rows))] for _ in range(int(rng.integers(0, 8)))]
    return "\n".join([headers[rng.integers(len(headers))], *found]).encode("utf-8", "surrogatepass")


# ---- gzip --------------------------------------------------------------------------------------------------------
def member(content: bytes, rng: Rng, broken: bool) -> bytes:
    """A gzip member with optional fields; if broken, one of them or the end is wrong."""
    flags = int(rng.choice([0, 1, 2, 4, 8, 16, 31, 255])) if broken else int(rng.choice([0, 8]))
    head = b"\x1f\x8b" + bytes([8 if not broken or rng.random() < 0.9 else 9, flags]) + b"\0" * 6
    if flags & 4:
        head += struct.pack("<H", int(rng.choice([0, 4, 65535]))) + b"abcd"
    if flags & 8:
        head += b"name" + (b"\0" if rng.random() < 0.8 else b"")
    if flags & 16:
        head += b"comment\0"
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF if rng.random() < 0.5 else 1)
    deflate = zlib.compressobj(int(rng.choice([0, 1, 9])), zlib.DEFLATED, -15)
    body = deflate.compress(content) + deflate.flush()
    end = struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
    if broken and rng.random() < 0.5:
        end = number(rng, 4) + end[4:] if rng.random() < 0.5 else end[:4] + number(rng, 4)
    return head + body + end


@cache
def _bomb(unit: bytes, count: int) -> bytes:
    return gzip.compress(unit * count, 9)


def bomb(rng: Rng) -> bytes:
    """A line that never ends, or very many."""
    units = [(b"\0", 300 << 20), (b"x", 30 << 20), (b"[", 20 << 20), (b"\n", 30_000), (b'{"text": "a"}\n', 10_000),
             (b'{"text": "a"}\n', 4_000_000)]  # fmt: skip
    unit, count = units[rng.integers(len(units))]
    inner = _bomb(unit, count)
    return gzip.compress(inner) if rng.random() < 0.2 else inner


def members_of(plain: Sequence[Mutator]) -> Mutator:
    def members(rng: Rng) -> bytes:
        content = plain[rng.integers(len(plain))](rng)
        cut = int(rng.integers(0, len(content) + 1))
        pieces = [member(content[:cut], rng, rng.random() < 0.2), member(content[cut:], rng, rng.random() < 0.4)]
        pieces[1:1] = [member(b"", rng, False)] * int(rng.choice([0, 0, 3000]))
        tail = [b"", b"", b"garbage", b"\0" * 5000, b"\x1f\x8b", b"\x1f\x8b\x08"][rng.integers(6)]
        return b"".join(pieces) + tail

    return members


def zipped(plain: Sequence[Mutator]) -> Mutator:
    def zipped_well(rng: Rng) -> bytes:
        return gzip.compress(plain[rng.integers(len(plain))](rng), 1)

    return zipped_well


def torn(plain: Sequence[Mutator]) -> Mutator:
    def torn_stream(rng: Rng) -> bytes:
        content = bytearray(gzip.compress(plain[rng.integers(len(plain))](rng) + b"ein Hund\n" * 500, 6))
        for _ in range(int(rng.integers(0, 4))):
            content[rng.integers(len(content))] = rng.integers(256)
        return bytes(content[: int(rng.integers(1, len(content) + 1))])

    return torn_stream


PLAIN: dict[str, Sequence[Mutator]] = {
    "jsonl": (lines_of_objects, lines_of_objects, ids_of_a_megabyte, lines_of_texts, in_another_encoding,
    very_many_short_lines,
              flipped, noise),
    "tsv": (tables, tables, lines_of_texts, in_another_encoding, very_many_short_lines, noise),
    "txt": (lines_of_texts, lines_of_texts, lines_of_objects, in_another_encoding, very_many_short_lines, noise),
}  # fmt: skip
SHARDS: dict[str, dict[str, Mutator]] = {
    **{kind: {f"{m.__name__}{i}": m for i, m in enumerate(plain)} for kind, plain in PLAIN.items()},
    **{
        f"{kind}.gz": {m.__name__: m for m in (zipped(plain), members_of(plain), torn(plain), bomb, noise)}
        for kind, plain in PLAIN.items()
    },
}


def json_member(rng: Rng) -> bytes:
    """A `.json` beside a photograph or alone."""
    texts = [
        OBJECTS[rng.integers(len(OBJECTS))](rng).encode("utf-8", "surrogatepass"),
        in_another_encoding(rng),
        noise(rng),
    ]
    return texts[int(rng.choice([0, 0, 0, 1, 2]))]
