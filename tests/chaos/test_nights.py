"""Nights with accidents, and on a store that fails: some of the matrix that `make chaos` runs as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import tiny
from tests.chaos import nights, runner, world
from tests.chaos.nights import Task
from tests.chaos.proxy import FAULTS, Faults
from tests.chaos.runner import Plan, Reference
from tests.chaos.world import World

SEED = 5
pytestmark = pytest.mark.timeout(600)
TRANSLATIONS = Task("translations")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world.running(tmp_path_factory.mktemp("chaos")) as servers:
        yield servers


@pytest.fixture(scope="module")
def whole(here: World) -> Reference:
    return runner.reference(here, TRANSLATIONS)


@pytest.mark.parametrize(
    ("victim", "point"),
    [("driver", "after commit"), ("raylet", "predicting"), ("S3", "before commit")],
)
def test_a_night_with_an_accident_is_right_in_the_end(victim: str, point: str, here: World, whole: Reference) -> None:
    number = list(runner.POINTS).index(point) * 10 + list(world.VICTIMS).index(victim)
    outcome = runner.run(here, Plan(number, "translations", victim, point, replaces=True), SEED, whole)
    assert outcome.hit, "nobody was killed"
    assert outcome.problem == ""
    if victim == "driver":
        assert outcome.codes == [-9, 0]
        assert outcome.computed[-1] < nights.SHARDS + 1, "what was staged is not computed again"


def test_a_tenth_of_all_calls_fails_and_the_night_is_right(here: World, whole: Reference) -> None:
    here.proxy.faults = Faults(0.1, SEED)
    try:
        code, _, said = runner.finish(runner.start(here, TRANSLATIONS.argv("faults")))
        counts = here.proxy.faults.counts
    finally:
        here.proxy.faults = None
    assert code == 0, said
    assert set(counts) == set(FAULTS), counts
    assert nights.difference(whole.rows, nights.rows(TRANSLATIONS, "faults")) == ""


def test_two_jobs_for_one_night_at_once_and_a_training_beside_them(here: World, whole: Reference) -> None:
    """One commits, the other finds its work done."""
    tiny.write_pairs(f"{nights.LAKE}/pairs/train", rows=60, seed=1)
    tiny.write_pairs(f"{nights.LAKE}/pairs/val", rows=8, seed=2)
    train = [
        "train", "translator-demo", "--data", f"{nights.LAKE}/pairs", "--storage", f"{nights.LAKE}/trained",
        "--name", "beside", "--train.epochs", "1", "--model.hidden-size", "16", "--model.vocab-size", "300",
    ]  # fmt: skip
    training = runner.start(here, train)
    with runner.reader(TRANSLATIONS, "equal", {len(whole.rows)}, may_fail=False) as seen:
        equal = [runner.finish(job) for job in [runner.start(here, TRANSLATIONS.argv("equal")) for _ in range(2)]]
    assert [code for code, _, _ in equal] == [0, 0], equal
    assert sorted(summary["changed"] for _, summary, _ in equal) == [False, True]
    assert nights.difference(whole.rows, nights.rows(TRANSLATIONS, "equal")) == ""

    assert seen == []
    code, trained, said = runner.finish(training)
    assert code == 0, said
    assert trained["epochs"] == 1
