"""What several tasks staged of a unit, in fewer files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.reading.units import Unit
from pipelines.staging import contents, joining
from pipelines.staging.joining import Joined, Made, by_file, files, join, pack, small_units, whole_file, write
from pipelines.staging.pieces import Piece, list_pieces, tiling
from pipelines.staging.sink import StageSink
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows
from tests.pipelines.staging.test_sink import stage

UNIT = Unit.of([A, B])


@pytest.fixture
def folder(place: str) -> str:
    """Seven rows of two small shards, two of them bad, in four files."""
    folder = storage.join(place, "staged")
    a, b = UNIT.parts()
    for block in (rows(a, 0, 2, 3), rows(a, 2, 4, 3), rows(b, 0, 1, 2), rows(b, 1, 3, 2, "Z: y")):
        stage(folder, block)
    return folder


def chosen(folder: str) -> list[dict[str, Any]]:
    """The rows that a night would take, in their order."""
    found: list[dict[str, Any]] = []
    for piece in tiling(list_pieces(folder)[UNIT.key]) or []:
        found += pq.read_table(pa.BufferReader(storage.read_bytes(piece.file.uri))).to_pylist()
    return found


def test_the_pieces_of_a_unit_become_one(folder: str) -> None:
    before, whole = chosen(folder), list_pieces(folder)[UNIT.key]
    known = join({UNIT.key}, folder)
    (piece,) = tiling(list_pieces(folder)[UNIT.key]) or []
    assert (piece.first, piece.end, piece.rows) == (0, True, 7)
    assert chosen(folder) == before
    assert known == {(piece.file.name, piece.file.size): contents.total(whole)}
    assert contents.total([piece]).errors == Counter(Z=2)
    assert {*whole} < {*list_pieces(folder)[UNIT.key]}, "nothing is removed"


def test_what_is_made_of_a_piece_of_a_moment_is_of_that_moment(place: str) -> None:
    folder, (a, b) = storage.join(place, "staged"), UNIT.parts()
    for block in (rows(a, 0, 2, 3, "ObjectGone: b"), rows(a, 2, 4, 3), rows(b, 0, 3, 2)):
        stage(folder, block)
    before = chosen(folder)
    (moment,) = {piece.moment for piece in list_pieces(folder)[UNIT.key]} - {0}
    join({UNIT.key}, folder)
    (piece,) = tiling(list_pieces(folder)[UNIT.key]) or []
    assert (piece.moment, piece.rows, chosen(folder)) == (moment, 7, before)
    made = write([pack(folder, [piece])])
    assert [inside.moment for inside in list_pieces(folder)[UNIT.key] if inside.pack] == [moment]
    assert made[0][1].errors == Counter(ObjectGone=2)


def test_pieces_that_are_many_are_left_to_packs(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = storage.list_files(folder)
    monkeypatch.setattr(joining, "LEAST_FILES", len(tiling(list_pieces(folder)[UNIT.key]) or []))
    assert join({UNIT.key}, folder) == {}
    assert storage.list_files(folder) == before
    monkeypatch.setattr(joining, "LEAST_FILES", joining.LEAST_FILES + 1)
    assert len(join({UNIT.key}, folder)) == 1


def test_what_is_one_already_is_left(folder: str) -> None:
    join({UNIT.key}, folder)
    before = storage.list_files(folder)
    assert join({UNIT.key}, folder) == {}
    assert storage.list_files(folder) == before


def test_another_job_joins_in_the_same_second(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote may be committed, and stays as it is."""
    staged = list_pieces(folder)
    monkeypatch.setattr(joining.time, "time", lambda: 1_800_000_000.5)
    join({UNIT.key}, folder)
    (piece,) = tiling(list_pieces(folder)[UNIT.key]) or []
    with storage.open_input(piece.file.uri) as stream:
        table = pq.read_table(stream)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none")
    others = buffer.getvalue().to_pybytes()
    storage.write_bytes(piece.file.uri, others, storage.anything)
    monkeypatch.setattr(joining, "list_pieces", lambda folder: staged)
    ((name, size),) = join({UNIT.key}, folder)
    assert (name, size) == (piece.file.name, len(others))
    assert storage.read_bytes(piece.file.uri) == others


