"""The benchmarks' report; of what they measure the driver's steps are run here, for a few shards."""

import gzip
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable, write_deltalake
from torch.autograd import DeviceType

from hybrid_models.inputs import Inputs
from hybrid_models.layers.attention_walk import attention_walk
from hybrid_models.symbols import BOS, EOS
from pipelines import storage
from pipelines.models import artifacts
from tests import tiny
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import (
    beside,
    captioning,
    costs,
    demo,
    distilling,
    fitting,
    goals,
    nowcasting,
    peers,
    processes,
    scale,
    setup,
    stepping,
    utilisation,
)
from tests.benchmarks.figures import STEADY, Row, Sizes, clock, device, in_turn, left_out, sizes
from tests.benchmarks.scripts.captioner import measured


@pytest.mark.parametrize(
    ("row", "times", "met"),
    [
        (Row("a", 2.0, "s"), None, None),
        (Row("a", 2.0, "s", goal=2.5), None, True),
        (Row("a", 3.0, "s", goal=2.5), None, False),
        (Row("a", 30.0, "images/s", goal=25), None, True),
        (Row("a", 2.0, "s", 5.0, "b", goal_times=2.5), 2.5, True),
        (Row("a", 2.0, "MiB", 1.0, "b", goal_times=STEADY), 0.5, False),
        (Row("a", 1.05, "MiB", 1.0, "b", goal_times=STEADY), 1 / 1.05, True),
        (Row("a", 1.051, "MiB", 1.0, "b", goal_times=STEADY), 1 / 1.051, False),
        (Row("a", 30.0, "images/s", 15.0, "b", goal_times=2.5), 2.0, False),
        (Row("a", 30.0, "images/s", goal_times=2.5), None, None),
        (Row("a", 2.0, "s", 5.0, "b", goal=1.0, goal_times=2.5), 2.5, False),
        (Row("a", None, "s", 5.0, "b", goal=1.0, goal_times=2.5), None, None),
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


def test_without_a_gpu_sizes_are_those_of_a_cpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert device() == torch.device("cpu")
    assert sizes() == Sizes(training=32, searching=64, captioning=32, fitting=32, sequences=1, nowcasts=1)
    began = clock()
    assert clock() >= began


@pytest.mark.parametrize(
    ("gpus", "rows", "learned"),
    [
        (0, {"": None, ", one worker of all cores": "one core", ", two workers": "one core"},
         {"one worker of all cores": "one core", "two workers": "one core"}),
        (1, {
            "": None, ", all cores beside one: left out, a GPU trains": None,
            ", two workers: left out, there is one GPU": None,
        }, {}),
        (2, {"": None, ", all cores beside one: left out, a GPU trains": None, ", two workers": "one GPU"},
         {"two workers": "one GPU"}),
    ],
)  # fmt: skip
def test_a_training_has_no_more_workers_than_gpus_where_there_are_any(gpus, rows, learned, tmp_path, monkeypatch):
    trained = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(fitting, "write_photos", lambda _: None)
    monkeypatch.setattr(fitting, "write_weights", lambda _: None)
    monkeypatch.setattr(fitting, "train", lambda _, folder, __, start, *options: trained.update({folder.name: options}))
    speed = {"one-0": 2.0, "two-0": 3.0, "core-0": 1.5}
    monkeypatch.setattr(fitting, "logged", lambda folder, _: fitting.EPOCHS * [speed[folder.name]])
    found = fitting.rows(False, tmp_path)
    assert [(row.what, row.against or None) for row in found] == [
        (epoch + what, against)
        for epoch in ("an epoch on references", "an epoch on rewards")
        for what, against in rows.items()
    ] + [(f"{fitting.LEARNED}, {way}", against) for way, against in learned.items()]
    assert ("two-0" in trained, "core-0" in trained) == (gpus != 1, gpus == 0)
    assert all(options in ((), ("--num-workers", "2")) for options in trained.values())
    assert found[2].times == {0: 2.0, 1: None, 2: 1.5}[gpus]


def test_what_is_left_out_is_a_row_without_a_figure():
    assert benchmarks._row(left_out("a", "b")) == "| a: left out, b |  |  |  |  |  |"


def test_operations_are_two_for_each_multiplication_of_a_product_a_convolution_and_their_gradients():
    a, b = torch.rand(3, 5, requires_grad=True), torch.rand(5, 7, requires_grad=True)
    assert utilisation.operations(lambda: a @ b) == 2 * 3 * 5 * 7
    assert utilisation.operations(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 5 * 7
    frames, kernel = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 5, 5)
    padded = utilisation.operations(lambda: torch.nn.functional.conv2d(frames, kernel, padding=2))
    assert padded == 2 * 2 * 8 * 8 * 4 * 3 * 5 * 5


def test_operations_within_functions_with_gradients_of_their_own_are_counted():
    sources, per_source, steps, places, gates, size, state = 2, 3, 4, 5, 18, 7, 6
    rows = sources * per_source
    shapes = [(rows, steps, gates), (rows, state), (sources, places, gates), (sources, places, size)]
    words, hidden, values, keys = (torch.rand(shape, requires_grad=True) for shape in shapes)
    weight, bias, query, energy = (
        torch.rand(shape, requires_grad=True) for shape in ((gates, state), (gates,), (size, state), (size,))
    )
    mask = torch.ones(sources, places, dtype=torch.bool)

    def walk():
        found, _ = attention_walk(words, {"hidden": hidden}, values, keys, mask, (weight, bias), query, energy)
        found.sum().backward()

    each = places * gates + state * gates + state * size + places * size
    assert utilisation.operations(walk) == 3 * 2 * rows * steps * each


def test_operations_of_an_rnn_that_is_one_kernel_are_those_of_its_products():
    rnn, given = torch.nn.GRU(5, 7, batch_first=True), torch.rand(3, 4, 5)
    with torch.inference_mode():
        counted = utilisation.operations(lambda: rnn(given))
    shapes = [parameter.shape for parameter in rnn.parameters()]
    assert utilisation.rnn_operations(given.shape, shapes, 4, None) == counted == 2 * 3 * 4 * 3 * 7 * (5 + 7)
    assert utilisation.rnn_operations(given.shape, shapes, times=2, out_shape=None) == 2 * counted


def test_kernels_that_run_beside_each_other_keep_a_device_busy_once():
    ranges = [(0, 4), (1, 2), (3, 6), (8, 9)]
    events = [
        SimpleNamespace(
            device_type=DeviceType.CUDA, is_user_annotation=False, time_range=SimpleNamespace(start=start, end=end)
        )
        for start, end in ranges
    ]
    others = [
        SimpleNamespace(device_type=DeviceType.CPU, is_user_annotation=False, time_range=None),
        SimpleNamespace(device_type=DeviceType.CUDA, is_user_annotation=True, time_range=None),
    ]
    assert utilisation.kernel_seconds([*events, *others]) == pytest.approx(7e-6)


def test_a_device_is_used_and_idle_for_a_share_of_the_time(tmp_path, monkeypatch):
    works = (
        utilisation.translator_training, utilisation.translator_search, utilisation.captioner_training,
        utilisation.captioner_rewards, utilisation.nowcasts,
    )  # fmt: skip
    monkeypatch.setattr(utilisation.nowcasting, "SIDES", (32, 64))
    small = {"WORKS": works, "SIDE": {"cpu": 512, "cuda": 512}, "ROUNDS": 3, "BATCHES": 1}
    for name, value in small.items():
        monkeypatch.setattr(utilisation, name, value)
    monkeypatch.setattr(utilisation, "sizes", lambda: Sizes(2, 2, 2, 2, 1, 1))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    found = utilisation.rows(False, tmp_path)
    ceilings, rows = found[:-15], found[-15:]
    assert [row.unit for row in rows[::3]] == [
        "target tokens/s", "sentences/s", "photographs/s", "photographs/s", "nowcasts/s",
    ]  # fmt: skip
    assert [row.unit for row in ceilings] == ["GFLOP/s"] * len(ceilings)
    assert all(0 < row.times < 1 for row in rows[1::3])
    assert all(0 <= row.ours <= 100 for row in rows[2::3])


def test_a_process_that_waits_leaves_the_cores_idle():
    assert utilisation.idle(lambda: time.sleep(0.2)) > 0.9


def test_a_night_waits_for_a_slow_device_and_for_more_where_its_steps_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "BATCHES", 4)
    monkeypatch.setattr(beside, "ROUNDS", 1)
    monkeypatch.setattr(beside, "TABLE", 2)
    by_device, tables_in_turn, in_turn = beside.rows(False, tmp_path)
    assert (by_device.reference, by_device.goal) == (0.16, 0.18)
    assert in_turn.ours >= 4 * (beside.SECONDS["collate"] + beside.SECONDS["infer"]) > by_device.reference
    assert tables_in_turn.ours >= 0.16 + 2 * (beside.SECONDS["collate"] + beside.SECONDS["_table"])
    assert by_device.ours >= by_device.reference


def test_a_nowcast_from_python_has_the_same_goals_as_a_workers(tmp_path, monkeypatch):
    seconds = {"extrapolation": 2.0, "sprog": 3.0}
    monkeypatch.setattr(nowcasting, "SIDES", (64,))
    monkeypatch.setattr(nowcasting, "nowcast_seconds", lambda *_: 1.0)
    monkeypatch.setattr(nowcasting, "seconds_from_python", lambda _: 1.5)
    monkeypatch.setattr(peers, "answer", lambda _, question, __: {"seconds": seconds[question["method"]]})
    found = [(row.ours, row.against, row.times, row.met) for row in nowcasting.rows(True, tmp_path)]
    lucas_kanade, sprog = (name for name, _ in nowcasting.METHODS.values())
    assert found[:2] == [(1.0, lucas_kanade, 2.0, True), (1.0, sprog, 3.0, True)]
    assert found[2:] == [(1.5, lucas_kanade, 2.0 / 1.5, True), (1.5, sprog, 2.0, False)]
    assert [(row.ours, row.against) for row in nowcasting.rows(False, tmp_path)] == [(1.0, ""), (1.5, "")]


def test_steps_are_taken_once_to_warm_up_and_then_measured_or_profiled():
    taken = []

    def train(number):
        taken.append(number)
        return float(number)

    found = measured(train, 3, "")
    assert taken == [0, 1, 2, 0, 1, 2]
    assert (len(found["seconds"]), len(found["cpu"]), found["losses"]) == (3, 3, [0.0, 1.0, 2.0])
    assert "aten::mm" in measured(lambda _: float((torch.rand(2, 2) @ torch.rand(2, 2)).sum()), 1, "operators")["table"]


def test_a_translators_steps_are_those_of_a_cpus_line():
    training = stepping.of_translator(stepping.Options(hybrid="translator", steps=2))
    search = stepping.of_translator(stepping.Options(hybrid="translator", steps=3, beam=5))
    assert (training["what"], [len(batch) for batch in training["batches"]]) == ("train", [32, 32])
    assert (search["what"], search["beam"], [len(batch) for batch in search["batches"]]) == ("search", 5, [64] * 3)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A report without figures."""
    monkeypatch.setattr(benchmarks, "REPORT", tmp_path / "benchmarks.md")
    monkeypatch.setattr(benchmarks, "FIGURES", tmp_path / "benchmarks.json")
    benchmarks.REPORT.write_text(f"# Benchmarks\n{benchmarks.BEGIN}{benchmarks.END}The end.\n")
    return benchmarks.REPORT


def test_a_line_alone_and_one_beside_others_have_both_their_place(page, monkeypatch, capsys):
    seconds = iter([60, 30, 90])

    def run(name, full, commit):
        took = next(seconds)
        return {
            "about": benchmarks.LINES[name], "command": "python …", "full": full, "date": "2026-01-01",
            "commit": commit, "machine": benchmarks.machine(), "versions": {"torch": "2"},
            "peers": {"webdataset": {"webdataset": "1"}} if full else {}, "seconds": took,
            "rows": [{"what": "a", "ours": took, "unit": "s"}],
        }  # fmt: skip

    monkeypatch.setattr(benchmarks, "run", run)
    monkeypatch.setattr(benchmarks, "ADDITIONS", 1)
    assert benchmarks.main(benchmarks.Options(("captioning",), full=True)) == 0
    assert benchmarks.main(benchmarks.Options(("captioning",))) == 0
    assert "1 lines took 0 min" in capsys.readouterr().err
    kept = json.loads(benchmarks.FIGURES.read_text())
    assert {name: line["seconds"] for name, line in kept.items()} == {"captioning": 30, "captioning --full": 60}
    text = page.read_text()
    assert text.index("## Beside others") < text.index("| a | 60 s |") < text.index("beside it webdataset 1")
    assert text.index("beside it webdataset 1") < text.index("## Ours alone") < text.index("| a | 30 s |")
    assert "By `make bench-full`; these lines took 1 min." in text
    assert "GiB" in text
    assert benchmarks.main(benchmarks.Options(("captioning",))) == 0
    assert "| a | 60 s |" in page.read_text()
    assert "| a | 90 s |" in page.read_text()
    assert "| a | 30 s |" not in page.read_text()


def test_a_line_that_fails_leaves_what_there_is(page, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "run", lambda *_: None)
    before = page.read_text()
    assert benchmarks.main(benchmarks.Options(("demo",))) == 1
    assert "failed: demo" in capsys.readouterr().err
    assert page.read_text() == before


@pytest.mark.parametrize("name", ["webdataset", "daft"])
def test_versions_of_another_program_are_those_of_its_environment(name):
    if not peers.is_ready(name):
        pytest.skip(f"{name} is in no environment of its own: make bench-full ONLY=captioning")
    assert [f"{package}=={found}" for package, found in peers.versions(name).items()] == list(peers.REQUIREMENTS[name])


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
    assert all(f"**{place.split()[0]}**" in shown for place in known)


@pytest.mark.parametrize(("line", "other", "warmed"), [(setup, "pip", 1), (demo, "commit febd741", 0)])
def test_waiting_for_minutes_is_measured_in_turn_with_another_way(line, other, warmed, tmp_path, monkeypatch):
    runs, taken = [], iter([100.0] * 2 * warmed + [10.0, 30.0, 31.0, 12.0, 11.0, 35.0])

    def seconds(*arguments):
        runs.append(arguments)
        return next(taken)

    monkeypatch.setattr(line, "seconds", seconds)
    monkeypatch.setattr(peers, "checkout", nullcontext)
    alone, beside = line.rows(True, tmp_path)
    assert (alone.ours, alone.times, beside.ours, beside.reference, beside.against) == (11.0, None, 11.0, 31.0, other)
    ours, theirs = runs[-6], runs[-5]
    assert runs == [ours, theirs] * warmed + [ours, theirs, theirs, ours, ours, theirs] != [ours] * len(runs)
    taken = iter([100.0] * warmed + [12.0])
    assert [(row.ours, row.reference) for row in line.rows(False, tmp_path)] == [(12.0, None)]


def test_a_goal_is_met_by_all_of_its_rows_that_can_tell():
    rows = [
        {"what": "memory", "ours": 200.0, "unit": "MiB", "reference": 100.0, "against": "of 1", "goal_times": 0.95},
        {"what": "infer", "ours": 3.0, "unit": "images/s", "reference": 1.0, "against": "Daft", "goal_times": 1.15},
        {"what": "infer", "ours": 3.0, "unit": "images/s", "reference": 3.0, "against": "Ray Data", "goal_times": 1.15},
        {"what": "the loop", "ours": 3.0, "unit": "images/s"},
    ]
    known = {
        "captioning": {"rows": []},
        "captioning --full": {"rows": rows},
        "demo": {"rows": [{"what": "demo", "ours": 131.0, "unit": "s", "goal": 130.0}]},
    }
    captioning = "`python -m tests.benchmarks captioning --full` |"
    _, _, *shown = goals.table(known)
    assert [row.split(" | ")[2:] for row in (shown[1], shown[3], shown[4], shown[8], shown[11])] == [
        ["0 of 1", "**demo: 131 s of ≤ 130 s**", "`python -m tests.benchmarks demo` |"],
        ["1 of 2", "infer, Daft: 3.00 of ≥ 1.15 times; **infer, Ray Data: 1.00 of ≥ 1.15 times**", captioning],
        ["not measured", "", captioning],
        ["not measured", "", "`python -m tests.benchmarks convlstm --full` |"],
        ["0 of 1", "**memory, of 1: 0.50 of ≥ 0.95 times**", captioning],
    ]


def test_every_figure_that_a_goal_of_a_line_is_about_counts_for_one_of_the_goals():
    known = json.loads(benchmarks.FIGURES.read_text())
    numbered = {goal.line for goal in goals.GOALS}
    for place, line in known.items():
        asked = [Row(**row) for row in line["rows"] if place.split()[0] in numbered]
        of_line = [goal for goal in goals.GOALS if goal.line == place.split()[0]]
        counted = [row for goal in of_line for row in goals.rows_of(goal, line["rows"])]
        assert all(counted.count(row) == 1 for row in asked if row.met is not None)
    assert all("not measured" not in row for row in goals.table(known))


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
        [*command, "--nights", "3", "--night-files", "4", "--processes", "2", "3", "--shard-bytes", "300000", "--ray"],
        cwd=tiny.ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(ran.stdout)
    assert list(found) == ["store", "20 shards", "60 shards", "growth"]
    few, many = found["20 shards"], found["60 shards"]
    assert list(many)[: len(few)] == list(few)
    assert (few["compact"]["files"], few["compact"]["files_after"]) == (20, 1)
    assert [steps["pack before a commit"]["files"] for steps in (few, many)] == [20, 1]
    assert many["open a table of years"]["files"] == 12
    assert [steps["Ray Data's own part"]["tasks"] for steps in (few, many)] == [20, 48]
    assert many["Ray Data's own part"]["cpu"] > 0.1
    assert "cpu" in found["growth"]["all steps together"]
    assert many["sink"]["bytes"] < 4096
    assert many["read tasks for 2 processes"]["peak_mib"] > 100
    assert [many[f"read tasks for {count} processes"]["tasks"] for count in (2, 3)] == [32, 48]
    told = many["what read tasks for 2 processes refer to"]
    assert (told["units_cut"], told["largest"]) == (0, 600_000)
    figures = {
        1_000: {"cpu": 0.1, "requests": 0},
        10_000: {"cpu": 1.0, "requests": 5},
        100_000: {"cpu": 10, "requests": 50},
    }
    assert scale._fitted(figures) == {"cpu": 1.0, "requests": 1.0}
    assert scale._fitted({n: {**each, "cpu": each["cpu"] / 10} for n, each in figures.items()})["cpu"] == 1.0
    assert "cpu" not in scale._fitted({n: {**each, "cpu": 0.01} for n, each in figures.items()})


def test_costs_are_those_of_a_million_by_the_rates_measured():
    measured = {
        "machine": {"cores": 4},
        "rows": [{"what": "rate", "unit": "a second", "ours": 200.0}, {"what": "seconds", "unit": "s", "ours": 0.36}],
    }
    named = [costs.Prices("a", cores=8, hour=1.0, reads=0.05), costs.Prices("b", cores=2, hour=1.0, reads=0.0)]
    # 20,000 seconds of a core; an eighth of that of an instance, 0.69 $, and 2,000 times 0.05 $; a half, 2.78 $
    assert costs.cost(costs.Work("a", "", "rate", 2_000_000), measured, named) == [
        "a", "200 a second, 4 cores", "5.6", "2,000,000", "2,500", "101", "10,000", "2.8",
    ]  # fmt: skip
    assert costs.cost(costs.Work("b", "", "seconds", each=10), measured, named[:1]) == [
        "b", "3.6 s, one core", "1,000", "few", "450,000", "125",
    ]  # fmt: skip


def test_all_that_is_told_to_cost_is_measured():
    rows = costs.table(json.loads(benchmarks.FIGURES.read_text())).splitlines()
    assert len(rows) == 2 + len(costs.WORK)
    assert len({row.count("|") for row in rows}) == 1, "a cell for each column"


def test_the_cpu_of_a_larger_night_is_what_its_processes_take_more():
    watched = SimpleNamespace(kinds={1: "driver", 2: "ray::A", 3: "ray::A"})
    first, second = {1: 1.0}, {1: 2.0, 2: 5.0}
    more = processes.growth(watched, first, second, {1: 5.0, 2: 5.0, 3: 9.0})
    assert more == {"driver": 3.0 - 1.0, "ray::A": 9.0 - 5.0}, "the first night's model process has ended"


def test_a_peak_of_memory_is_told_by_process():
    before = processes.memory()["driver"]
    with processes.most() as found:
        held = np.ones(64 << 20)  # 512 MiB
        time.sleep(2.5)
    assert found[0]["driver"] > before + (held.nbytes >> 21)
    assert captioning.SERVER not in found[0]
    peaks = [Counter({"driver": n, "ray::A": 2 * n}) for n in (5, 1, 9)]
    assert processes.middle(peaks) == {"driver": 5, "ray::A": 10}


def test_a_process_is_known_by_its_command_line():
    assert processes.kind_of(os.getpid(), ["pytest"]) == "driver"
    assert processes.kind_of(1, ["ray::MapWorker(MapBatches(Predictor))"]) == "ray::MapWorker"
    assert processes.kind_of(1, ["python", "-P", "-m", "pipelines.reading.sandbox.jail", "3"]) == "sandbox.jail"
    assert processes.kind_of(1, ["/opt/other", "--way"]) == "/opt/other --way"


def test_requests_are_those_of_any_client(s3_server, s3):
    write_deltalake(f"{s3}/table", pa.table({"a": [1, 2]}))
    storage.write_bytes(f"{s3}/object", b"x", storage.anything)
    before = s3_server.requests()
    storage.read_bytes(f"{s3}/object")
    assert before < s3_server.requests() <= before + 2
    before = s3_server.requests()
    DeltaTable(f"{s3}/table")
    assert s3_server.requests() > before


# ---- what several translators agree on -------------------------------------------------------------------------------
def test_translators_together_find_what_their_mean_probability_is_highest_of(tmp_path: Path) -> None:
    nets, texts = [tiny.translator(seed) for seed in range(3)], tiny.sentences(40, 7)
    assert distilling.translate(nets[:1] * 2, texts) == nets[0].translate(texts)
    for net in nets:
        net.decoding = replace(net.decoding, beam_size=1, max_length=1)
    preprocess = nets[0].preprocess(nets[0].config, nets[0].assets)
    batch = nets[0].collate([preprocess(Inputs(None, {"en": text}), with_target=False) for text in texts])
    likely = []
    with torch.inference_mode():
        for net in nets:
            state, memory = net.encode(batch)
            memory = net.decoder.look_up(memory, [1] * len(texts), net.decoding.search_options())
            likely.append(net.decoder.step(torch.full((len(texts),), BOS), state, memory)[0].exp())
    together = torch.stack(likely).mean(0)
    together[:, :EOS] = 0  # symbols that no text has
    words = together.argmax(1).tolist()
    expected = [nets[0]._target.decode([] if word == EOS else [word]) for word in words]
    assert distilling.translate(nets, texts) == expected != nets[0].translate(texts)
    nets[0].assets = {}
    with pytest.raises(ValueError, match="have not one vocabulary"):
        distilling.translate(nets, texts)


def test_pairs_and_what_was_made_of_them_are_written(tmp_path: Path) -> None:
    models = [Path(tiny.write_translator(str(tmp_path / str(seed)), seed)) for seed in (1, 2)]
    pairs = [{"id": str(i), "en": text, "de": text} for i, text in enumerate(tiny.sentences(5))]
    (tmp_path / "train").mkdir()
    whole = gzip.compress("".join(json.dumps(pair) + "\n" for pair in pairs).encode())
    (tmp_path / "train" / "a.jsonl.gz").write_bytes(whole)
    distilling.main(distilling.Options(tmp_path / "train", tmp_path / "out", tuple(models)))
    assert (tmp_path / "out" / "a.jsonl.gz").read_bytes() == whole
    with gzip.open(tmp_path / "out" / "made-a.jsonl.gz", "rt") as stream:
        made = [json.loads(line) for line in stream]
    assert [(row["id"], row["en"]) for row in made] == [(f"made-{pair['id']}", pair["en"]) for pair in pairs]
    nets = [artifacts.load_hybrid(str(model)) for model in models]
    assert [row["de"] for row in made] == distilling.translate(nets, [pair["en"] for pair in pairs])
