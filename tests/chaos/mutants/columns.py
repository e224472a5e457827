"""Parquet: odd types and sizes as its writer makes them, and footers and page headers changed field by field.

Both are Thrift structs in the compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md),
taken apart here without knowing their fields, changed, and written again with the right length.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos.mutants.media import jpeg
from tests.chaos.mutants.parts import Rng, extreme

Mutator = Callable[[Rng], bytes]
MAGIC = b"PAR1"

# ---- Thrift ------------------------------------------------------------------------------------------------------
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


@dataclass
class Value:
    """A value of a type: an int, bytes, a list of `Value`s, or a dict of field ids and `Value`s."""

    type: int
    data: Any


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def parse(data: bytes, at: int = 0, kind: int = STRUCT) -> tuple[Value, int]:
    """A value and the position after it."""
    if kind in (TRUE, FALSE):
        return Value(kind, kind == TRUE), at
    if kind == BYTE:
        return Value(kind, data[at]), at + 1
    if kind in (I16, I32, I64):
        value, at = _varint(data, at)
        return Value(kind, (value >> 1) ^ -(value & 1)), at
    if kind == DOUBLE:
        return Value(kind, data[at : at + 8]), at + 8
    if kind == BINARY:
        size, at = _varint(data, at)
        return Value(kind, data[at : at + size]), at + size
    if kind in (LIST, SET):
        size, inner = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = _varint(data, at)
        values = []
        for _ in range(size):
            if inner in (TRUE, FALSE):
                values.append(Value(TRUE if data[at] == 1 else FALSE, data[at] == 1))
                at += 1
            else:
                value, at = parse(data, at, inner)
                values.append(value)
        return Value(kind, values), at
    fields: dict[int, Value] = {}
    last = 0
    while data[at]:
        delta, inner = data[at] >> 4, data[at] & 15
        at += 1
        if delta:
            last += delta
        else:
            number, at = _varint(data, at)
            last = (number >> 1) ^ -(number & 1)
        fields[last], at = parse(data, at, inner)
    return Value(STRUCT, fields), at + 1


def _to_varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _zigzag(value: int) -> bytes:
    return _to_varint(value << 1 if value >= 0 else (-value << 1) - 1)


def build(value: Value) -> bytes:
    """The bytes of a value."""
    if value.type in (TRUE, FALSE):
        return b""
    if value.type == BYTE:
        return bytes([value.data & 255])
    if value.type in (I16, I32, I64):
        return _zigzag(value.data)
    if value.type == DOUBLE:
        return bytes(value.data)
    if value.type == BINARY:
        return _to_varint(len(value.data)) + bytes(value.data)
    if value.type in (LIST, SET):
        inner = value.data[0].type if value.data else BYTE
        head = bytes([15 << 4 | inner]) + _to_varint(len(value.data))
        if inner in (TRUE, FALSE):
            return head + bytes(1 if item.data else 2 for item in value.data)
        return head + b"".join(build(item) for item in value.data)
    out = []
    for number, item in value.data.items():
        kind = (TRUE if item.data else FALSE) if item.type in (TRUE, FALSE) else item.type
        out.append(bytes([kind]) + _zigzag(number) + build(item))
    return b"".join(out) + b"\0"


def everything(value: Value) -> list[Value]:
    """The value and all those inside it."""
    inner = value.data.values() if value.type == STRUCT else value.data if value.type in (LIST, SET) else ()
    return [value, *(found for item in inner for found in everything(item))]


def shake(value: Value, rng: Rng) -> None:
    """Changes one value of a tree."""
    values = everything(value)
    chosen = values[rng.integers(len(values))]
    match chosen.type:
        case 1 | 2:
            chosen.data = not chosen.data
        case 3 | 4 | 5 | 6:
            small = chosen.data + int(rng.integers(-3, 4))
            chosen.data = small if rng.random() < 0.4 else extreme(rng) * int(rng.choice([1, -1]))
        case 8:
            chosen.data = [b"", b"\xff\xfe", b"/etc/passwd", b"x" * 100_000, rng.bytes(8), chosen.data * 2][
                rng.integers(6)
            ]
        case 9 | 10 if chosen.data:
            at = int(rng.integers(len(chosen.data)))
            if rng.random() < 0.5:
                del chosen.data[at]
            else:
                chosen.data[at:at] = [chosen.data[at]] * int(rng.choice([1, 500]))
        case 12 if chosen.data:
            del chosen.data[list(chosen.data)[rng.integers(len(chosen.data))]]


# ---- good files --------------------------------------------------------------------------------------------------
@cache
def bases() -> Sequence[bytes]:
    """Files of different encodings, codecs and versions."""
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(8)],
            "text": ["ein Hund", None, "die Katze", "ein Hund"] * 2,
            "image": [jpeg(i) for i in range(4)] * 2,
            "n": pa.array(range(8), pa.int32()),
            "tree": [{"a": [i, None], "b": "x"} for i in range(8)],
        }
    )
    options: Sequence[dict[str, Any]] = (
        {"compression": "none", "use_dictionary": False}, {"compression": "zstd"},
        {"compression": "snappy", "row_group_size": 3},
        {"compression": "gzip", "data_page_version": "2.0"},
        {"compression": "none", "data_page_size": 64, "write_page_index": True},
        {"use_dictionary": False,
        "column_encoding": {"n": "DELTA_BINARY_PACKED", "id": "DELTA_BYTE_ARRAY", "text": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"compression": "brotli", "write_page_checksum": True}, {"compression": "lz4", "store_schema": False},
    )  # fmt: skip
    return [written(table, **given) for given in options]


def written(table: pa.Table, **options: Any) -> bytes:
    """A table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def footer(content: bytes) -> Value:
    """The metadata of a file."""
    (size,) = struct.unpack_from("<I", content, len(content) - 8)
    return parse(content[-8 - size : -8])[0]


