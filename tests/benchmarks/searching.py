"""How fast texts are searched for, against another checkout of this project, and whether the same ones are found.

    python -m tests.benchmarks.searching --model lake/runs/translator-multi30k/artifact --sentences val.en.gz
        [--other CHECKOUT] [--rounds 3] [--threads 1]

Each round starts one process for each checkout, in turn; a process translates all sentences once to warm up, and once
for each beam size against the clock. Medians count. Prints one JSON object.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tests import tiny

BEAMS = (5, 1)
MEASURE = """
import json, sys, time
import torch
from pipelines.artifacts import load_hybrid
model, sentences, threads, beams = json.loads(sys.argv[1])
torch.set_num_threads(threads)
translator = load_hybrid(model)
texts = [line.strip() for line in open(sentences, encoding="utf-8")]
translator.translate(texts, beam_size=beams[0])
for beam in beams:
    began = time.perf_counter()
    found = translator.translate(texts, beam_size=beam)
    print(json.dumps({"beam": beam, "rate": len(texts) / (time.perf_counter() - began), "found": found}))
"""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str
    """A translator's artifact folder."""
    sentences: str
    """A text file, or one in gzip, with a sentence on each line."""
    other: str = ""
    """Another checkout, such as one of an earlier commit."""
    rounds: int = 3
    """Processes of each."""
    threads: int = 1
    """Of torch, as a night's actors have."""


def main(options: Options) -> None:
    """Measures and prints."""
    checkouts = {"this": tiny.ROOT, **({"other": Path(options.other).resolve()} if options.other else {})}
    rates: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[int, dict[str, list[str]]] = defaultdict(dict)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as plain:
        opened = gzip.open if options.sentences.endswith(".gz") else open
        with opened(options.sentences, "rt", encoding="utf-8") as stream:
            plain.write(stream.read())
        plain.flush()
        for _ in range(options.rounds):
            for name, checkout in checkouts.items():
                for line in measure(checkout, options, plain.name):
                    rates[line["beam"]][name].append(line["rate"])
                    texts[line["beam"]][name] = line["found"]
    print(json.dumps({f"beam {beam}": report(rates[beam], texts[beam]) for beam in BEAMS}, indent=2))


def measure(checkout: Path, options: Options, sentences: str) -> list[dict[str, Any]]:
    """What a process of this checkout says, a line for each beam."""
    arguments = json.dumps([str(Path(options.model).resolve()), sentences, options.threads, BEAMS])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, arguments], cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"beam"')]


def report(rates: dict[str, list[float]], texts: dict[str, list[str]]) -> dict[str, Any]:
    """Medians, their ratio, and how many texts are the same."""
    found: dict[str, Any] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    if "other" in found:
        same = sum(a == b for a, b in zip(texts["this"], texts["other"], strict=True))
        found |= {"ratio": round(found["this"] / found["other"], 2), "same": f"{same} of {len(texts['this'])}"}
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
