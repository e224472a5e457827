"""Trains, or searches with, this project's translator on given tokens: asked by `tests.benchmarks.translating`
and `tests.benchmarks.stepping`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from hybrid_models.contract import half_type, to_device
from hybrid_models.inputs import Sample
from hybrid_models.translator.decoding import TranslatorDecoding
from hybrid_models.translator.preprocess import TranslatorConfig  # as earlier checkouts have it
from hybrid_models.translator.translator import Translator
from pipelines.training.loop import step
from tests.benchmarks.figures import clock
from tests.benchmarks.scripts.captioner import measured

WORDS = 30_000


def make(question: dict[str, Any]) -> Translator:
    """The recipe's net with a vocabulary of made-up words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(WORDS)]
    texts = [f"de\t{' '.join(draw.choices(words, k=12))}" for _ in range(WORDS)]
    config = TranslatorConfig(dropout=question["dropout"], vocab_size=question["vocabulary"])
    torch.manual_seed(0)
    return Translator(config, Translator.learn_assets(config, texts))


def learning(hybrid: Translator, device: torch.device) -> Callable[[list[Sample]], Tensor]:
    """A step of a training on a batch, which returns its loss."""
    optimizer = torch.optim.AdamW(hybrid.parameters(), lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=half_type(device) is torch.float16)
    hybrid.train()

    def work(batch: list[Sample]) -> Tensor:
        with record_function("## forward"):
            loss = hybrid(to_device(hybrid.collate(batch), device))
        with record_function("## backward"):
            scaler.scale(loss.total / loss.terms).backward()
        with record_function("## optimizer"):
            step(hybrid, optimizer, 1e-4, 1.0, scaler)
        return loss.total.detach() / loss.terms

    return work


def searching(hybrid: Translator, device: torch.device, beam: int, length: int) -> Callable[[list[Sample]], float]:
    """A search for texts of one length, which returns their mean score."""
    decoding = TranslatorDecoding(beam_size=beam, max_length=length)
    hybrid.eval()

    def work(batch: list[Sample]) -> float:
        sources = hybrid.collate([{"source": pair["source"]} for pair in batch])
        found = hybrid.predict(to_device(sources, device), decoding)
        assert all(one["target_tokens"] == length for one in found)
        return sum(one["score"] for one in found) / len(found)

    return work


def main(question: dict[str, Any]) -> dict[str, Any]:
    """Tokens (or sentences) a second, and the number of weights; or what is `measured` of each batch."""
    torch.set_num_threads(question["threads"])
    device = torch.device(question["device"])
    hybrid = make(question).to(device)
    batches = [
        [{"source": np.asarray(source), "target": np.asarray(target)} for source, target in batch]
        for batch in question["batches"]
    ]
    if question["what"] == "train":
        work = learning(hybrid, device)
        count = sum(len(pair["target"]) + 1 for batch in batches for pair in batch)
    else:
        work = searching(hybrid, device, question["beam"], question["length"])
        count = sum(map(len, batches))
    if "profile" in question:
        return measured(lambda number: float(work(batches[number])), len(batches), question["profile"])
    for batch in batches[:2]:
        work(batch)
    began = clock()
    for batch in batches:
        work(batch)
    return {"weights": sum(p.numel() for p in hybrid.parameters()), "rate": count / (clock() - began)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