def with_footer(content: bytes, metadata: Value) -> bytes:
    """The file with other metadata, their length right."""
    (size,) = struct.unpack_from("<I", content, len(content) - 8)
    new = build(metadata)
    return content[: -8 - size] + new + struct.pack("<I", len(new)) + MAGIC


def _base(rng: Rng) -> bytes:
    return bases()[rng.integers(len(bases()))]


# ---- footers and pages -------------------------------------------------------------------------------------------
def footer_shaken(rng: Rng) -> bytes:
    content = _base(rng)
    metadata = footer(content)
    for _ in range(int(rng.integers(1, 4))):
        shake(metadata, rng)
    return with_footer(content, metadata)


SCHEMA, ROWS, GROUPS = 2, 3, 4
COLUMNS, GROUP_ROWS = 1, 3
FILE_PATH, FILE_OFFSET, CHUNK = 1, 2, 3


def _columns(metadata: Value) -> list[Value]:
    return [column for group in metadata.data[GROUPS].data for column in group.data[COLUMNS].data]


def external_file(rng: Rng) -> bytes:
    """Column chunks that are said to lie in another file."""
    content = _base(rng)
    metadata = footer(content)
    path = [b"/etc/passwd", b"/proc/self/environ", b"http://127.0.0.1:9/x.parquet", b"../x.parquet", b""][
        rng.integers(5)
    ]
    for column in _columns(metadata):
        if rng.random() < 0.7:
            column.data = {FILE_PATH: Value(BINARY, path), **column.data}
    return with_footer(content, metadata)


def columns_elsewhere(rng: Rng) -> bytes:
    """Offsets and sizes of column chunks, of which field numbers 5 to 7 and 9 to 11 are numbers of bytes and values."""
    content = _base(rng)
    metadata = footer(content)
    columns = _columns(metadata)
    for _ in range(int(rng.integers(1, 4))):
        chunk = columns[rng.integers(len(columns))].data[CHUNK].data
        number = [field for field in (5, 6, 7, 9, 10, 11) if field in chunk]
        one = chunk[number[rng.integers(len(number))]]
        near = one.data + int(rng.integers(-40, 41))
        one.data = [near, extreme(rng), -extreme(rng), len(content), 4][rng.integers(5)]
    return with_footer(content, metadata)


def rows_that_are_not_there(rng: Rng) -> bytes:
    content = _base(rng)
    metadata = footer(content)
    count = int(rng.choice([0, -1, 10**6, 10**9, 10**12, (1 << 63) - 1]))
    if rng.random() < 0.7:
        metadata.data[ROWS].data = count
    for group in metadata.data[GROUPS].data:
        if rng.random() < 0.7:
            group.data[GROUP_ROWS].data = count
        if rng.random() < 0.5:
            for column in group.data[COLUMNS].data:
                column.data[CHUNK].data[5].data = count
    return with_footer(content, metadata)


def schema_of_another_type(rng: Rng) -> bytes:
    """Elements of the schema of another type (1), length (2), repetition (3), count of children (5) or meaning (6)."""
    content = _base(rng)
    metadata = footer(content)
    for _ in range(int(rng.integers(1, 3))):
        element = metadata.data[SCHEMA].data[rng.integers(len(metadata.data[SCHEMA].data))]
        kind = Value(I32, int(rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 21, 99, -1, 1 << 30])))
        element.data = dict(sorted({**element.data, int(rng.choice([1, 2, 3, 5, 6])): kind}.items()))
    return with_footer(content, metadata)


