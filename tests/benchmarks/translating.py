"""How fast a translator of 6.7 M weights trains and searches, beside JoeyNMT's of as many.

Both get the same made-up tokens in the same batches, in the lengths that Multi30k's sentences have, the same device,
threads, torch and allocator; nets are untrained and write `LENGTH` tokens for each sentence, so that both make equal
steps. Ours trains in bfloat16 where the hardware computes in it, and searches in float32; JoeyNMT does both in both. Of
as many weights its output layer has more (414 by 6,000, where ours is 256 by 6,000 and the embedding, too).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_models.contract import bf16_is_fast
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, device, in_turn, sizes

SCRIPTS = Path(__file__).parent / "scripts"
VOCABULARY = 6000
LENGTH = 20
WEIGHTS = 6.7e6
ROUNDS = 3


def batches(count: int, size: int) -> list[list[tuple[list[int], list[int]]]]:
    """Batches of pairs of nearly the same length, as training and nights make them; tokens 5 … 5999, end symbols not
    included."""
    draw = np.random.default_rng(0)
    lengths = np.sort(np.clip(draw.normal(14, 4, count * size).round().astype(int), 5, 40))
    pairs = [
        (draw.integers(5, VOCABULARY, n).tolist(), draw.integers(5, VOCABULARY, max(5, n + 1)).tolist())
        for n in lengths
    ]
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [groups[i] for i in draw.permutation(count)]


def rows(full: bool, scratch: Path) -> list[Row]:
    """Training, beam 5 and greedy; JoeyNMT in float32, and in bfloat16 where the hardware computes in it."""
    common = {
        "vocabulary": VOCABULARY, "threads": os.cpu_count(), "length": LENGTH, "dropout": 0.4, "device": str(device()),
    }  # fmt: skip
    train, search = sizes().training, sizes().searching
    questions: dict[str, tuple[dict[str, Any], str, float]] = {
        f"training, batches of {train}": ({"what": "train", "batches": batches(30, train)}, "target tokens/s", 2.5),
        f"beam 5, batches of {search}": (
            {"what": "search", "beam": 5, "batches": batches(4, search)}, "sentences/s", 3.0,
        ),
        f"greedy, batches of {search}": (
            {"what": "search", "beam": 1, "batches": batches(10, search)}, "sentences/s", 2.5,
        ),
    }  # fmt: skip
    precisions = [False, True] if bf16_is_fast(device()) else [False]
    made = []
    for what, (question, unit, goal) in questions.items():
        asked = {**common, **question}
        measures = {"ours": partial(rate, "translator.py", None, asked)}
        if full:
            for bf16 in precisions:
                name = f"JoeyNMT 2.3, {'bfloat16' if bf16 else 'float32'}"
                measures[name] = partial(rate, "joeynmt_peer.py", "joeynmt", {**asked, "bf16": bf16})
        found = in_turn(ROUNDS, measures)
        ours = found.pop("ours")
        made += [Row(what, ours, unit, reference, name, goal_times=goal) for name, reference in found.items()]
        made += [] if found else [Row(what, ours, unit)]
    return made


def rate(script: str, peer: str | None, question: dict[str, Any]) -> float:
    """Tokens or sentences a second, of a net of as many weights as are spoken of."""
    said = peers.answer(SCRIPTS / script, question, peer)
    assert abs(said["weights"] / WEIGHTS - 1) < 0.02, said["weights"]
    return float(said["rate"])
