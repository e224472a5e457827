"""What a step of a training takes, against another checkout of this project, and where its time goes.

    python -m tests.benchmarks.stepping [--other CHECKOUT] [--rewards] [--rounds 2] [--steps 15] [--threads 1]
    python -m tests.benchmarks.stepping --profile operators
    python -m tests.benchmarks.stepping --hybrid translator [--beam 5] [--profile operators]

The captioner and its captions are those of the line `fitting`, in one process without Ray; features are kept, made up
ones. The translator and its sentences are those of the line `translating`, whose search is measured with `--beam`.

Each round starts one process for each checkout, in turn, with a worker's settings. A process takes some steps of an
epoch to warm up, and the same once more against the clock. Of each step the fastest round counts, and of these the
median: seconds of the clock, and of the processor, which others on the same cores change less. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from pipelines.cluster.connection import worker_env
from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import SIZES
from tests.benchmarks.fitting import STEPS, WORDS
from tests.benchmarks.translating import LENGTH, VOCABULARY, batches

SCRIPTS = Path(__file__).parent / "scripts"
MEASURES = ("seconds", "cpu")
CPU = SIZES["cpu"]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    other: str = ""
    """Another checkout, such as one of an earlier commit, whose modules have the same names."""
    hybrid: Literal["captioner", "translator"] = "captioner"
    """What is trained."""
    rewards: bool = False
    """Steps of a captioner on rewards instead of references."""
    beam: int = 0
    """Of a translator: search for a batch's texts with so many beams instead, each as one step."""
    rounds: int = 2
    """Processes of each."""
    steps: int = STEPS
    """Of an epoch, which has so many."""
    threads: int = os.cpu_count() or 1
    """Of torch."""
    profile: Literal["", "operators", "shapes"] = ""
    """Print torch's profile of an epoch instead: by operators, or by the shapes that they are given, too."""


def main(options: Options) -> None:
    """Measures and prints."""
    if options.profile:
        print(measure(tiny.ROOT, options)["table"])
        return
    checkouts = {"this": tiny.ROOT, **({"other": Path(options.other).resolve()} if options.other else {})}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, checkout in checkouts.items():
            found[name].append(measure(checkout, options))
    print(json.dumps({of: report(of, found) for of in MEASURES} | {"losses": losses(found)}, indent=2))


def measure(checkout: Path, options: Options) -> dict[str, Any]:
    """What a process of this checkout says."""
    asked = of_captioner(options) if options.hybrid == "captioner" else of_translator(options)
    question = {"threads": options.threads, "profile": options.profile, **asked}
    env = peers.clean(**worker_env(), PYTHONPATH=str(checkout))
    said = peers.finish([sys.executable, str(SCRIPTS / f"{options.hybrid}.py")], checkout, env, json.dumps(question))
    answer: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return answer


def of_captioner(options: Options) -> dict[str, Any]:
    """What its script is asked."""
    batch = CPU.fitting
    return {
        "words": WORDS, "samples": STEPS * batch, "batch": batch, "steps": options.steps, "rewards": options.rewards,
    }  # fmt: skip


def of_translator(options: Options) -> dict[str, Any]:
    """What its script is asked."""
    size = CPU.searching if options.beam else CPU.training
    return {
        "vocabulary": VOCABULARY, "dropout": 0.4, "device": "cpu", "batches": batches(options.steps, size),
        "what": "search" if options.beam else "train", "beam": options.beam, "length": LENGTH,
    }  # fmt: skip


def report(of: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds of a step of each checkout, and how many times as fast this one is."""
    steps = {name: [min(step) for step in zip(*(one[of] for one in each), strict=True)] for name, each in found.items()}
    medians = {name: round(statistics.median(each), 3) for name, each in steps.items()}
    return medians | ({"times": round(medians["other"] / medians["this"], 2)} if "other" in medians else {})


def losses(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The mean loss of each checkout's epoch, in which dropout is drawn alike."""
    return {name: statistics.mean(each[0]["losses"]) for name, each in found.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
