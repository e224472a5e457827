"""Tasks: each part in one of them, no more than a driver can send, and units whole where there are enough."""

import math
import random
from collections import Counter

import pytest

from pipelines.reading.bundles import CUT_UNITS, MOST_TASKS, TASK_BYTES, TASKS_A_PROCESS, bundled
from pipelines.reading.objects import Member
from pipelines.reading.shards import Shard
from pipelines.reading.units import OPEN_BYTES, UNIT_BYTES, Part, cost, units


def of_sizes(*sizes: int) -> list[Part]:
    shards = [Shard(f"s3://lake/in/{number:06d}.txt", size, "1") for number, size in enumerate(sizes)]
    return [Part(shard, shard.uri) for shard in shards]


def cost_of(bundle: list[Part]) -> int:
    return sum(cost(part.shard) for part in bundle)


def cut_units(bundles: list[list[Part]]) -> int:
    """Units that several tasks read."""
    readers = Counter(unit for bundle in bundles for unit in {part.unit for part in bundle})
    return sum(tasks > 1 for tasks in readers.values())


def of_equal(count: int, size: int) -> list[Part]:
    """What a night of so many shards, all of one size, has to read."""
    alone = of_sizes(*[size] * count)
    if size > UNIT_BYTES:
        return alone
    return [part for unit in units([part.shard for part in alone]) for part in unit.parts()]


def test_large_shards_and_few_ones_are_tasks_of_their_own() -> None:
    large = of_sizes(TASK_BYTES, 10 * TASK_BYTES, 50, TASK_BYTES)
    assert bundled(large * 100, 1)[:3] == [large[:1], large[1:2], large[2:]], "a small one goes with its neighbour"
    few = of_sizes(*[700] * TASKS_A_PROCESS)
    assert bundled(few, 1) == [[part] for part in few]
    assert bundled(few, 4) == [[part] for part in few]
    assert bundled([], 1) == []


@pytest.mark.parametrize("processes", [1, 3, 100])
def test_bundles_of_small_shards_keep_all_processes_busy_and_are_bounded(processes: int) -> None:
    draw = random.Random(0)
    small = of_sizes(*[draw.randrange(20_000) for _ in range(10_000)])
    bundles = bundled(small, processes)
    assert [part for bundle in bundles for part in bundle] == small, "in their order, each once"
    costs = [cost_of(bundle) for bundle in bundles]
    share = min(TASK_BYTES, sum(costs) / (TASKS_A_PROCESS * processes))
    assert max(costs) <= share + 20_000 + OPEN_BYTES, "and half a shard on either side"
    assert len(bundles) in {math.ceil(sum(costs) / share), math.floor(sum(costs) / share)}


def test_a_task_reads_whole_units_where_there_are_enough_of_them() -> None:
    draw = random.Random(1)
    shards = [Shard(f"s3://lake/in/{n:06d}.txt", draw.randrange(20_000), "1") for n in range(10_000)]
    together = units(shards)
    assert 300 < len(together) < 2_000
    small = [part for unit in together for part in unit.parts()]
    bundles = bundled(small, 4)
    assert [part for bundle in bundles for part in bundle] == small
    assert cut_units(bundles) == 0
    assert max(map(cost_of, bundles)) <= TASK_BYTES + UNIT_BYTES
    enough = [part for unit in together[:8] for part in unit.parts()]
    assert [{part.unit for part in bundle} for bundle in bundled(enough, 4)] == [{unit.key} for unit in together[:8]]
    few = [part for unit in together[:7] for part in unit.parts()]
    cut = bundled(few, 4)
    assert [part for bundle in cut for part in bundle] == few
    assert cut_units(cut) == 7
    assert TASKS_A_PROCESS * 3 < len(cut) <= TASKS_A_PROCESS * 4, "a small night has some tasks for each process"


def test_no_more_units_are_cut_than_the_driver_joins_in_seconds() -> None:
    """However many processes there are: the others do not wait for long."""
    together = units([part.shard for part in of_equal(20_000, 900)])
    for count, cut in ((CUT_UNITS, CUT_UNITS), (CUT_UNITS + 1, 0)):
        own = [part for unit in together[:count] for part in unit.parts()]
        bundles = bundled(own, 1_600)
        assert (cut_units(bundles), len(bundles) > 1_500) == (cut, cut > 0)