def test_a_small_shard_that_is_alone_is_one_piece_and_a_large_one_some(place: str) -> None:
    small, large = Shard(f"{place}/a.txt", 1000, "1"), Shard(f"{place}/b.txt", 1 << 20, "1")
    parts = [*Unit.of([small]).parts(), *Unit.of([large]).parts(), *UNIT.parts()]
    assert small_units(parts) == {small.key, UNIT.key}
    folder = storage.join(place, "staged")
    for block in (rows(small, 0, 2, 3), rows(small, 2, 4, 3)):
        stage(folder, block)
    join(small_units(parts), folder)
    (piece,) = tiling(list_pieces(folder)[small.key]) or []
    assert piece.rows == 4


def test_other_units_are_left(folder: str) -> None:
    before = storage.list_files(folder)
    assert join(set(), folder) == join({"unit-of-2-0123456789abcdef"}, folder) == {}
    assert storage.list_files(folder) == before


def test_a_unit_that_lacks_something_is_left(folder: str) -> None:
    second = sorted(list_pieces(folder)[UNIT.key], key=lambda piece: piece.first)[1]
    storage.delete(second.file.uri, storage.anything)
    before = storage.list_files(folder)
    assert join({UNIT.key}, folder) == {}
    assert storage.list_files(folder) == before


