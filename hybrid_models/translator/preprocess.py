"""What a translator reads: its configuration, and how sentences become samples. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs, Preprocess, Sample
from hybrid_models.interface import HybridConfig
from hybrid_models.symbols import EOS
from hybrid_models.text import MIN_VOCABULARY, Tokenizer, clean_text, pack_json

TOKENIZER = "tokenizer.json"
SOURCE_TOKENIZER = "source_tokenizer.json"


@dataclass(frozen=True)
class TranslatorConfig(HybridConfig):
    """Architecture and preprocessing of a translator.

    Raises:
        UsageError: a size, rate or limit is out of its range.
    """

    learns_from_texts: ClassVar[bool] = True
    not_in_samples: ClassVar[frozenset[str]] = frozenset(
        {
            "vocab_size", "embedding_size", "hidden_size", "cell", "attention", "attention_size", "encoder_layers",
            "tie_embeddings", "dropout", "label_smoothing",
        }
    )  # fmt: skip

    source: str = "en"
    """Field with the sentence to translate; rows without it are read from `text`."""
    target: str = "de"
    """Field with its translation, for training and evaluation."""
    vocab_size: int = 6000
    """Most tokens of a vocabulary."""
    joint_vocabulary: bool = True
    """One vocabulary for both languages; otherwise one each (for languages that share no script)."""
    embedding_size: int = 256
    """Size of a token's vector."""
    hidden_size: int = 512
    """Size of the decoder's state, and of the encoder's: half of it for each direction. Even."""
    cell: Literal["gru", "lstm"] = "gru"
    """Recurrent cell of encoder and decoder."""
    attention: bool = True
    """Look at the source's words while writing; otherwise all of it is in the first state."""
    attention_size: int = 256
    """Size of the space in which attention compares."""
    encoder_layers: int = 1
    """Stacked bidirectional layers."""
    tie_embeddings: bool = True
    """The output layer is the target embedding."""
    dropout: float = 0.3
    """Share of embedding, encoder and output values dropped in training."""
    label_smoothing: float = 0.1
    """Share of the target mass spread over all words in training (the validation loss has none)."""
    max_source_tokens: int = 256
    """A longer source is a bad sample."""
    max_target_tokens: int = 256
    """A longer reference is a bad sample."""
    max_characters: int = 4000
    """A longer text is a bad sample, seen before it is tokenized."""

    def __post_init__(self) -> None:
        sizes = ("embedding_size", "hidden_size", "attention_size", "encoder_layers")
        limits = ("max_source_tokens", "max_target_tokens", "max_characters")
        self.check_ranges((*sizes, *limits), shares=("dropout", "label_smoothing"))
        if self.vocab_size < MIN_VOCABULARY:
            raise UsageError(f"vocab_size is {self.vocab_size}: it must be at least {MIN_VOCABULARY}")
        if self.hidden_size % 2:
            raise UsageError(f"hidden_size is {self.hidden_size}: it must be even, half of it for each direction")
        if self.source == self.target:
            raise UsageError(f"source and target are both '{self.source}': name two fields of the rows")

    def training_texts(self, fields: Mapping[str, Any]) -> list[str]:
        """Both sentences of a row, each after its side (`source` or `target`) and a tab."""
        sides = (("source", self.source), ("target", self.target))
        try:
            return [f"{side}\t{clean_text(text_of(self, fields, name), self.max_characters)}" for side, name in sides]
        except BadSample:
            return []


class TranslatorPreprocess(Preprocess):
    """Cleans and tokenizes: `source` int32 [S] with its end symbol, `length`; for training `target` int32 [T] without
    special symbols and `reference`, the raw translation as packed JSON."""

    def __init__(self, config: TranslatorConfig, assets: Mapping[str, str]) -> None:
        self.config = config
        self._source, self._target = tokenizers(config, assets)

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        config = self.config
        source = np.append(self._tokens(inputs.fields, config.source, self._source, config.max_source_tokens), EOS)
        sample = {"source": source.astype(np.int32), "length": np.int64(len(source))}
        if with_target:
            target = self._tokens(inputs.fields, config.target, self._target, config.max_target_tokens)
            sample |= {"target": target, "reference": pack_json(inputs.fields[config.target])}
            sample["length"] = np.int64(len(source) + len(target))
        return {name: np.asarray(value) for name, value in sample.items()}

    def _tokens(self, fields: Mapping[str, Any], name: str, tokenizer: Tokenizer, max_tokens: int) -> np.ndarray:
        text = clean_text(text_of(self.config, fields, name), self.config.max_characters, f"field '{name}'")
        return tokenizer.encode(text, max_tokens, f"field '{name}'")


def text_of(config: TranslatorConfig, fields: Mapping[str, Any], name: str) -> Any:
    return fields.get(name, fields.get("text")) if name == config.source else fields.get(name)


def tokenizers(config: TranslatorConfig, assets: Mapping[str, str]) -> tuple[Tokenizer, Tokenizer]:
    """The source's and the target's tokenizer, the same one for a joint vocabulary.

    Raises:
        UsageError: an asset is missing.
    """
    for name in (TOKENIZER,) if config.joint_vocabulary else (TOKENIZER, SOURCE_TOKENIZER):
        if name not in assets:
            raise UsageError(f"the translator has no {name}: learn it from texts or restore the artifact's file")
    target = Tokenizer(assets[TOKENIZER])
    return (target if config.joint_vocabulary else Tokenizer(assets[SOURCE_TOKENIZER])), target
