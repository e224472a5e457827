"""The translator: a bidirectional RNN reads a sentence, an RNN with additive attention writes it in another language.

Bahdanau, Cho, Bengio 2015, with input feeding (Luong et al. 2015), subword tokens (Sennrich et al. 2016), label
smoothing (Szegedy et al. 2016) and tied target embeddings (Press & Wolf 2017).
"""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from hybrid_models.contract import Batch, Hybrid, Loss, autocast, module_device, to_device
from hybrid_models.explanations import Alignment, Explanation
from hybrid_models.inputs import Inputs, Sample
from hybrid_models.interface import DecodingConfig, HybridConfig
from hybrid_models.layers.recurrent import STATES, BidirectionalRNN, initial_state
from hybrid_models.layers.word_decoder import word_decoder
from hybrid_models.scores.texts import Tally, bleu, chrf
from hybrid_models.search.beam import Hypothesis, State, inference
from hybrid_models.shapes import width_on
from hybrid_models.symbols import BOS, EOS, PAD
from hybrid_models.text import Tokenizer, pad_rows, rows_of_words, unpack_json
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.decoding import TranslatorDecoding
from hybrid_models.translator.interface import TranslatorInterface
from hybrid_models.translator.preprocess import (
    SOURCE_TOKENIZER,
    TOKENIZER,
    tokenizers,
)


