"""How long people wait for an answer: a small night, the same again, lists, a question, help texts.

Each command is started from nothing, `ROUNDS` times, with `--full` in turn with those of the commit that goals were set
against; medians count. `ray.init()` alone is what no command with a cluster can be faster than.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from hybrid_models.translator.decoding import TranslatorDecoding
from pipelines.models import artifacts, registry
from pipelines.models.tracking import Tracker
from tests import helps, tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row

DS = "2026-01-01"
ROUNDS = 3
RAY = "import ray; ray.init(include_dashboard=False, logging_level='ERROR'); ray.shutdown()"
GOALS = {
    "a night of 90 sentences": 11, "the same again": 3, "models": 1.5, "tables": 1.5, "query": 1.5, "--help": 0.3,
    "infer captions --help": 0.3, "train captioner-demo --help": 0.3, "nightly captions --help": 0.3,
    "slowest --help": 0.3,
}  # fmt: skip
"""Seconds."""


def rows(full: bool, scratch: Path) -> list[Row]:
    """A row for each command, Ray's own start, and the help text that takes longest."""
    prepare(scratch)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        trees = {"ours": tiny.ROOT}
        if full:
            trees["reference"] = stack.enter_context(peers.checkout(peers.BASELINE))
        for number in range(ROUNDS):
            for name, tree in list(trees.items())[:: 1 if number % 2 == 0 else -1]:
                shutil.rmtree(scratch / "tables", ignore_errors=True)
                for what, argv in commands(scratch).items():
                    # there, `hybrid` is `jobs.cli`
                    module = "jobs.cli" if name == "reference" else "jobs.command.cli"
                    found[what][name].append(seconds([sys.executable, "-m", module, *argv], scratch, tree))
            found["ray.init() and its end, alone"]["ours"].append(
                seconds([sys.executable, "-c", RAY], scratch, tiny.ROOT)
            )
    made = []
    for what, times in found.items():
        ours = statistics.median(times["ours"])
        made.append(Row(what, ours, "s", goal=GOALS.get(what)))
        if times["reference"]:
            made.append(Row(what, ours, "s", statistics.median(times["reference"]), f"commit {peers.BASELINE}"))
    return [*made, slowest(scratch)]


def prepare(lake: Path) -> None:
    """90 sentences in three shards, and a registered translator, which is the champion."""
    tiny.write_sentences(f"{lake}/sentences", shards=3, rows=30)
    tracker = Tracker(f"sqlite:///{lake}/mlflow.db")
    tracker.start("train", {}, {})
    files = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=3, max_length=20), {}, "Card.\n")
    files = peers.for_both(files)
    version = tracker.register("translator", files)
    tracker.finish()
    assert version is not None
    registry.promote(tracker.uri, "translator", version)


def commands(lake: Path) -> dict[str, list[str]]:
    """What people wait for → its arguments, in this order."""
    tables = ["--tables", f"{lake}/tables"]
    night = ["infer", "translations", "--input", f"{lake}/sentences", *tables, "--ds", DS]
    night += ["--model", "models:/translator@champion"]
    return {
        "a night of 90 sentences": night,
        "the same again": night,
        "models": ["models"],
        "tables": ["tables", *tables],
        "query": ["query", "SELECT count(*) FROM translations", *tables],
        "--help": ["--help"],
        "infer captions --help": ["infer", "captions", "--help"],
        "train captioner-demo --help": ["train", "captioner-demo", "--help"],
        "nightly captions --help": ["nightly", "captions", "--help"],
    }


def slowest(lake: Path) -> Row:
    """Of every command's help text, that which takes longest by the median of its rounds."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for words in helps.every():
            argv = [sys.executable, "-m", "jobs.command.cli", *words, "--help"]
            found[" ".join(words)].append(seconds(argv, lake, tiny.ROOT))
    medians = {name: statistics.median(times) for name, times in found.items()}
    name = max(medians, key=medians.__getitem__)
    return Row(f"slowest --help of {len(medians)} ({name})", medians[name], "s", goal=GOALS["slowest --help"])


def seconds(argv: list[str], lake: Path, tree: Path) -> float:
    """Of the wall clock, until the command has ended well."""
    env = peers.clean(MLFLOW_TRACKING_URI=f"sqlite:///{lake}/mlflow.db", PYTHONPATH=str(tree))
    started = time.perf_counter()
    peers.finish(argv, lake, env)
    return time.perf_counter() - started
