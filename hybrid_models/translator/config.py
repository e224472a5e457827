"""A translator's configuration: architecture and preprocessing. Free of torch and of arrays, as help texts show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hybrid_models.errors import UsageError
from hybrid_models.interface import HybridConfig
from hybrid_models.symbols import MIN_VOCABULARY


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
        from hybrid_models.translator.preprocess import training_texts  # arrays, which a help text does not wait for

        return training_texts(self, fields)
