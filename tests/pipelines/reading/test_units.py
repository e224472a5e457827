"""Units of small shards: each shard in one, of bounded cost, and a change is a matter of one unit."""

import random
from dataclasses import replace

import pyarrow as pa
import pytest

from pipelines.reading.objects import Member
from pipelines.reading.shards import Shard
from pipelines.reading.units import END, OPEN_BYTES, PLACED, SPAN, UNIT_BYTES, Part, Unit, cost, placed, units
from pipelines.staging.pieces import PIECE, piece_name


def small(count: int, size: int = 500) -> list[Shard]:
    return [Shard(f"s3://lake/in/{number:06d}.txt", size, "1") for number in range(count)]


def keys(shards: list[Shard]) -> set[str]:
    return {unit.key for unit in units(shards)}


@pytest.mark.parametrize("count", [0, 1, 2, 100, 10_000])
def test_every_shard_is_in_one_unit_of_bounded_cost(count: int) -> None:
    draw = random.Random(count)
    shards = [replace(shard, size=draw.randrange(20_000)) for shard in small(count)]
    found = units(draw.sample(shards, count))
    assert sorted((shard for unit in found for shard in unit.shards), key=lambda shard: shard.uri) == shards
    assert all(sum(map(cost, unit.shards)) <= UNIT_BYTES for unit in found)
    assert all(list(unit.shards) == sorted(unit.shards, key=lambda shard: shard.uri) for unit in found)
    assert {unit.key for unit in found} == keys(shards), "in whatever order they come"
    assert len(found) <= max(1, 2.5 * sum(map(cost, shards)) / UNIT_BYTES), "not many small ones"


def test_what_is_large_or_a_group_or_cut_is_a_unit_of_its_own_by_its_own_name() -> None:
    """So that pieces of an earlier version are found."""
    members = (Member("s3://lake/a.jpg", 1, "1", "a.jpg"),)
    large = Shard("s3://lake/large.tar", UNIT_BYTES - OPEN_BYTES + 1, "1")
    alone = [large, Shard("s3://lake/@0", 1, "1", members), Shard("s3://lake/b.mp4@", 1, "1", members, cut=True)]
    first, second = small(2)
    found = units([first, alone[0], second, *alone[1:]])
    assert [unit.shards for unit in found] == [(first, second), *((shard,) for shard in alone)], "as they are listed"
    assert [unit.key for unit in found[1:]] == [shard.key for shard in alone]
    assert [(unit.key, unit.shards) for unit in units([first])] == [(first.key, (first,))]
    fits = replace(large, size=large.size - 1)
    assert [unit.key for unit in units([fits, first])] == [fits.key, first.key], "it leaves no room for a second one"


def test_a_key_is_a_name_of_pieces_that_tells_the_state_of_all_its_shards() -> None:
    a, b, c = small(3)
    made = [Unit.of(shards).key for shards in ([a, b], [a, c], [a, b, c], [replace(a, etag="2"), b], [a], [b])]
    assert len(set(made)) == 6
    for key in made:
        match = PIECE.fullmatch(piece_name(key, 0, SPAN + 7, 12, end=True))
        assert match is not None
        assert (match["unit"], match["rows"]) == (key, "12")


@pytest.mark.parametrize("change", ["new", "gone", "replaced"])
def test_a_change_is_a_matter_of_one_unit(change: str) -> None:
    """Unless it makes one too large, which is then two, or two small enough to be one."""
    shards = small(3000)
    before, touched = keys(shards), []
    for number in range(0, 3000, 100):
        changed = {
            "new": [*shards, Shard(f"s3://lake/in/late-{number}.txt", 500, "1")],
            "gone": [shard for shard in shards if shard != shards[number]],
            "replaced": [replace(s, etag="2") if s == shards[number] else s for s in shards],
        }[change]
        after = keys(changed)
        touched.append((len(before - after), len(after - before)))
    assert set(touched) <= {(1, 1), (1, 2), (2, 1)}
    assert touched.count((1, 1)) >= 29


def test_a_unit_keeps_its_name_when_its_neighbours_make_room() -> None:
    """Which digits its shards share depends on them; what it is called does not."""
    shards = small(100)
    first, *others = units(shards)
    assert len(others) == 1, "of two halves"
    assert keys(list(first.shards)) == {first.key}


def test_parts_follow_each_other_and_begin_at_any_place() -> None:
    a, b, c = small(3)
    unit = Unit.of([a, b, c])
    parts = [Part(a, unit.key, 0, SPAN), Part(b, unit.key, SPAN, 2 * SPAN), Part(c, unit.key, 2 * SPAN, END)]
    assert unit.parts() == parts
    assert unit.parts(5) == [replace(parts[0], shard=replace(a, first=5)), *parts[1:]]
    assert unit.parts(SPAN) == parts[1:]
    assert unit.parts(2 * SPAN + 1) == [replace(parts[2], shard=replace(c, first=1))]
    assert Unit.of([a]).parts(SPAN + 3) == [Part(replace(a, first=SPAN + 3), a.key)], "its places are indices"
    assert [part.alone for part in (*parts, *Unit.of([a]).parts())] == [False, False, False, True]


def rows(*indices: int | None, last: int | None = None) -> pa.Table:
    return pa.table(
        {"index": pa.array(indices, pa.int64()), "last": pa.array([index == last for index in indices], pa.bool_())}
    )


def test_a_row_has_its_place_and_what_follows_it() -> None:
    a, b = small(2)
    first, second = Unit.of([a, b]).parts()
    found = placed(rows(3, 4, 5, last=5), first)
    assert found.schema.names == ["index", "last", *(field.name for field in PLACED)]
    assert set(found["unit_key"].to_pylist()) == {first.unit}
    assert found["unit_place"].to_pylist() == [3, 4, 5]
    assert found["unit_next"].to_pylist() == [4, 5, SPAN]
    found = placed(rows(0, 1, last=1), second)
    assert (found["unit_place"].to_pylist(), found["unit_next"].to_pylist()) == ([SPAN, SPAN + 1], [SPAN + 1, END])
    found = placed(rows(SPAN, SPAN + 1, last=SPAN + 1), Part(a, a.key))
    assert (found["unit_place"].to_pylist(), found["unit_next"].to_pylist()) == ([SPAN, SPAN + 1], [SPAN + 1, END])
    assert placed(rows(), first).schema.names == ["index", "last", *(field.name for field in PLACED)]


@pytest.mark.parametrize("index", [-1, SPAN, None])
def test_a_row_cannot_be_in_another_shards_place(index: int | None) -> None:
    first, _ = Unit.of(small(2)).parts()
    assert placed(rows(0, SPAN - 1), first)["unit_place"].to_pylist() == [0, SPAN - 1]
    with pytest.raises(RuntimeError, match=r"^s3://lake/in/000000\.txt has a row whose index is not from 0 to 4294967"):
        placed(rows(0, index), first)
    with pytest.raises(RuntimeError, match="has a row whose index is not"):
        placed(rows(-1), Part(first.shard, first.shard.key))