def test_of_one_that_was_killed_the_pieces_are_used(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had written the first of two."""
    before, size = chosen(folder), max(piece.file.size for piece in list_pieces(folder)[UNIT.key])
    write, room = joining.write_one, iter([True])

    def killed(joined: joining.Joined) -> Any:
        if next(room, False):
            return write(joined)
        raise KeyboardInterrupt

    monkeypatch.setattr(joining, "PIECE_BYTES", 2 * size)
    with monkeypatch.context() as patched:
        patched.setattr(joining, "write_one", killed)
        with pytest.raises(KeyboardInterrupt):
            join({UNIT.key}, folder)
    assert len(tiling(list_pieces(folder)[UNIT.key]) or []) == 3
    assert chosen(folder) == before
    assert len(join({UNIT.key}, folder)) == 1
    assert len(tiling(list_pieces(folder)[UNIT.key]) or []) == 2
    assert chosen(folder) == before


@pytest.mark.parametrize(
    ("name", "reason"), [("gone", "was removed meanwhile: start again"), ("other", "has 1 rows, and its name says")]
)
def test_a_piece_that_is_not_what_was_listed_is_named(
    folder: str, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    pieces = {"listed": list_pieces(folder)}
    first = pieces["listed"][UNIT.key][0].file.uri
    monkeypatch.setattr(joining, "list_pieces", lambda folder: pieces["listed"])
    if name == "gone":
        storage.delete(first, storage.anything)
    else:
        small = next(piece for piece in pieces["listed"][UNIT.key] if piece.rows == 1)
        storage.write_bytes(first, storage.read_bytes(small.file.uri), storage.anything)
    with pytest.raises(RuntimeError, match=f"{first} {reason}"):
        join({UNIT.key}, folder)


def test_large_rows_are_read_few_at_a_time() -> None:
    def batch_rows(size: int, rows: int) -> int:
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"frames": [bytes([row % 256]) * size for row in range(rows)]}), buffer)
        return joining._batch_rows(pq.read_metadata(pa.BufferReader(buffer.getvalue())))

    assert batch_rows(10, 2000) == joining.MOST_ROWS
    assert batch_rows(joining.ROWS_BYTES // 4, 6) in (3, 4)
    assert batch_rows(2 * joining.ROWS_BYTES, 2) == 1


# ---- packs -----------------------------------------------------------------------------------------------------------
def lying(folder: str) -> list[Piece]:
    """What a night of the unit and of a large shard would take."""
    staged = list_pieces(folder)
    return [piece for key in sorted(staged) for piece in tiling(staged[key]) or []]


@pytest.fixture
def packed(folder: str) -> str:
    """The unit's four pieces and two of a large shard in one file, and apart."""
    other = Shard("s3://lake/in/c.tar", 10, "1")
    for block in (rows(other, 0, 2, 4, "X: y"), rows(other, 2, 5, 4)):
        stage(folder, block)
    write([pack(folder, lying(folder))])
    return folder


def read(piece: Piece) -> list[dict[str, Any]]:
    """Its rows, of its file."""
    row = piece.pack.row if piece.pack else 0
    table = pq.read_table(pa.BufferReader(storage.read_bytes(piece.file.uri)))
    return table.slice(row, piece.rows).to_pylist()


def test_a_pack_has_its_pieces_one_after_another(packed: str) -> None:
    """They are what they were, and rather taken than those that lie there by themselves."""
    there = list_pieces(packed)
    apart = {piece.name: piece for own in there.values() for piece in own if piece.pack is None}
    chosen = lying(packed)
    assert {piece.name for piece in chosen} == set(apart)
    assert len({piece.file for piece in chosen}) == 1
    for piece in chosen:
        assert piece.pack is not None
        own = apart[piece.name]
        assert (piece.first, piece.stop, piece.end, piece.rows) == (own.first, own.stop, own.end, own.rows)
        assert read(piece) == read(own)
    (whole,), known = files(chosen, write)
    assert known == {}, "nothing is written"
    assert (whole.rows, whole.file, whole.pack) == (12, chosen[0].file, None)
    assert contents.total([whole]).errors == Counter(Z=2, X=2)


def test_of_a_pack_that_is_not_needed_whole_a_new_one_has_the_rest(packed: str) -> None:
    chosen = lying(packed)
    for without in ([0], [1, 2], [0, 2, 4], [5], [0, 1, 2, 3, 4]):
        needed = [piece for number, piece in enumerate(chosen) if number not in without]
        (file,), known = files(needed, write)
        now = [row for piece in by_file(needed)[0] for row in read(piece)]
        assert read(file) == now
        assert file.name.startswith(f"pack-of-{len(needed)}-")
        assert known == {(file.file.name, file.file.size): contents.total([file])}
        assert file.bad == contents.total([file]).bad == sum(row["status"] == "error" for row in now)
        newest = [piece for own in list_pieces(packed).values() for piece in own if piece.file == file.file]
        assert [piece.name for piece in newest] == [piece.name for piece in by_file(needed)[0]]
        assert {piece.file for piece in lying(packed) if piece.name in {p.name for p in needed}} == {file.file}
        storage.delete(file.file.uri, storage.anything)


def test_what_is_made_of_files_has_their_jails(place: str) -> None:
    folder, parts = storage.join(place, "staged"), UNIT.parts()
    for part, jail in zip(parts, ("off", "seccomp"), strict=True):
        StageSink(folder, SCHEMA, jails=frozenset({jail})).write([rows(part, 0, 2, 2)], None)
    ((_, made),) = write([pack(folder, list_pieces(folder)[UNIT.key])])
    assert made.jails == {"off", "seccomp"}
    (first, _) = sorted((piece for piece in list_pieces(folder)[UNIT.key] if piece.pack), key=lambda piece: piece.first)
    assert write([pack(folder, [first])])[0][1].jails == made.jails, "of a part of a file those of all of it"


def test_packs_and_pieces_become_one_pack(packed: str) -> None:
    """A pack of a pack has its pieces, and not its note."""
    stage(packed, rows(Shard("s3://lake/in/d.tar", 10, "1"), 0, 2, 1))
    before = lying(packed)
    assert len({piece.file for piece in before}) == 2
    ((file, found),) = write([pack(packed, before)])
    after = lying(packed)
    assert [piece.name for piece in after] == [piece.name for piece in before]
    assert {piece.file for piece in after} == {file.file}
    assert [read(piece) for piece in after] == [read(piece) for piece in before]
    assert found == contents.total([file])


def test_many_small_files_are_packed_by_who_is_asked_to(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four files of seven rows; where they are fewer than so many, or become no fewer, they stay."""
    monkeypatch.setattr(joining, "LEAST_FILES", 4)
    pieces = tiling(list_pieces(folder)[UNIT.key]) or []
    before = [row for piece in pieces for row in read(piece)]
    told: list[int] = []

    def write_packs(packs: Sequence[Joined]) -> list[Made]:
        told.append(len(packs))
        return write(packs)

    assert files(pieces, write_packs) == (pieces, {})
    with monkeypatch.context() as patched:
        patched.setattr(joining, "LEAST_FILES", 5)
        assert files(pieces, write_packs, True) == (pieces, {})
        patched.setattr(joining, "LEAST_FILES", 4)
        patched.setattr(joining, "PACK_BYTES", 2 * min(piece.file.size for piece in pieces))
        assert files(pieces, write_packs, True) == (pieces, {}), "large files stay"
        assert told == []
        sizes = sorted(piece.file.size for piece in pieces)
        patched.setattr(joining, "PACK_BYTES", 2 * sizes[-1] + 2)
        halves, known = files(pieces, write_packs, True)
        assert (told, len(halves), len(known)) == ([2], 2, 2)
        assert sum(piece.rows for piece in halves) == 7
    for piece in halves:
        storage.delete(piece.file.uri, storage.anything)
    (whole,), known = files(pieces, write_packs, True)
    assert told == [2, 1]
    assert sorted(read(whole), key=str) == sorted(before, key=str)
    assert known == {(whole.file.name, whole.file.size): contents.total([whole])}
    chosen = lying(folder)
    assert {piece.file for piece in chosen} == {whole.file}
    assert files(chosen, write_packs, True) == ([whole_file(chosen)], {}), "what is a pack is left"


def test_pieces_of_a_pack_are_put_together_like_others(packed: str) -> None:
    """Its unit's, that is: a piece of a unit, which is no pack."""
    before = [row for piece in lying(packed) if piece.name.startswith("unit-") for row in read(piece)]
    for piece in (piece for own in list_pieces(packed).values() for piece in own if piece.pack is None):
        storage.delete(piece.file.uri, storage.anything)
    assert len(join({UNIT.key}, packed)) == 1
    (piece,) = tiling(list_pieces(packed)[UNIT.key]) or []
    assert piece.pack is None
    assert read(piece) == before
    assert b"hybrid.pieces" not in pq.read_metadata(pa.BufferReader(storage.read_bytes(piece.file.uri))).metadata


def test_rows_of_a_unit_stay_in_their_order(folder: str) -> None:
    """The first and third piece of it are in a pack, and nowhere else."""
    before, pieces = chosen(folder), sorted(list_pieces(folder)[UNIT.key], key=lambda piece: piece.first)
    write([pack(folder, pieces[::2])])
    for piece in pieces[::2]:
        storage.delete(piece.file.uri, storage.anything)
    join({UNIT.key}, folder)
    assert chosen(folder) == before


def test_a_long_footer_tells_as_a_short_one_does(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a pack of hundreds is longer than what is asked for at once."""
    staged = list_pieces(folder)[UNIT.key]
    many = [replace(piece, file=piece.file) for piece in staged for _ in range(200)]
    ((file, found),) = write([pack(folder, many)])
    assert file.rows == 200 * 7
    size = pq.read_metadata(pa.BufferReader(storage.read_bytes(file.file.uri))).serialized_size
    assert contents.FOOTER_BYTES < size < 1.4 * sum(len(piece.name) for piece in many), "names stand there once"
    monkeypatch.setattr(contents, "_some_rows", lambda file: pytest.fail("it reads rows"))
    assert contents.total([file]) == found
    assert found.errors == Counter(Z=400)


def test_rows_that_are_not_taken_are_not_held() -> None:
    """Every hundredth of ten thousand: a slice would hold its whole batch."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"frames": [bytes([n % 256]) * 1000 for n in range(10_000)]}), buffer)
    taken = list(joining._rows(buffer.getvalue().to_pybytes(), [(n, n + 1) for n in range(0, 10_000, 100)]))
    frames = [row for table in taken for row in table["frames"].to_pylist()]
    assert frames == [bytes([n % 256]) * 1000 for n in range(0, 10_000, 100)]
    assert sum(table.get_total_buffer_size() for table in taken) < 200_000


@pytest.mark.parametrize("damage", ["cut off", "a page"])
def test_a_damaged_file_is_named(packed: str, damage: str) -> None:
    chosen = lying(packed)
    uri = chosen[0].file.uri
    data = bytearray(storage.read_bytes(uri))
    damaged = data[:-20] if damage == "cut off" else data[:100] + b"\xff" * 400 + data[500:]
    storage.write_bytes(uri, bytes(damaged), storage.anything)
    with pytest.raises(RuntimeError, match=rf"^{uri} is damaged \(.*\): take it away, and infer its night again$"):
        files(chosen[1:], write)
