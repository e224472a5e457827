"""Whether what is staged is complete, and good enough."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.reading.units import SPAN, Part, Unit, units
from pipelines.staging import joining
from pipelines.staging.checks import RefusedError, check_errors, incomplete, reused, verify
from pipelines.staging.sink import StageSink
from tests.pipelines.staging.test_pieces import SCHEMA, A, rows

SHARDS = [Shard("s3://lake/a.tar", 1, "1"), Shard("s3://lake/b.tar", 1, "1"), Shard("s3://lake/c.tar", 1, "1")]


def put(folder: Path, shard: Shard, interval: str) -> None:
    storage.write_bytes(str(folder / f"{shard.key}-{interval}.parquet"), b"")


def alone(shard: Shard, first: int = 0) -> Part:
    """A unit of its own."""
    return Part(replace(shard, first=first), shard.key)


def test_complete_is_what_lies_there_from_the_first_row_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.reading.units.UNIT_BYTES", 0)
    a, b, c = SHARDS
    assert incomplete(SHARDS, str(tmp_path)) == [alone(shard) for shard in SHARDS]
    put(tmp_path, a, "00000000-00000005")
    put(tmp_path, a, "00000005-00000007-end")
    put(tmp_path, b, "00000000-00000005")
    put(tmp_path, Shard(c.uri, 1, "another state"), "00000000-00000005-end")
    put(tmp_path, b, "00000005-00000008")
    put(tmp_path, b, "00000009-00000012-end")
    assert incomplete(SHARDS, str(tmp_path)) == [alone(b, 8), alone(c)], "from the first row that is missing on"
    with pytest.raises(RuntimeError, match=r"^s3://lake/b\.tar is incomplete in .*: start the job again"):
        verify([a, b], str(tmp_path))
    put(tmp_path, a, "00000000-00000004")  # of a retried task: no part of the night
    assert [(piece.first, piece.stop) for piece in verify([a], str(tmp_path))] == [(0, 5), (5, 7)]


@pytest.mark.parametrize("packed", [False, True], ids=["piece", "pack"])
def test_what_failed_for_a_moment_is_computed_again_when_that_is_over(place: str, packed: bool) -> None:
    folder, away, kind = storage.join(place, "staged"), storage.join(place, "in/b.jpg"), "ObjectGone"
    part = alone(A, 0)
    stage = StageSink(folder, SCHEMA)
    stage.write([rows(part, 0, 2, 3)], None)
    passing = rows(part, 2, 4, 3, f"{kind}: {away} was removed")
    column = passing.schema.get_field_index("object")
    stage.write([passing.set_column(column, "object", pa.array([away] * 2))], None)
    if packed:
        joining.write([joining.pack(folder, verify([A], folder))])
        assert all(piece.pack for piece in verify([A], folder))
    assert [piece.rows for piece in verify([A], folder)] == [2, 2]
    assert incomplete([A], folder) == [], "it is still so"
    assert [piece.rows for piece in reused([A], folder, [])] == [2, 2]
    storage.write_bytes(away, b"back")
    (again,) = incomplete([A], folder)
    (moment,) = {piece.moment for piece in verify([A], folder) if piece.moment}
    assert again == replace(alone(A, 2), since=moment + 1)
    assert incomplete([A], folder, once=True) == [], "for whoever has to find what there was"
    assert [piece.rows for piece in reused([A], folder, [again])] == [2]
    stage.write([rows(part, 2, 4, 3)], None)
    assert incomplete([A], folder) == []
    assert [piece.moment for piece in verify([A], folder)] == [0, 0]


def test_a_unit_that_is_unfinished_goes_on_before_what_failed_for_a_moment(tmp_path: Path) -> None:
    """Where eight were refused one after the other, a night stops: with the right keys they are read anew."""
    stage = StageSink(str(tmp_path), SCHEMA)
    stage.write([rows(A, 0, 2, 9)], None)
    stage.write([rows(A, 2, 4, 9, "ObjectForbidden: told")], None)
    (again,) = incomplete([A], str(tmp_path))
    assert again == replace(alone(A, 2), since=again.since)
    assert [piece.rows for piece in reused([A], str(tmp_path), [again])] == [2]
    assert incomplete([A], str(tmp_path), once=True) == [replace(alone(A, 4), since=again.since)]


def test_a_clock_that_was_ahead_hides_nothing_that_came_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, now, there = str(tmp_path / "staged"), int(time.time()), str(tmp_path / "readable.jpg")
    storage.write_bytes(there, b"again")
    for ahead, kept in ((86_400, 0), (0, 2), (0, 3)):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: now + ahead)
        since = max((part.since for part in incomplete([A], folder)), default=0)
        refused = rows(alone(A, 0), kept, 4, 3, "ObjectForbidden: told")
        column = refused.schema.get_field_index("object")
        refused = refused.set_column(column, "object", pa.array([there] * (4 - kept)))
        blocks = [rows(alone(A, 0), 0, kept, 3), refused] if kept else [refused]
        StageSink(folder, SCHEMA, since=since).write(blocks, None)
        failed = [
            error for piece in verify([A], folder) for error in pq.read_table(piece.file.uri)["error"].to_pylist()
        ]
        assert [error is None for error in failed] == [True] * kept + [False] * (4 - kept)


def test_a_unit_is_complete_when_all_its_shards_are(tmp_path: Path) -> None:
    unit = Unit.of(SHARDS)
    assert incomplete(SHARDS, str(tmp_path)) == unit.parts()
    name = storage.join(str(tmp_path), unit.key)
    storage.write_bytes(f"{name}-00000000-{SPAN + 3}-n8.parquet", b"")
    storage.write_bytes(f"{name}-{2 * SPAN}-{2 * SPAN + 4}-end.parquet", b"")
    assert incomplete(SHARDS, str(tmp_path)) == unit.parts(SPAN + 3), "from the second shard's fourth row on"
    with pytest.raises(RuntimeError, match=r"^s3://lake/b\.tar is incomplete in .*: start the job again"):
        verify(SHARDS, str(tmp_path))
    storage.write_bytes(f"{name}-{SPAN + 3}-{2 * SPAN}-n2.parquet", b"")
    assert incomplete(SHARDS, str(tmp_path)) == []
    assert [(piece.first, piece.rows) for piece in verify(SHARDS, str(tmp_path))] == [
        (0, 8), (SPAN + 3, 2), (2 * SPAN, 4),
    ]  # fmt: skip
    put(tmp_path, SHARDS[0], "00000000-00000005-end")
    assert {piece.rows for piece in verify(SHARDS, str(tmp_path))} == {8, 2, 4}, "a unit that is whole stays whole"
    changed = [replace(SHARDS[0], etag="2"), *SHARDS[1:]]
    assert incomplete(changed, str(tmp_path)) == Unit.of(changed).parts()


def test_small_shards_that_were_staged_each_for_itself_stay_as_they_are(tmp_path: Path) -> None:
    """And what comes late to them is a unit without them."""
    a, b, c = SHARDS
    late = Shard("s3://lake/d.tar", 1, "1")
    put(tmp_path, a, "00000000-00000005")
    put(tmp_path, b, "00000000-00000005-end")
    assert incomplete(SHARDS, str(tmp_path)) == Unit.of([a, c]).parts()
    put(tmp_path, a, "00000005-00000007-end")
    assert incomplete(SHARDS, str(tmp_path)) == [alone(c)]
    put(tmp_path, c, "00000000-00000001-end")
    assert incomplete(SHARDS, str(tmp_path)) == []
    assert [piece.rows for piece in verify(SHARDS, str(tmp_path))] == [5, 2, 5, 1]
    assert incomplete([*SHARDS, late], str(tmp_path)) == [alone(late)]


COUNTS = (3, 1, 7, 2, 5)
"""Rows of the shards of a unit."""


def rows_of(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """Their rows from the first that is needed on."""
    return [(part, index) for part in parts for index in range(part.shard.first, COUNTS[part.base // SPAN])]


def write(folder: str, found: Sequence[tuple[Part, int]]) -> None:
    """Stages these rows, whose order does not matter."""
    blocks = [rows(part, index, index + 1, COUNTS[part.base // SPAN] - 1) for part, index in found]
    StageSink(folder, SCHEMA).write(blocks, None)


@pytest.mark.parametrize("seed", range(25))
def test_a_night_that_was_cut_off_anywhere_goes_on_to_have_each_row_once(tmp_path: Path, seed: int) -> None:
    """Tasks are cut anyhow, write in any order, and their rows again when they are tried again."""
    draw, folder = random.Random(seed), str(tmp_path)
    shards = [Shard(f"s3://lake/{number}.txt", 100, "1") for number in range(len(COUNTS))]
    (unit,) = units(shards)
    every = rows_of(unit.parts())
    for _ in range(draw.randrange(8)):
        first, stop = sorted(draw.sample(range(len(every) + 1), 2))
        write(folder, draw.sample(every[first:stop], stop - first))
    rest = rows_of(incomplete(shards, folder))
    assert [(part.unit, part.base, index) for part, index in rest] == [
        (part.unit, part.base, index) for part, index in every[len(every) - len(rest) :]
    ], "from some row on, all of them"
    cuts = sorted(draw.sample(range(1, len(rest)), min(3, len(rest) - 1))) if rest else []
    blocks = list(pairwise([0, *cuts, len(rest)])) if rest else []
    for first, stop in draw.sample(blocks, len(blocks)):
        write(folder, rest[first:stop])
    assert incomplete(shards, folder) == []
    pieces = verify(shards, folder)
    tables = [pq.read_table(piece.file.uri) for piece in pieces]
    assert [piece.rows for piece in pieces] == [len(table) for table in tables]
    found = pa.concat_tables(tables).to_pylist()
    assert [(row["shard"], row["index"]) for row in found] == [(part.shard.uri, index) for part, index in every]
    assert [row["last"] for row in found] == [index == COUNTS[part.base // SPAN] - 1 for part, index in every]


def test_the_share_of_bad_samples_is_bounded() -> None:
    errors = Counter({"ImageDecodeError": 3, "EmptyText": 2})
    check_errors(errors, 100, 0.05)
    check_errors(Counter(), 0, 0.0)
    with pytest.raises(RefusedError) as caught:
        check_errors(errors, 99, 0.05)
    assert str(caught.value) == (
        "5 of 99 samples are bad (most: 3 x ImageDecodeError), more than `max_error_fraction` 0.05: "
        "nothing was committed; mend the input or raise the limit"
    )
