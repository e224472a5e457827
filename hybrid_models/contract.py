"""What a hybrid is: with `interface.py`, all of it that needs no torch, the one way by which pipelines and jobs reach a
model.

A row of a shard becomes a prediction in four steps, each a method below:

    Inputs --preprocess--> Sample --collate--> Batch --predict--> payload rows
                                                     --forward--> Loss (training)

Shape legend used all over this package:

    B batch   S source positions or grid cells   T target positions or time steps
    C channels   H height   W width   D hidden size   V vocabulary   K beam
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hybrid_models.errors import UsageError
from hybrid_models.explanations import Explanation
from hybrid_models.inputs import Sample
from hybrid_models.interface import DecodingConfig, HybridConfig, Interface
from hybrid_models.scores.texts import Tally

Batch = dict[str, Any]
"""Several samples as tensors, padded and stacked on a first batch axis; besides, flat int64 places of what is no
padding (`written`, `shown`), which `collate` tells, since to find them on a GPU makes the host wait. What the host
itself needs later is a list, which stays where it is."""


class Loss(NamedTuple):
    """A loss as a sum and its number of terms, so that means over batches and workers are exact. Both are on the net's
    device."""

    total: Tensor
    """Scalar: the sum over all terms of the batch."""
    terms: Tensor
    """Scalar: how many terms (target tokens, valid pixels) the sum has."""


class Hybrid(nn.Module, Interface):
    """A model with everything that surrounds it: preprocessing, loss, prediction, output schema and judgement.

    Args:
        config: architecture and preprocessing.
        assets: text files learned from training data, by name (`tokenizer.json`); kept in the artifact.
    """

    def __init__(self, config: HybridConfig, assets: Mapping[str, str]) -> None:
        super().__init__()
        self.config = config
        self.assets = dict(assets)
        self.decoding = self.Decoding()
        """How it decodes where nobody says otherwise; a loaded artifact's own options."""

    # ---- before there is a model -------------------------------------------------------------------------------
    @classmethod
    def learn_assets(cls, config: HybridConfig, texts: Iterable[str]) -> dict[str, str]:
        """Learns what must be known before the net is built (a tokenizer), from `config.training_texts` of all rows."""
        return {}

    # ---- pretrained and frozen parts ----------------------------------------------------------------------------
    def pretrained(self) -> dict[str, str]:
        """Parts that start from pretrained weights: part → URI of a safetensors file, or `hub`."""
        return {}

    def load_pretrained(self, part: str, weights: Mapping[str, Tensor] | None) -> None:
        """Loads a part named by `pretrained`; `weights` is None for `hub`, which the part's library fetches itself."""
        raise UsageError(f"{self.name} has no pretrained part '{part}'")

    @property
    def has_frozen_features(self) -> bool:
        """Whether `featurize` does anything: then training computes it once per sample and keeps the result."""
        return False

    def featurize(self, samples: Sequence[Sample], batch: Batch | None = None) -> list[Sample]:
        """Replaces raw inputs by the output of the frozen part of the net.

        Args:
            samples: as `preprocess` gives them.
            batch: what `collate` makes of them, on the model's device, where somebody has made it already.
        """
        return list(samples)

    # ---- training and prediction --------------------------------------------------------------------------------
    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Told before each of training's `epochs`, counted from 0, for losses that change on the way."""
        return

    @abc.abstractmethod
    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """Pads and stacks samples (raw or featurized). `rng` is given in training only, for augmentation.

        A thread calls it beside the other methods, twice if it failed: it changes nothing."""

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The training loss of a batch with targets (teacher forcing where there is a decoder)."""

    @abc.abstractmethod
    def predict(self, batch: Batch, decoding: DecodingConfig) -> list[dict[str, Any]]:
        """One dict of `payload_schema`'s columns per sample, in the batch's order. Runs without gradients."""

    # ---- judgement ----------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def record(self, sample: Sample, output: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of one prediction and its reference to judge it: small, JSON-able, also for the baseline."""

    @abc.abstractmethod
    def explain(self, samples: Sequence[Sample], decoding: DecodingConfig) -> list[Explanation]:
        """Raw samples → what can be drawn of the way to each one's prediction."""

    @classmethod
    @abc.abstractmethod
    def summarise(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Records → `{"metrics": {name: value}, "baseline": {"name": …, name: value}, "details": {…}}`."""

    @classmethod
    def part(cls, shard: str, record: Mapping[str, Any]) -> str | None:
        """The part of a test set that a record belongs to, for metrics by part; none by default.

        Args:
            shard: URI of its shard.
            record: as `record` gives it.
        """
        return None

    @classmethod
    @abc.abstractmethod
    def tallies(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
        """Records → the metrics of `summarise` as sums over them, to compare models by resampling."""


TENSOR_CORES = (7, 0)
"""From this compute capability on, GPUs compute products in float16."""


def module_device(module: nn.Module) -> torch.device:
    """The device that a module's parameters are on."""
    return next(module.parameters()).device


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device.

    Called by a thread of its own, it is copied to a GPU while that computes: from pinned memory, on a stream of its
    own, for which only this thread waits.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if device.type != "cuda":
        return {**batch, **{name: tensor.to(device) for name, tensor in tensors.items()}}
    with torch.cuda.device(device):  # a new thread's is the first GPU, on which going back would take up memory
        beside, computing = _copying(device), torch.cuda.current_stream(device)
        with torch.cuda.stream(beside):
            copies = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
        beside.synchronize()
    for copy in copies.values():
        copy.record_stream(computing)  # its memory is not used again before what computes with it is done
    return {**batch, **copies}


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """One for all batches of a process: each stream keeps memory of its own."""
    return torch.cuda.Stream(device)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16 itself: then autocast pays (1.7x to 2.5x, measured on such CPUs)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def half_type(device: torch.device) -> torch.dtype | None:
    """In what numbers of two bytes the hardware computes: bfloat16 where that is fast, float16 on earlier GPUs with
    tensor cores (V100, T4), whose gradients must be scaled; None elsewhere."""
    if bf16_is_fast(device):
        return torch.bfloat16
    cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES
    return torch.float16 if cores else None


def compute_exactly(device: torch.device) -> None:
    """Lets this process compute in float32 where float32 is asked for: cuDNN rounds what it multiplies to TF32, which
    has ten bits of 23, unless it is told not to."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to `half_type`, or a no-op."""
    kind = half_type(device)
    return torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)