def schema_in_schema(rng: Rng) -> bytes:
    """Groups in groups, as deep as a stack, or wide as memory."""
    content = bases()[0]
    metadata = footer(content)
    elements = metadata.data[SCHEMA].data
    group = Value(STRUCT, {3: Value(I32, 0), 4: Value(BINARY, b"g"), 5: Value(I32, 1)})
    elements[1:1] = [group] * int(rng.choice([10, 1000, 50_000]))
    if rng.random() < 0.3:
        elements[0].data[5].data = 1
    return with_footer(content, metadata)


def pages_shaken(rng: Rng) -> bytes:
    """A page's header is changed, or its bytes; all offsets after it are right again."""
    content = bases()[int(rng.choice([0, 1, 2, 3, 5]))]
    metadata = footer(content)
    columns = _columns(metadata)
    chunk = columns[rng.integers(len(columns))].data[CHUNK].data
    start = min(chunk[field].data for field in (9, 11) if field in chunk)
    header, end = parse(content, start)
    changed = content[start:end]
    if rng.random() < 0.75:
        shake(header, rng)
        changed = build(header)
    else:
        at = end + int(rng.integers(0, max(1, chunk[7].data - (end - start))))
        content = content[:at] + rng.bytes(4) + content[at + 4 :]
    grown = len(changed) - (end - start)
    content = content[:start] + changed + content[end:]
    chunk[7].data += grown
    for column in columns:
        for number in (9, 10, 11):
            one = column.data[CHUNK].data.get(number)
            if one is not None and one.data > start:
                one.data += grown
    return with_footer(content, metadata)


def dictionaries_broken(rng: Rng) -> bytes:
    """A dictionary that is missing, is the data, or is smaller than what points into it."""
    content = bases()[int(rng.choice([1, 2, 4]))]
    metadata = footer(content)
    for column in _columns(metadata):
        chunk = column.data[CHUNK].data
        if 11 in chunk and rng.random() < 0.6:
            match int(rng.integers(4)):
                case 0:
                    del chunk[11]
                case 1:
                    chunk[11].data = chunk[9].data
                case 2:
                    chunk[9].data = chunk[11].data
                case _:
                    chunk[11].data = 4
    return with_footer(content, metadata)


def arrow_schema_broken(rng: Rng) -> bytes:
    """The writer's own schema, which readers follow, is another one or noise."""
    content = bases()[0]
    metadata = footer(content)
    other = written(pa.table({"id": pa.array([1.5]), "n": pa.array([1], pa.timestamp("ns", "Nowhere/Else"))}))
    for pair in metadata.data[5].data:
        if pair.data[1].data == b"ARROW:schema":
            noise = bytearray(pair.data[2].data)
            noise[rng.integers(len(noise))] = rng.integers(256)
            pair.data[2].data = [
                b"", b"not base64", bytes(noise), rng.bytes(300), footer(other).data[5].data[0].data[2].data,
            ][rng.integers(5)]  # fmt: skip
    return with_footer(content, metadata)


def ends(rng: Rng) -> bytes:
    content = _base(rng)
    size = int(rng.choice([0, 1, 100, len(content), 1 << 31, (1 << 32) - 1]))
    return [
        content[: int(rng.integers(0, len(content)))], content[:-8] + struct.pack("<I", size) + MAGIC,
        content[:-4] + b"PARE",
        MAGIC + MAGIC, content + content, b"\0" * 100 + content, content[8:], MAGIC + b"\0" * 8 + MAGIC,
        b"PARE" + content[4:-4] + b"PARE",
    ][rng.integers(9)]  # fmt: skip


def flipped(rng: Rng) -> bytes:
    content = bytearray(_base(rng))
    for _ in range(int(rng.integers(1, 6))):
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


# ---- odd tables --------------------------------------------------------------------------------------------------
def raw_strings(values: Sequence[bytes]) -> pa.Array:
    """Strings that no one checked to be UTF-8."""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    )


def _nested(depth: int) -> pa.Array:
    kind: pa.DataType = pa.int8()
    array = pa.array([1, 2], kind)
    for _ in range(depth):
        array = pa.StructArray.from_arrays([array], ["a"])
    return array


def _far(kind: pa.DataType, value: int) -> pa.Array:
    wide = pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.array([value, 0], wide).view(kind)


