import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models import HYBRIDS
from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.reading.units import Part, Unit, placed
from pipelines.staging.pieces import (
    PACK,
    PACKED,
    PASSING,
    TIMINGS,
    Piece,
    Within,
    is_own,
    lasting,
    list_pieces,
    names_in,
    pack_name,
    piece_name,
    renewed_name,
    table_schema,
    tiling,
    whole_packs_first,
)
from pipelines.storage import FileInfo

SCHEMA = table_schema(pa.schema([pa.field("caption", pa.string())]))
A, B = Shard("s3://lake/in/a.tar", 10, "1"), Shard("s3://lake/in/b b.tar", 10, "1")


def piece(first: int, stop: int, end: bool = False) -> Piece:
    return Piece(FileInfo(f"x-{first}-{stop}", 1, ""), first, stop, end)


def intervals(pieces: list[Piece] | None) -> list[tuple[int, int]] | None:
    return None if pieces is None else [(p.first, p.stop) for p in pieces]


def test_tiling_needs_every_row_up_to_the_end() -> None:
    assert intervals(tiling([piece(0, 5), piece(5, 9, end=True)])) == [(0, 5), (5, 9)]
    assert tiling([piece(0, 5), piece(6, 9, end=True)]) is None
    assert tiling([piece(0, 5), piece(5, 9)]) is None
    assert tiling([piece(1, 5, end=True)]) is None
    assert tiling([]) is None


def test_tiling_chooses_among_overlapping_pieces() -> None:
    pieces = [piece(0, 5), piece(0, 3), piece(3, 7), piece(4, 9, end=True), piece(7, 9, end=True)]
    assert intervals(tiling(pieces)) == [(0, 3), (3, 7), (7, 9)]
    assert tiling([piece(0, 5), piece(3, 7), piece(6, 9, end=True)]) is None


def test_pieces_of_a_moment_are_taken_where_there_are_no_others_and_then_the_newest(tmp_path: Path) -> None:
    def of(moment: int, first: int, stop: int, end: bool = False) -> Piece:
        return replace(piece(first, stop, end), moment=moment)

    old, new = [of(5, 0, 9, True)], [of(0, 0, 4), of(7, 4, 9, True)]
    assert tiling(old) == old
    assert tiling([*old, *new]) == new, "not the longer one"
    assert tiling([*old, *new, of(0, 4, 9, True)]) == [of(0, 0, 4), of(0, 4, 9, True)]
    assert tiling([of(5, 0, 4), of(6, 4, 9)]) is None
    name = renewed_name(piece_name(A.key, 0, 9, 9, True, 1_700_000_000), 1_700_000_099)
    assert name == f"{A.key}-00000000-00000009-end-m1700000000-r1700000099.parquet"
    (tmp_path / name).write_bytes(b"")
    (found,) = list_pieces(str(tmp_path))[A.key]
    assert (found.moment, found.renewed, found.end, found.rows) == (1_700_000_000, 1_700_000_099, True, 9)
    assert lasting([found, *new]) == new[:1]
    assert is_own(f"ds=2026-01-01/0123456789ab/{name}")


def test_a_name_tells_rows_where_places_are_left_out(tmp_path: Path) -> None:
    """After a small shard; and names of an earlier version, which had no such places, are read as before."""
    key, span = Unit.of([A, B]).key, 1 << 32
    first, middle, last, copy = (
        f"{key}-00000000-00000007.parquet",
        f"{key}-00000007-4294967298-n5.parquet",
        f"{key}-4294967298-4294967300-end.parquet",
        f"{key}-00000007-4294967298-n5-r1700000000.parquet",
    )
    names = {
        piece_name(key, 0, 7, 7, end=False): (0, 7, 7, False),
        piece_name(key, 7, span + 2, 5, end=False): (7, span + 2, 5, False),
        piece_name(key, span + 2, span + 4, 2, end=True): (span + 2, span + 4, 2, True),
        renewed_name(middle, 1700000000): (7, span + 2, 5, False),
    }
    assert list(names) == [first, middle, last, copy]
    old = f"{A.key}-00000000-00000009-end.parquet"
    for name in (*names, old):
        storage.write_bytes(str(tmp_path / name), b"")
        assert is_own(f"{PLACE}/{name}")
    found = list_pieces(str(tmp_path))
    assert set(found) == {key, A.key}
    assert {p.file.name: (p.first, p.stop, p.rows, p.end) for p in found[key]} == names
    (before,) = found[A.key]
    assert (before.first, before.stop, before.rows, before.end) == (0, 9, 9, True)
    assert [p.file.name for p in tiling(found[key]) or []] == [first, copy, last]


