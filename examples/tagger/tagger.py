"""Tagger: a GRU over bytes → which of some tags a sentence has. The smallest hybrid that does everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hybrid_models.contract import Batch, Hybrid, Loss
from hybrid_models.explanations import Explanation
from hybrid_models.inputs import Sample
from hybrid_models.interface import DecodingConfig, HybridConfig
from hybrid_models.scores.texts import Tally
from hybrid_models.tagger.config import TaggerConfig
from hybrid_models.tagger.decoding import TaggerDecoding
from hybrid_models.tagger.interface import TaggerInterface
from hybrid_models.text import unpack_json


class Tagger(TaggerInterface, Hybrid):
    """See `Hybrid` for the methods' contract."""

    def __init__(self, config: HybridConfig, assets: Mapping[str, str]) -> None:
        super().__init__(config, assets)
        self.config: TaggerConfig = cast(TaggerConfig, config)
        size = self.config.hidden_size
        self.embedding = nn.Embedding(256, size)
        self.encoder = nn.GRU(size, size, batch_first=True)
        self.output = nn.Linear(size, len(self.config.tags))

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """`text` int64 [B,S], `length` [B], `sources`, a list of the texts; for training `tag` [B]."""
        texts = [torch.from_numpy(sample["text"].astype(np.int64)) for sample in samples]
        batch: Batch = {
            "text": nn.utils.rnn.pad_sequence(texts, batch_first=True),
            "length": torch.tensor([len(text) for text in texts]),
            "sources": [unpack_json(sample["source"]) for sample in samples],
        }
        if all("tag" in sample for sample in samples):
            batch["tag"] = torch.tensor([int(sample["tag"]) for sample in samples])
        return batch

    def _logits(self, batch: Batch) -> torch.Tensor:
        states, _ = self.encoder(self.embedding(batch["text"]))
        return self.output(states[torch.arange(len(states)), batch["length"] - 1])

    def forward(self, batch: Batch) -> Loss:
        total = nn.functional.cross_entropy(self._logits(batch), batch["tag"], reduction="sum")
        return Loss(total, total.new_full((), len(batch["tag"])))

    def predict(self, batch: Batch, decoding: DecodingConfig) -> list[dict[str, Any]]:
        least = cast(TaggerDecoding, decoding).least_probability
        with torch.no_grad():
            probability, best = self._logits(batch).softmax(1).max(1)
        return [
            {"source": source, "tag": self.config.tags[number] if share >= least else None, "probability": share}
            for source, share, number in zip(batch["sources"], probability.tolist(), best.tolist(), strict=True)
        ]

    def record(self, sample: Sample, output: Mapping[str, Any]) -> dict[str, Any]:
        return {"tag": output["tag"], "true": self.config.tags[int(sample["tag"])]}

    def explain(self, samples: Sequence[Sample], decoding: DecodingConfig) -> list[Explanation]:
        return []

    @classmethod
    def summarise(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ((_, commonest),) = Counter(record["true"] for record in records).most_common(1)
        baseline = {"name": "commonest tag", "accuracy": commonest / len(records)}
        accuracy = cls.tallies(records)["accuracy"].total
        return {"metrics": {"accuracy": accuracy}, "baseline": baseline, "details": {"samples": len(records)}}

    @classmethod
    def tallies(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
        hits = np.array([[record["tag"] == record["true"], 1] for record in records], np.float64)
        return {"accuracy": Tally(hits, lambda sums: float(sums[0] / sums[1]))}
