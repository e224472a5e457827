"""A captioner's configuration: architecture and preprocessing. Free of torch and of arrays, as help texts show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hybrid_models.errors import UsageError
from hybrid_models.symbols import MIN_VOCABULARY
from hybrid_models.visual import VisualConfig


@dataclass(frozen=True)
class CaptionerConfig(VisualConfig):
    """Architecture and preprocessing of a captioner.

    Raises:
        UsageError: a size, rate, limit or name is out of its range.
    """

    learns_from_texts: ClassVar[bool] = True
    not_in_samples: ClassVar[frozenset[str]] = frozenset(
        {
            "encoder_weights", "cell", "embedding_size", "hidden_size", "attention_size", "tie_embeddings", "dropout",
            "label_smoothing", "reward_share", "vocab_size",
        }
    )  # fmt: skip

    temporal: Literal["mean", "lstm", "gru"] = "mean"
    """How a clip's frames become one: `mean` averages what is seen in them, which knows no order; an RNN over them
    tells moving left from moving right."""
    mirror: bool = False
    """Show half of the samples as their mirror images in training; not where captions tell left from right."""
    attention: bool = True
    """Attend to the encoder's spatial grid at every word; otherwise only its mean is seen, at the start (faster)."""
    cell: Literal["gru", "lstm"] = "lstm"
    """The decoder's recurrent cell."""
    embedding_size: int = 256
    """Size of a token's vector."""
    hidden_size: int = 512
    """Size of the decoder's state."""
    attention_size: int = 256
    """Size of the space in which attention compares."""
    tie_embeddings: bool = True
    """The output layer is the embedding."""
    dropout: float = 0.4
    """Share of embedding and output values dropped in training."""
    label_smoothing: float = 0.1
    """Share of the target mass spread over all words in training (the validation loss has none)."""
    reward_share: float = 0.0
    """Share of the epochs, the last ones, that draw captions from the model and raise the CIDEr-D of what is drawn
    (self-critical training), instead of teaching it the references; rounded to whole epochs, never the first. Their
    logged loss is near 0, and document frequencies are those of a worker's images of a batch."""
    vocab_size: int = 3000
    """Most tokens of the vocabulary."""
    captions: str = "captions"
    """Field with a list of captions, or one a line; rows without it are read from `caption` or `text`."""
    max_captions: int = 10
    """Most captions of one sample used in training."""
    max_caption_tokens: int = 60
    """A longer caption is left out of training."""
    max_characters: int = 1000
    """A longer caption is left out of training, seen before it is tokenized."""

    def __post_init__(self) -> None:
        sizes = ("embedding_size", "hidden_size", "attention_size")
        limits = ("max_captions", "max_caption_tokens", "max_characters")
        choices = {"cell": ("gru", "lstm"), "temporal": ("mean", "lstm", "gru")}
        self.check((*sizes, *limits), ("dropout", "label_smoothing", "reward_share"), choices)
        if self.vocab_size < MIN_VOCABULARY:
            raise UsageError(f"vocab_size is {self.vocab_size}: it must be at least {MIN_VOCABULARY}")

    @property
    def least_share(self) -> int:
        """Rewards compare images."""
        return 2 if self.reward_share else 1

    def training_texts(self, fields: Mapping[str, Any]) -> list[str]:
        """A row's captions in the decoder's form."""
        from hybrid_models.captioner.preprocess import training_texts  # arrays, which a help text does not wait for

        return training_texts(self, fields)