def rows(shard: Shard | Part, first: int, stop: int, last: int, error: str | None = None) -> pa.Table:
    """Rows as the model's actor emits them, of a shard that is a unit of its own, or of a part."""
    part = shard if isinstance(shard, Part) else Part(shard, shard.key)
    table = [
        {
            "sample_id": f"{part.shard.uri}#{i}",
            "caption": None if error else f"caption {i}",
            "status": "error" if error else "ok",
            "error": error,
            "shard": part.shard.uri,
            "index": i,
            "last": i == last,
            "decode_seconds": 0.25,
            "predict_seconds": 0.5,
        }
        for i in range(first, stop)
    ]
    timings = [pa.field(name, pa.float32()) for name in TIMINGS]
    return placed(pa.Table.from_pylist(table, schema=pa.schema([*SCHEMA, *timings])), part)


PLACE = "ds=2026-01-31/0123456789ab"


def test_no_hybrid_has_a_column_of_every_table() -> None:
    for hybrid in HYBRIDS.values():
        names = [field.name for field in (*table_schema(hybrid.payload_schema), *PASSING)]
        assert len(set(names)) == len(names), hybrid.name


def test_what_is_our_own_is_told_by_place_and_name() -> None:
    name = f"{B.key}-00000000-00000002-end.parquet"
    assert is_own(f"{PLACE}/{name}")
    assert is_own(f"{PLACE}/{A.key}-00000000-00000002.parquet")
    assert is_own(f"{PLACE}/.{name}.0a1b2c3d"), "a put that was cut short"


@pytest.mark.parametrize(
    "path",
    [
        f"{A.key}-00000000-00000002.parquet",
        f"ds=2026-01-31/{A.key}-00000000-00000002.parquet",
        f"ds=2026-01-31/more/{A.key}-00000000-00000002.parquet",
        f"ds=today/0123456789ab/{A.key}-00000000-00000002.parquet",
        f"{PLACE}/deeper/{A.key}-00000000-00000002.parquet",
        f"{PLACE}/{A.key}-00000000-00000002.parquet.bak",
        f"{PLACE}/part-00000-0123456789abcdef.c000.snappy.parquet",
        f"{PLACE}/photos.tar",
        f"{PLACE}/",
        "ds=2026-01-31/part-00000.txt",
        "",
    ],
)
def test_everything_else_is_not(path: str) -> None:
    assert not is_own(path)


# ---- packs -----------------------------------------------------------------------------------------------------------
NAMES = [f"{A.key}-00000000-00000002.parquet", f"{B.key}-00000000-00000003-end.parquet"]


def put_pack(folder: Path, note: object, rows: int, name: str | None = None) -> str:
    """A file by the name of a pack; its own name."""
    name = name or renewed_name(pack_name(NAMES, 5), 1700000000)
    table = pa.table({"index": range(rows)})
    if note is not None:
        table = table.replace_schema_metadata({PACKED: json.dumps(note)})
    pq.write_table(table, folder / name)
    return name


