"""Trains, or searches with, this project's translator on given tokens: asked by `tests.benchmarks.translating`."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np
import torch

from hybrid_models.contract import to_device
from hybrid_models.translator.decoding import TranslatorDecoding
from hybrid_models.translator.preprocess import TranslatorConfig
from hybrid_models.translator.translator import Translator
from pipelines.training.loop import step
from tests.benchmarks.figures import clock

WORDS = 30_000


def make(question: dict[str, Any]) -> Translator:
    """The recipe's net with a vocabulary of made-up words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(WORDS)]
    texts = [f"de\t{' '.join(draw.choices(words, k=12))}" for _ in range(WORDS)]
    config = TranslatorConfig(dropout=question["dropout"], vocab_size=question["vocabulary"])
    torch.manual_seed(0)
    return Translator(config, Translator.learn_assets(config, texts))


def main(question: dict[str, Any]) -> dict[str, Any]:
    """Tokens (or sentences) a second, and the number of weights."""
    torch.set_num_threads(question["threads"])
    device = torch.device(question["device"])
    hybrid = make(question).to(device)
    batches = [
        [{"source": np.asarray(source), "target": np.asarray(target)} for source, target in batch]
        for batch in question["batches"]
    ]
    if question["what"] == "train":
        optimizer = torch.optim.AdamW(hybrid.parameters(), lr=1e-4, fused=True)
        hybrid.train()

        def work(batch: list[dict[str, Any]]) -> int:
            loss = hybrid(to_device(hybrid.collate(batch), device))
            (loss.total / loss.terms).backward()
            step(hybrid, optimizer, 1e-4, 1.0, torch.amp.GradScaler(device.type, enabled=False))
            return sum(len(pair["target"]) + 1 for pair in batch)
    else:
        hybrid.eval()
        decoding = TranslatorDecoding(beam_size=question["beam"], max_length=question["length"])

        def work(batch: list[dict[str, Any]]) -> int:
            sources = hybrid.collate([{"source": pair["source"]} for pair in batch])
            found = hybrid.predict(to_device(sources, device), decoding)
            assert all(one["target_tokens"] == question["length"] for one in found)
            return len(found)

    for batch in batches[:2]:
        work(batch)
    began = clock()
    done = sum(map(work, batches))
    return {"weights": sum(p.numel() for p in hybrid.parameters()), "rate": done / (clock() - began)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
