"""Pairs from which one translator learns what several agree on: the training pairs, and their sources with what has the
highest mean of the models' probabilities (ensembles: Freitag et al. 2017, "Ensemble distillation for neural machine
translation"; translations as data: Kim and Rush 2016, "Sequence-level knowledge distillation").

    python -m tests.benchmarks.distilling --train lake/multi30k/train --out lake/multi30k-distilled/train
        --models lake/runs/en-de-1/artifact lake/runs/en-de-2/artifact

The models have to have one vocabulary, as those that differ in their seed alone have. Reads and writes `.jsonl.gz` on a
disk; `val` is the data set's own.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from hybrid_models.contract import to_device
from hybrid_models.inputs import Inputs
from hybrid_models.search.beam import State, in_places, search
from hybrid_models.translator.translator import Translator
from pipelines.models.artifacts import load_hybrid

BATCH = 64


@dataclass(frozen=True)
class Options:
    """What is translated by what."""

    train: Path
    """The folder of a data set's training pairs."""
    out: Path
    """A folder that is not there yet."""
    models: tuple[Path, ...]
    """Artifacts of translators."""


def main(options: Options) -> None:
    """Writes each shard as it is, and beside it the same sources with translations."""
    nets = [load_hybrid(str(model)) for model in options.models]
    options.out.mkdir(parents=True)
    same = rows = 0
    for shard in sorted(options.train.glob("*.jsonl.gz")):
        shutil.copy(shard, options.out / shard.name)
        with gzip.open(shard, "rt", encoding="utf-8") as stream:
            pairs = [json.loads(line) for line in stream]
        source, target = nets[0].config.source, nets[0].config.target
        found = translate(nets, [pair[source] for pair in pairs])
        with gzip.open(options.out / f"made-{shard.name}", "wt", encoding="utf-8") as stream:
            for pair, text in zip(pairs, found, strict=True):
                same, rows = same + (text == pair[target]), rows + 1
                made = {"id": f"made-{pair['id']}", source: pair[source], target: text}
                stream.write(json.dumps(made, ensure_ascii=False) + "\n")
    print(json.dumps({"rows": rows, "as_the_reference": round(same / rows, 4)}))


def translate(nets: Sequence[Translator], texts: Sequence[str]) -> list[str]:
    """What several translators of one vocabulary find together, by the first one's decoding options.

    Raises:
        ValueError: they have not one vocabulary.
    """
    first = nets[0]
    if any(net.assets != first.assets for net in nets):
        raise ValueError("the models have not one vocabulary: choose those that differ in their seed alone")
    preprocess = first.preprocess(first.config, first.assets)
    samples = [preprocess(Inputs(None, {first.config.source: text}), with_target=False) for text in texts]
    order = sorted(range(len(samples)), key=lambda i: int(samples[i]["length"]))
    found = [""] * len(texts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = first.collate([samples[i] for i in chosen])
        for i, tokens in zip(chosen, _search(nets, batch), strict=True):
            found[i] = first._target.decode(tokens)
    return found


@torch.inference_mode()
def _search(nets: Sequence[Translator], batch: dict[str, Any]) -> list[list[int]]:
    """The best tokens of each source."""
    decoding = nets[0].decoding
    limits, options = [decoding.limit(len(source)) for source in batch["sources"]], decoding.search_options()
    state: State = {}
    memory: State = {}
    for number, net in enumerate(nets):
        own, kept = net.eval().encode(to_device(batch, torch.device("cpu")))
        state |= _named(number, own)
        memory |= _named(number, net.decoder.look_up(in_places(kept), limits, options))

    def step(tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        logs, after = [], State()
        for number, net in enumerate(nets):
            log, new = net.decoder.step(tokens, _of(number, state), _of(number, memory))
            logs.append(log)
            after |= _named(number, new)
        return torch.stack(logs).logsumexp(0) - math.log(len(nets)), after

    return [best.tokens for best in search(step, state, memory, limits, options)]


def _named(number: int, tensors: State) -> State:
    return {f"{number}/{name}": tensor for name, tensor in tensors.items()}


def _of(number: int, tensors: State) -> State:
    own = f"{number}/"
    return {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}


if __name__ == "__main__":
    main(tyro.cli(Options))