def test_the_pieces_of_a_pack_are_those_of_its_footer(tmp_path: Path) -> None:
    name = put_pack(tmp_path, NAMES, 5)
    assert is_own(f"{PLACE}/{name}")
    found = list_pieces(str(tmp_path))
    assert set(found) == {A.key, B.key}
    (a,), (b,) = found[A.key], found[B.key]
    assert [p.name for p in (a, b)] == NAMES
    assert {p.file.name for p in (a, b)} == {name}
    assert (a.first, a.stop, a.end, a.rows, a.pack) == (0, 2, False, 2, Within(NAMES[0], 0, 5, 1700000000))
    assert (b.first, b.stop, b.end, b.rows, b.pack) == (0, 3, True, 3, Within(NAMES[1], 2, 5, 1700000000))
    assert names_in(a.file) == tuple(NAMES)


@pytest.mark.parametrize("note", [None, ["a.parquet"], [1], {}, "x", NAMES[:1], [*NAMES, NAMES[0]], [NAMES[0]] * 2])
def test_a_file_that_does_not_tell_whose_rows_it_has_is_none_of_theirs(note: object, tmp_path: Path) -> None:
    """Its rows are computed anew, then: nothing is believed of it."""
    name = put_pack(tmp_path, note, 5)
    (own,) = list_pieces(str(tmp_path))
    assert own == name.split("-00000000-")[0], "the piece of a unit that no night has"


def test_a_stranger_s_names_and_notes_end_no_listing(tmp_path: Path) -> None:
    deep = put_pack(tmp_path, None, 5)
    table = pa.table({"index": range(5)}).replace_schema_metadata({PACKED: "[" * 100_000})
    pq.write_table(table, tmp_path / deep)
    (tmp_path / f"pack-of-1-0123456789abcdef-0-{'9' * 60}-end.parquet").write_bytes(b"PAR1")
    assert [p.name for own in list_pieces(str(tmp_path)).values() for p in own] == [deep]


def test_packs_with_no_other_rows_come_first() -> None:
    """The largest of them, and of equal ones the newest; pieces of others stay where they are."""

    def own(file: str, second: int, *names: str) -> list[Piece]:
        info = FileInfo(file, 1, "")
        return [
            replace(piece(0, 1), file=info, pack=Within(name, row, len(names), second))
            for row, name in enumerate(names)
        ]

    alone = [replace(piece(0, 1), file=FileInfo(name, 1, "")) for name in "abcde"]
    packs = [
        own("more", 9, "a", "b", "c", "x"), own("old", 1, "a", "b", "c"), own("small", 8, "a", "d"), own("new", 3, "d"),
        own("older", 2, "d"),
    ]  # fmt: skip
    staged = {"unit": [*alone, *(one for each in packs for one in each)]}
    partly = [packs[0][0], *alone[1:]]
    found = whole_packs_first(partly, staged)
    assert [(p.name, p.file.name) for p in found] == [
        ("a", "old"), ("b", "old"), ("c", "old"), ("d", "new"), ("e", "e"),
    ]  # fmt: skip
    whole = [*packs[2], *packs[3][:0], *alone[1:3]]
    assert whole_packs_first(whole, staged) == whole, "what is whole stays"


def test_a_pack_that_is_cut_off_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = put_pack(tmp_path, NAMES, 5)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    assert [p.name for own in list_pieces(str(tmp_path)).values() for p in own] == [name]
    assert f"{tmp_path}/{name} is damaged, and is left alone: " in caplog.text


def test_a_shard_may_be_called_like_a_pack(tmp_path: Path) -> None:
    shard = Shard("s3://lake/in/pack-of-2.tar", 10, "1")
    name = piece_name(shard.key, 0, 5, 5, end=True)
    assert not PACK.fullmatch(name), "its suffix stands between"
    put_pack(tmp_path, NAMES, 5, name)
    (piece_,) = list_pieces(str(tmp_path))[shard.key]
    assert (piece_.rows, piece_.pack) == (5, None)
