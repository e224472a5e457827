"""A compaction, or a night that packs what it computed, of which somebody dies at any of its points: no reader sees it,
and the next one ends it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pipelines.nights import tables
from tests.chaos import nights, runner, world
from tests.chaos.nights import Task
from tests.chaos.runner import COMMIT, MAX_STARTS, Accident, Plan, Point, Reference, Trap, _puts
from tests.chaos.world import VICTIMS, World

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
WINDOWS, CLIPS = Task("windows"), Task("clips")
"""Lone objects, each a unit of its own: nights of small files, of which the second has so many that it packs them."""
PACK = r"/ds=.*/pack-of-[^/]*\.parquet$"
POINTS = {
    "before a piece is read": Point(lambda task, call: call.method == "GET" and ".parquet" in call.key, "before", 5),
    "before the pack": Point(_puts(PACK), "before"),
    "after the pack": Point(_puts(PACK), "after"),
    "before its commit": Point(_puts(COMMIT.pattern), "before"),
    "after its commit": Point(_puts(COMMIT.pattern), "after"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world.running(tmp_path_factory.mktemp("chaos")) as servers:
        yield servers


@pytest.fixture(scope="module")
def whole(here: World) -> Reference:
    return runner.reference(here, WINDOWS)


def files(tables_name: str, task: Task = WINDOWS) -> list[str]:
    """Names of the files that the night consists of."""
    table = tables.open_table(f"{task.tables(tables_name)}/{task.table}")
    assert table is not None
    return [path.rsplit("/", 1)[-1] for path in tables.night_files(table, nights.DS)]


@pytest.mark.parametrize("victim", ["driver", "S3"])
@pytest.mark.parametrize("point", POINTS)
def test_a_compaction_that_is_killed_is_ended_by_the_next(
    here: World, whole: Reference, victim: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.POINTS, point, POINTS[point])
    name = f"{victim} {point}".replace(" ", "-").lower()
    nights.copy_tables(WINDOWS, "whole", name)
    assert len(files(name)) > 5
    compact = ["tables", "compact", WINDOWS.table, "--tables", WINDOWS.tables(name)]
    rng, codes = random.Random(name), []
    with runner.reader(WINDOWS, name, {len(whole.rows)}, may_fail=victim == "S3") as seen:
        job = runner.start(here, compact)
        here.proxy.watcher = trap = Trap(WINDOWS, point, name, rng, 0, lambda: VICTIMS[victim](here, job, rng))
        while not codes or (codes[-1] != 0 and len(codes) < MAX_STARTS):
            code, _, said = runner.finish(job)
            assert runner.complaint(code, said) == ""
            codes.append(code)
            job = runner.start(here, compact)
        here.proxy.watcher = None
        code, again, said = runner.finish(job)
        assert trap.killed is not None
        assert trap.killed.result()
    assert (codes[0] == -9, codes[-1]) == (victim == "driver", 0)
    assert (code, again["nights"]) == (0, []), said
    assert (len(files(name)), files(name)[0].startswith("pack-of-")) == (1, True)
    assert nights.difference(whole.rows, nights.rows(WINDOWS, name)) == ""
    assert seen == []
    code, night, said = runner.finish(runner.start(here, WINDOWS.argv(name)))
    assert (code, night["shards_computed"], night["changed"]) == (0, 0, False), said


@pytest.fixture(scope="module")
def packed(here: World) -> Reference:
    found = runner.reference(here, CLIPS)
    (name,) = files("whole", CLIPS)
    assert name.startswith(f"pack-of-{len(found.rows)}-")
    return found


@pytest.mark.parametrize("victim", ["driver", "S3", "raylet"])
@pytest.mark.parametrize("point", POINTS)
def test_a_night_that_is_killed_while_it_packs_is_ended_by_the_next(
    here: World, packed: Reference, victim: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all is computed and only its pack is missing."""
    monkeypatch.setitem(runner.POINTS, point, POINTS[point])
    number = 3 * list(POINTS).index(point) + ["driver", "S3", "raylet"].index(victim)
    outcome = runner.run(here, Plan(number, "clips", (Accident(victim, point),), replaces=number % 2 == 0), 7, packed)
    assert (outcome.hit, outcome.problem) == (True, "")
    assert (outcome.codes[0] == -9) == (victim == "driver")
    name = f"run-7-{number}"
    assert len(files(name, CLIPS)) == 1
    code, night, said = runner.finish(runner.start(here, CLIPS.argv(name)))
    assert (code, night["shards_computed"], night["changed"]) == (0, 0, False), said