class Translator(TranslatorInterface, Hybrid):
    """Sentence in, sentence out. See `Hybrid` for the methods' contract.

    Raises:
        UsageError: the assets have no (valid) tokenizer.
    """

    def __init__(self, config: TranslatorConfig, assets: Mapping[str, str]) -> None:
        super().__init__(config, assets)
        self.config: TranslatorConfig = config
        self._source, self._target = tokenizers(config, assets)
        self.embedding = nn.Embedding(len(self._source), config.embedding_size, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=config.embedding_size**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        inputs = chain([config.embedding_size], repeat(config.hidden_size, config.encoder_layers - 1))
        self.encoder = nn.ModuleList(BidirectionalRNN(size, config.hidden_size // 2, config.cell) for size in inputs)
        self.bridge = nn.Linear(config.hidden_size, STATES[config.cell] * config.hidden_size)
        self.decoder = word_decoder(
            len(self._target),
            config.embedding_size,
            config.hidden_size,
            config.hidden_size,
            config.attention_size if config.attention else None,
            config.cell,
            config.dropout,
            config.tie_embeddings,
        )

    @classmethod
    def learn_assets(cls, config: HybridConfig, texts: Iterable[str]) -> dict[str, str]:
        config = cast(TranslatorConfig, config)
        sides = (text.split("\t", 1) for text in texts)
        if config.joint_vocabulary:
            return {TOKENIZER: Tokenizer.train((text for _, text in sides), config.vocab_size).to_json()}
        texts_of: dict[str, list[str]] = {"source": [], "target": []}
        for side, text in sides:
            texts_of[side].append(text)
        assets = {"source": SOURCE_TOKENIZER, "target": TOKENIZER}
        return {asset: Tokenizer.train(texts_of[side], config.vocab_size).to_json() for side, asset in assets.items()}

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """`source` int64 [B,S] with end symbols, `sources`, a list of the same without padding, `source_length` [B];
        `target` int64 [B,T] with start and end, and `written` int64 [M], the places of its tokens in [B·(T-1)]."""
        sources = [sample["source"] for sample in samples]
        batch: Batch = {
            "source": torch.from_numpy(self._padded(sources)),
            "sources": sources,
            "source_length": torch.tensor(list(map(len, sources))),
        }
        if all("target" in sample for sample in samples):
            targets = [np.concatenate([[BOS], sample["target"], [EOS]]) for sample in samples]
            padded = self._padded(targets)
            batch["target"] = torch.from_numpy(padded)
            batch["written"] = self.decoder.written(padded)
        return batch

    def _padded(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        return pad_rows(rows, width_on(module_device(self), max(map(len, rows))))

    def encode(self, batch: Batch) -> tuple[State, State]:
        """The decoder's initial state [B,D] and its memory: keys [B,S,D], mask [B,S]. Padding changes neither."""
        states_BSK = self.dropout(self.embedding(batch["source"]))
        for layer in self.encoder:
            states_BSK, last_BK = layer(states_BSK, batch["source_length"])
            states_BSK = self.dropout(states_BSK)
        memory = {"keys": states_BSK, "mask": batch["source"] != PAD}
        return initial_state(last_BK, self.config.cell, self.bridge), self.decoder.prepare(memory)

    def forward(self, batch: Batch) -> Loss:
        """Negative log likelihood of the target tokens, end symbols included (smoothed in training mode)."""
        with autocast(module_device(self)):
            state, memory = self.encode(batch)
            smoothing = self.config.label_smoothing if self.training else 0.0
            return self.decoder.loss(batch["target"], batch["written"], state, memory, smoothing)

    def predict(self, batch: Batch, decoding: DecodingConfig) -> list[dict[str, Any]]:
        decoding = cast(TranslatorDecoding, decoding)
        with inference(self):
            found = self._search(*self.encode(batch), batch, decoding)
        return [
            {
                "source": self._source.decode(source),
                "translation": self._target.decode(best.tokens),
                "score": best.score,
                "source_tokens": len(source) - 1,
                "target_tokens": len(best.tokens),
            }
            for source, best in zip(batch["sources"], found, strict=True)
        ]

    def _search(self, state: State, memory: State, batch: Batch, decoding: TranslatorDecoding) -> list[Hypothesis]:
        limits = [decoding.limit(len(source)) for source in batch["sources"]]
        return self.decoder.search(state, memory, limits, decoding.search_options())

    def explain(self, samples: Sequence[Sample], decoding: DecodingConfig) -> list[Explanation]:
        decoding = cast(TranslatorDecoding, decoding)
        batch = to_device(self.collate(samples), module_device(self))
        with inference(self):
            state, memory = self.encode(batch)
            found = self._search(state, memory, batch, decoding)
            looks = self.decoder.attend([best.tokens for best in found], state, memory)
        return [
            self._aligned(source, best, None if looks is None else looks[i])
            for i, (source, best) in enumerate(zip(batch["sources"], found, strict=True))
        ]

    def _aligned(self, source: np.ndarray, best: Hypothesis, looks: np.ndarray | None) -> Alignment:
        """The words of both texts, with the attention weights [tokens,S] summed over the tokens of a source word."""
        words, starts = self._source.words(source.tolist())
        target, target_starts = self._target.words([*best.tokens, EOS])
        if looks is None:
            return Alignment(words, target[:-1], None)
        by_target = rows_of_words(looks[:, : len(source)], target_starts)
        return Alignment(words, target[:-1], np.add.reduceat(by_target, starts, axis=1))

    def translate(self, sentences: Sequence[str], batch_size: int = 64, **decoding: Any) -> list[str]:
        """Translates sentences, in order.

        Args:
            sentences: source texts.
            batch_size: sentences translated at a time.
            decoding: options of `TranslatorDecoding` that differ from the model's own, such as `beam_size=1`.

        Raises:
            BadSample: a sentence is empty or too long.
        """
        options = replace(self.decoding, **decoding)
        preprocess = self.preprocess(self.config, self.assets)
        samples = [preprocess(Inputs(None, {self.config.source: text}), with_target=False) for text in sentences]
        order = sorted(range(len(samples)), key=lambda i: int(samples[i]["length"]))
        translations = [""] * len(samples)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = to_device(self.collate([samples[i] for i in chosen]), module_device(self))
            for i, row in zip(chosen, self.predict(batch, options), strict=True):
                translations[i] = row["translation"]
        return translations

    def record(self, sample: Sample, output: Mapping[str, Any]) -> dict[str, Any]:
        """`hypothesis`, `references` (raw, one) and `source`."""
        references = [unpack_json(sample["reference"])]
        return {"hypothesis": output["translation"], "references": references, "source": output["source"]}

    @classmethod
    def summarise(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Corpus BLEU and chrF with their signatures; the baseline copies the source."""
        tallies = cls.tallies(records)
        copies = _tallies([record["source"] for record in records], [record["references"] for record in records])
        return {
            "metrics": {name: tally.total for name, tally in tallies.items()},
            "baseline": {"name": "copy the source", **{name: tally.total for name, tally in copies.items()}},
            "details": {
                "samples": len(records),
                **{f"{name}_signature": tally.signature for name, tally in tallies.items()},
            },
        }

    @classmethod
    def part(cls, shard: str, record: Mapping[str, Any]) -> str:
        """The length of the source in words, in tens."""
        first = (max(len(record["source"].split()), 1) - 1) // 10 * 10
        return f"{first + 1}-{first + 10} words"

    @classmethod
    def tallies(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
        return _tallies([record["hypothesis"] for record in records], [record["references"] for record in records])


def _tallies(hypotheses: list[str], references: list[list[str]]) -> dict[str, Tally]:
    return {"bleu": bleu(hypotheses, references), "chrf": chrf(hypotheses, references)}