MIB = 1 << 20
NIGHTS = [
    # shards, bytes of each, processes: tasks, units cut, bytes of the largest task
    (1, 900, 400, 1, 0, 900),
    (40, 900, 2, 32, 1, 1_800),
    (1_000, 900, 2, 28, 0, 47_700),
    (1_000, 900, 400, 1_000, 29, 900),
    (10_000, 900, 400, 261, 0, 46_800),
    (3_000, 64 * MIB, 2, 1_600, 0, 128 * MIB),
    (100_000, 900, 2, 477, 0, 229_500),
    (100_000, 900, 16, 477, 0, 229_500),
    (100_000, 900, 400, 1_600, 0, 92_700),
    (100_000, 900, 1_600, 1_600, 0, 92_700),
    (100_000, 300_000, 2, 1_600, 0, 18_900_000),
    (100_000, 300_000, 16, 1_600, 0, 18_900_000),
    (100_000, 300_000, 400, 1_600, 0, 18_900_000),
    (100_000, 300_000, 1_600, 1_600, 0, 18_900_000),
    (100_000, 2 * MIB, 2, 1_600, 0, 63 * 2 * MIB),
    (100_000, 2 * MIB, 1_600, 1_600, 0, 63 * 2 * MIB),
    (100_000, 64 * MIB, 2, 1_600, 0, 63 * 64 * MIB),
    (100_000, 64 * MIB, 1_600, 1_600, 0, 63 * 64 * MIB),
    (100_000, 64 * MIB, 6_000, 6_000, 0, 17 * 64 * MIB),
]


@pytest.fixture(scope="module")
def nights() -> dict[tuple[int, int], list[Part]]:
    """What there is to read, by the number of shards and their size."""
    return {each: of_equal(*each) for each in {night[:2] for night in NIGHTS}}


@pytest.mark.parametrize(("count", "size", "processes", "tasks", "cut", "largest"), NIGHTS)
def test_tasks_are_as_few_as_the_driver_can_send_and_units_stay_whole(
    nights: dict[tuple[int, int], list[Part]],
    count: int, size: int, processes: int, tasks: int, cut: int, largest: int,
) -> None:  # fmt: skip
    own = nights[count, size]
    bundles = bundled(own, processes)
    assert [part for bundle in bundles for part in bundle] == own, "each shard in one place"
    assert all(bundles)
    assert len(bundles) <= max(MOST_TASKS, processes)
    there = len({part.unit for part in own})
    assert there < 2 * processes or not cut_units(bundles)
    assert len(bundles) >= min(there, processes), "none has nothing to do"
    assert (len(bundles), cut_units(bundles)) == (tasks, cut)
    assert max(sum(part.shard.size for part in bundle) for bundle in bundles) == largest


def test_shards_of_all_sizes_are_in_bounded_tasks() -> None:
    """Also of sizes of which two do not fit into a share."""
    draw = random.Random(2)
    mixed = of_sizes(*[int(10 ** draw.uniform(2, 9)) for _ in range(30_000)])
    halves = of_sizes(*[2_000_000] * 6_000)
    for own in (mixed, halves):
        for processes in (1, 300, MOST_TASKS - 1):
            bundles = bundled(own, processes)
            assert [part for bundle in bundles for part in bundle] == own
            assert len(bundles) <= MOST_TASKS
            share = max(TASK_BYTES, sum(map(cost_of, bundles)) / (MOST_TASKS / 2))
            assert all(cost_of(bundle) <= 2 * share or len(bundle) == 1 for bundle in bundles)


def test_members_cost_as_much_as_shards() -> None:
    """Also those that are not there, which have no bytes."""
    members = tuple(Member(f"s3://lake/{number}.jpg", 0, "", f"{number}") for number in range(256))
    groups = [Part(Shard(f"s3://lake/@{number}", 0, "1", members), f"@{number}") for number in range(100)]
    assert bundled(groups, 1) == [[group] for group in groups]
