"""A recogniser's configuration: architecture and preprocessing. Free of torch and of arrays, as help texts show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hybrid_models.visual import VisualConfig


@dataclass(frozen=True)
class RecogniserConfig(VisualConfig):
    """Architecture and preprocessing of a recogniser.

    Raises:
        UsageError: a size, rate or name is out of its range.
    """

    learns_from_texts: ClassVar[bool] = True
    not_in_samples: ClassVar[frozenset[str]] = frozenset(
        {"encoder_weights", "cell", "hidden_size", "dropout", "label_smoothing"}
    )

    frames: int = 16
    """Most frames looked at in a clip."""
    cell: Literal["gru", "lstm"] = "lstm"
    """The cell that reads them in order."""
    hidden_size: int = 256
    """Size of its state."""
    dropout: float = 0.3
    """Share of the last state's values dropped in training."""
    label_smoothing: float = 0.1
    """Share of the target mass spread over all labels in training (the validation loss has none)."""
    label: str = "label"
    """Field with the label, a text or a whole number."""

    def __post_init__(self) -> None:
        self.check(("hidden_size",), ("dropout", "label_smoothing"), {"cell": ("gru", "lstm")})

    def training_texts(self, fields: Mapping[str, Any]) -> list[str]:
        """A row's label."""
        from hybrid_models.recogniser.preprocess import training_texts  # arrays, which a help text does not wait for

        return training_texts(self, fields)
