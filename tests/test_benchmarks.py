"""The benchmarks' report; what they measure is not run here."""

import importlib
import inspect
import json

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, in_turn


@pytest.mark.parametrize(
    ("row", "times", "met"),
    [
        (Row("a", 2.0, "s"), None, None),
        (Row("a", 2.0, "s", goal=2.5), None, True),
        (Row("a", 3.0, "s", goal=2.5), None, False),
        (Row("a", 30.0, "images/s", goal=25), None, True),
        (Row("a", 2.0, "s", 5.0, "b", goal_times=2.5), 2.5, True),
        (Row("a", 2.0, "MiB", 1.0, "b", goal_times=0.95), 0.5, False),
        (Row("a", 30.0, "images/s", 15.0, "b", goal_times=2.5), 2.0, False),
        (Row("a", 30.0, "images/s", goal_times=2.5), None, None),
        (Row("a", 2.0, "s", 5.0, "b", goal=1.0, goal_times=2.5), 2.5, False),
    ],
)
def test_a_row_tells_how_many_times_as_good_and_whether_that_is_enough(row, times, met):
    assert row.times == times
    assert row.met is met


def test_measures_are_taken_in_turn_and_their_medians_count():
    order = []
    values = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 5.0, 7.0])}

    def measure(name):
        order.append(name)
        return next(values[name])

    found = in_turn(3, {name: lambda name=name: measure(name) for name in values})
    assert found == {"a": 2.0, "b": 5.0}
    assert order == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize("name", benchmarks.LINES)
def test_every_line_can_be_measured(name):
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert list(inspect.signature(module.rows).parameters)[:2] == ["full", "scratch"]
    assert module.__doc__


def test_the_page_shows_what_was_measured_and_nothing_else():
    known = json.loads(benchmarks.FIGURES.read_text())
    before, after = benchmarks.around_figures()
    shown = benchmarks.report(known)
    assert benchmarks.REPORT.read_text() == before + benchmarks.BEGIN + shown + benchmarks.END + after
    assert all(f"**{name}**" in shown for name in known)


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3:\nso it is"):
        peers.finish(["sh", "-c", "echo so it is; exit 3"], tmp_path, {})


def test_an_artifact_for_both_has_what_both_know():
    files = {"config.json": json.dumps({"config": {"cell": "gru", "hidden_size": 8}}).encode(), "weights": b"w"}
    assert json.loads(peers.for_both(files)["config.json"]) == {"config": {"hidden_size": 8}}
    assert peers.for_both(files)["weights"] == b"w"
