"""What a hybrid is to those who do not run its net: options, columns, versions. Free of torch, see `contract.py`."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Preprocess, Visual

if TYPE_CHECKING:
    import pyarrow as pa

LATER = {b"hybrid.later": b"yes"}
"""Metadata of a table's column that an earlier schema version lacks: it is null there, and is added in place."""


@dataclass(frozen=True)
class HybridConfig:
    """Base of the hybrids' own configurations (architecture and preprocessing; saved as the artifact's config.json)."""

    learns_from_texts: ClassVar[bool] = False
    """Whether something is learned from texts before the net is built: a tokenizer."""
    not_in_samples: ClassVar[frozenset[str]] = frozenset()
    """Fields that no prepared sample depends on, given assets and frozen weights: where they change, it is kept."""

    @property
    def visual(self) -> Visual | None:
        """How photographs and clips are decoded; None if it reads none."""
        return None

    @property
    def weights_read(self) -> tuple[str, ...]:
        """URIs of the files of weights that a net starts from; none where they are its own, or fetched."""
        return ()

    @property
    def least_share(self) -> int:
        """Least samples of a batch that each worker needs in training."""
        return 1

    def training_texts(self, fields: Mapping[str, Any]) -> list[str]:
        """The texts of one training row to learn from; none by default, and none from a bad row."""
        return []

    def check_ranges(self, positive: Sequence[str], shares: Sequence[str] = ()) -> None:
        """Checks fields that must be at least 1, and fields that are a share of something.

        Raises:
            UsageError: names the first field that is out of its range.
        """
        for name in positive:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")


@dataclass(frozen=True)
class DecodingConfig:
    """Base of the hybrids' decoding options (part of the fingerprint: changing one recomputes a night)."""


class Interface(abc.ABC):
    """A hybrid to those who do not run its net: what it reads, how it decodes, what its rows have.

    A night that is there already, a help text and a list of models need no more, and no torch.
    """

    name: ClassVar[str]
    Config: ClassVar[type[HybridConfig]]
    Decoding: ClassVar[type[DecodingConfig]]
    payload_schema: ClassVar[pa.Schema]
    """Columns of a good row, without `sample_id` and lineage. In an error row they are null."""
    schema_version: ClassVar[int]
    """Raised whenever `payload_schema` or the meaning of a column changes; part of the fingerprint. New columns are
    nullable and marked `LATER`; models of an earlier version still load."""
    samples_version: ClassVar[int] = 1
    """Raised whenever `preprocess` or `featurize` makes other samples of the same rows, as after a mended step: kept
    features, records and nights of older samples are not met again."""
    metrics: ClassVar[Mapping[str, bool]]
    """Headline metrics of `summarise` → whether higher is better. `loss` (lower is better) is always there."""
    truth: ClassVar[tuple[str, ...]]
    """Arrays of a sample with target that say what its prediction is judged against."""

    @classmethod
    @abc.abstractmethod
    def preprocess(cls, config: HybridConfig, assets: Mapping[str, str]) -> Preprocess:
        """The preprocessing that belongs to this configuration."""

    @classmethod
    def metrics_of(cls, config: HybridConfig) -> list[str]:
        """Those of `metrics` that `summarise` gives for this configuration."""
        return list(cls.metrics)
