"""The benchmarks' report; of what they measure the driver's steps are run here, for a few shards."""

import importlib
import inspect
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import captioning, peers, scale
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


def test_captions_of_another_program_are_one_for_each_photograph_and_most_of_them_ours(tmp_path):
    ours = {"a": "a dog", "b": "a cat", "c": "a ball"}

    def check(*rows):
        pq.write_table(pa.table(dict(zip(("sample_id", "caption"), zip(*rows, strict=True), strict=True))), file)
        captioning.check_captions(ours, 3, tmp_path)

    file = tmp_path / "captions.parquet"
    check(("c", "a ball"), ("a", "a dog"), ("b", "a dog"))
    with pytest.raises(AssertionError, match="2 rows"):
        check(("a", "a dog"), ("b", "a cat"))
    with pytest.raises(AssertionError, match="3 rows"):
        check(("a", "a dog"), ("b", "a cat"), ("b", "a cat"))
    with pytest.raises(AssertionError, match="of 3 captions 1 are ours"):
        check(("a", "a dog"), ("b", "a dog"), ("c", "a dog"))


@pytest.mark.parametrize("name", captioning.OTHERS)
def test_other_programs_caption_by_our_model(name, tmp_path, s3):
    script, peer = captioning.OTHERS[name]
    if peer and not peers.is_ready(peer):
        pytest.skip(f"{peer} is in no environment of its own: make bench-full ONLY=captioning")
    shards, model = tmp_path / "shards", tiny.write_captioner(str(tmp_path / "model"))
    tiny.write_photos(str(shards), shards=2, rows=5)
    tiny.write_night(str(tmp_path / "tables"), "2026-01-01", str(shards), model)
    given, written = (captioning.unpack if peer == "daft" else captioning.copies)(shards, s3, 2), tmp_path / "written"
    captioning.other(script, peer, model, given, written)
    captioning.check_captions(captioning.table(tmp_path / "tables"), 20, written)


def test_steps_of_the_driver_are_measured_and_their_growth_is_fitted():
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--store", "disk", "--shards", "20", "60", "--compact"]
    ran = subprocess.run(
        [*command, "--nights", "3", "--night-files", "4"], cwd=tiny.ROOT, check=True, capture_output=True, text=True
    )
    found = json.loads(ran.stdout)
    assert list(found) == ["store", "20 shards", "60 shards", "growth"]
    few, many = found["20 shards"], found["60 shards"]
    assert list(many)[: len(few)] == list(few)
    assert (few["compact"]["files"], few["compact"]["files_after"]) == (20, 1)
    assert many["open a table of years"]["files"] == 12
    assert many["read tasks"]["peak_mib"] > 100
    figures = {
        1_000: {"cpu": 0.1, "requests": 0},
        10_000: {"cpu": 1.0, "requests": 5},
        100_000: {"cpu": 10, "requests": 50},
    }
    assert scale._fitted(figures) == {"cpu": 1.0, "requests": 1.0}
    assert scale._fitted({n: {**each, "cpu": each["cpu"] / 10} for n, each in figures.items()})["cpu"] == 1.0
    assert "cpu" not in scale._fitted({n: {**each, "cpu": 0.01} for n, each in figures.items()})
