"""Trains this project's captioner on kept features, step by step: asked by `tests.benchmarks.stepping`."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.captioner.preprocess import CaptionerConfig  # as for BOS
from hybrid_models.inputs import Sample
from hybrid_models.search.options import BOS, EOS  # where earlier checkouts have them, too
from hybrid_models.text import pad_rows
from pipelines.training.batches import plan_epoch


def make(question: dict[str, Any]) -> tuple[Captioner, list[Sample]]:
    """The recipe's net, and samples: features that mean nothing, captions of made-up words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(question["words"])]
    often = [1 / (rank + 3) for rank in range(len(words))]
    texts = [[" ".join(draw.choices(words, often, k=10)) for _ in range(5)] for _ in range(question["samples"])]
    config = CaptionerConfig(image_size=288, mirror=True, dropout=0.5, reward_share=0.5, freeze_encoder=True)
    torch.manual_seed(0)
    hybrid = Captioner(config, Captioner.learn_assets(config, [text for each in texts for text in each]))
    place = np.random.default_rng(0)
    samples = []
    for captions in texts:
        rows = [np.concatenate([[BOS], hybrid._tokenizer.encode(text, 60), [EOS]]) for text in captions]
        seen = {
            name: place.standard_normal((hybrid.encoder.cells, hybrid.encoder.channels)).astype(np.float16)
            for name in ("features", "mirrored_features")
        }
        samples.append({"captions": pad_rows(rows).astype(np.int32), "frame_count": np.asarray(1), **seen})
    return hybrid, samples


def measured(train: Callable[[int], float], steps: int, by: str) -> dict[str, Any]:
    """Seconds of the clock and of the processor of each step, and losses; or where the time goes.

    Args:
        train: takes the step of a number, and returns its loss.
        steps: how many there are; all are taken before they are measured.
        by: what torch's profile tells apart, "operators" or the "shapes" that they are given, too; "" for seconds.
    """
    for number in range(steps):
        train(number)  # a product compiles anew for each size not seen yet
    if by:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            for number in range(steps):
                train(number)
        averages = profiler.key_averages(group_by_input_shape=by == "shapes")
        rows = 45 if by == "operators" else 1000
        return {"table": averages.table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50)}
    seconds, cpu, losses = [], [], []
    for number in range(steps):
        began, spent = time.perf_counter(), time.process_time()
        losses.append(train(number))
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - spent)
    return {"seconds": seconds, "cpu": cpu, "losses": losses}


def main(question: dict[str, Any]) -> dict[str, Any]:
    """What is `measured` of an epoch's steps."""
    torch.set_num_threads(question["threads"])
    hybrid, samples = make(question)
    optimizer = torch.optim.AdamW([p for p in hybrid.parameters() if p.requires_grad], lr=1e-3, fused=True)
    lengths = np.asarray([sample["captions"].shape[1] for sample in samples])
    hybrid.train()
    hybrid.start_epoch(1 if question["rewards"] else 0, 2)
    plan = plan_epoch(lengths, question["batch"], 0, 0)[: question["steps"]]

    def train(number: int) -> float:
        torch.manual_seed(number)
        batch = hybrid.collate([samples[i] for i in plan[number]], np.random.default_rng(number))
        with record_function("## forward"):
            loss = hybrid(batch)
        with record_function("## backward"):
            (loss.total / loss.terms).backward()
        with record_function("## optimizer"):
            torch.nn.utils.clip_grad_norm_(hybrid.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.total.detach() / loss.terms)

    return measured(train, len(plan), question["profile"])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
