"""How long people wait for an answer: a small night, the same again, lists, a question, help texts, the demo.

    python -m tests.benchmarks.waiting [--other FOLDER/.venv/bin/hybrid] [--rounds 3] [--demo]

Each command is started from nothing, `--rounds` times in turn with the same command of another installation, and the
smallest time of each counts: noise only adds. A loop of 20 million additions before and after tells how fast the
machine is just now. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro

from hybrid_models.translator.decoding import TranslatorDecoding
from pipelines.models import artifacts, registry
from pipelines.models.tracking import Tracker
from tests import tiny

DS = "2026-01-01"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    other: str = ""
    """The console script of another installation, such as one of an earlier commit."""
    rounds: int = 3
    """How often each command is started."""
    demo: bool = False
    """`hybrid demo`, too, once."""


def main(options: Options) -> None:
    """Measures and prints."""
    scripts = {"this": str(Path(sys.executable).with_name("hybrid"))}
    if options.other:
        scripts["other"] = str(Path(options.other).resolve())
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pace = [additions()]
    with tempfile.TemporaryDirectory() as scratch:
        lake = Path(scratch)
        prepare(lake)
        for _ in range(options.rounds):
            for name, script in scripts.items():
                shutil.rmtree(lake / "tables", ignore_errors=True)
                for what, argv in commands(lake).items():
                    times[what][name].append(seconds([script, *argv], lake))
        if options.demo:
            for name, script in scripts.items():
                times["demo"][name].append(seconds([script, "demo", "--out", f"{scratch}/demo-{name}"], lake))
    pace.append(additions())
    smallest = {what: {name: round(min(found), 2) for name, found in each.items()} for what, each in times.items()}
    print(json.dumps({"seconds": smallest, "additions": pace}, indent=2))


def prepare(lake: Path) -> None:
    """90 sentences in three shards, and a registered translator, which is the champion."""
    tiny.write_sentences(f"{lake}/sentences", shards=3, rows=30)
    tracker = Tracker(f"sqlite:///{lake}/mlflow.db")
    tracker.start("train", {}, {})
    files = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=3, max_length=20), {}, "Card.\n")
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
        "help": ["--help"],
        "infer captions --help": ["infer", "captions", "--help"],
        "train captioner-demo --help": ["train", "captioner-demo", "--help"],
        "nightly captions --help": ["nightly", "captions", "--help"],
    }


def seconds(argv: list[str], lake: Path) -> float:
    """Of the wall clock, until the command has ended well."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{lake}/mlflow.db"}
    env.pop("RAY_ADDRESS", None)
    started = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True, env=env, cwd=lake)
    return time.perf_counter() - started


def additions() -> float:
    """Seconds of a loop of 20 million additions."""
    started, total = time.perf_counter(), 0
    for number in range(20_000_000):
        total += number
    return round(time.perf_counter() - started, 2)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