FAR = 1 << 62
ODD: Sequence[Callable[[], pa.Array]] = (
    lambda: _far(pa.date32(), 3_000_000), lambda: _far(pa.date32(), -(1 << 31)),
    lambda: _far(pa.timestamp("s"), FAR // 1000),
    lambda: _far(pa.timestamp("s"), 1 << 40), lambda: _far(pa.timestamp("us"), FAR),
    lambda: _far(pa.timestamp("ms"), -FAR),
    lambda: _far(pa.timestamp("us", "Nowhere/Else"), 5), lambda: _far(pa.timestamp("ns"), 1),
    lambda: _far(pa.timestamp("us", "+25:00"), 5),
    lambda: _far(pa.time64("us"), FAR), lambda: _far(pa.time32("ms"), -5), lambda: _far(pa.duration("s"), FAR),
    lambda: raw_strings([b"\xff\xfe", b"\xed\xa0\x80"]),
    lambda: pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"]),
    lambda: pa.StructArray.from_arrays([pa.array([b"x", b"y"]), pa.array(["p", "q"])], ["bytes", "path"]),
    lambda: pa.StructArray.from_arrays([pa.array(["x", "y"])], ["bytes"]), lambda: _nested(60), lambda: _nested(300),
    lambda: pa.array([[("k", 1), ("k", 2)], None], pa.map_(pa.string(), pa.int32())),
    lambda: pa.array([[b"a"], [b"b"]]),
    lambda: pa.array([b"abcd", b"efgh"], pa.binary(4)), lambda: pa.nulls(2),
    lambda: pa.array([1 << 63, 5], pa.uint64()),
    lambda: pa.array(np.array([np.nan, 1], np.float16)), lambda: pa.array(["a", "b"], pa.large_string()),
    lambda: pa.array(["a", None]).dictionary_encode(), lambda: pa.array([b"a", b"b"]).dictionary_encode(),
    lambda: pa.array([[1.0] * 8, [2.0] * 8], pa.list_(pa.float32(), 8)), lambda: pa.array([np.nan, np.inf]),
    lambda: pa.array([10**37, -1], pa.decimal128(38, 0)), lambda: pa.nulls(2, pa.decimal256(76, 75)),
    lambda: pa.array(["x" * 3_000_000, "y"]), lambda: pa.array([b"\xff\xd8\xff" * 1_000_000, b""]),
    lambda: pa.array([jpeg(0), None]), lambda: pa.array([True, None]), lambda: pa.array([{"text": "a"}, None]),
)  # fmt: skip
NAMES = (
    "text",
    "en",
    "id",
    "key",
    "sample_id",
    "image",
    "",
    "a.b",
    "shard",
    "last",
    "\x00",
    "ä" * 300,
    "bytes",
    "step_minutes",
)


def odd_types(rng: Rng) -> bytes:
    """Two rows of columns of odd types, under names that mean something, now and then beside a good text."""
    count = int(rng.integers(1, 4))
    arrays = [ODD[rng.integers(len(ODD))]() for _ in range(count)]
    names = [NAMES[rng.integers(len(NAMES))] for _ in range(count)]
    if rng.random() < 0.5:
        arrays, names = [*arrays, pa.array(["ein Hund", "eine Katze"])], [*names, "text"]
    return written(pa.Table.from_arrays(arrays, names), store_schema=bool(rng.random() < 0.7))


def odd_shapes(rng: Rng) -> bytes:
    """No rows, no columns, very many of them, many groups of rows, rows that weigh nothing when written."""
    words = pa.array(["ein Hund"] * int(rng.choice([3000, 50_000]))).dictionary_encode()
    tables: Sequence[Callable[[], bytes]] = (
        lambda: written(pa.table({"text": pa.array([], pa.string())})),
        lambda: written(pa.table({f"c{i}": [i] for i in range(3000)})),
        lambda: written(pa.table({f"c{i}": [i] for i in range(20_000)})),
        lambda: written(pa.table({"text": pa.nulls(5_000_000, pa.string())}), row_group_size=5_000_000),
        lambda: written(pa.table({"text": ["ein Hund"] * 400}), row_group_size=1),
        lambda: written(pa.table({"text": words})),
        lambda: written(pa.table({"text": pa.nulls(len(words), pa.string())})),
        lambda: written(pa.table({"text": ["a"] * 2, "image": [b"\0" * 20_000_000] * 2}), compression="zstd"),
        lambda: written(pa.table({"text": ["a"] * 300, "image": [b"\0" * 1_000_000] * 300}), compression="zstd"),
        lambda: written(pa.table({"words": [["w"] * 500_000] * 3, "text": ["a"] * 3})),
    )
    return tables[rng.integers(len(tables))]()


SHARDS: dict[str, dict[str, Mutator]] = {
    "parquet": {
        mutator.__name__: mutator
        for mutator in (
            footer_shaken, external_file, columns_elsewhere, rows_that_are_not_there, schema_of_another_type,
            schema_in_schema,
            pages_shaken, dictionaries_broken, arrow_schema_broken, ends, flipped, odd_types, odd_shapes,
        )
    }
}  # fmt: skip
