"""Typed configuration of runs: what a recipe consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from hybrid_models import interface_of
from hybrid_models.errors import UsageError
from hybrid_models.inputs import Cut
from hybrid_models.interface import DecodingConfig, HybridConfig
from pipelines.reading.limits import Limits

Kind = Literal["adamw", "muon"]
"""How gradients become steps."""
Schedule = Literal["cosine", "constant"]
"""How the learning rate goes on after the warm-up."""
MOST = 2**63
"""What counts and seeds are below."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int = 10
    """Passes over the training data at most; early stopping may end sooner."""
    batch_size: int = 64
    """Samples per step over all workers together, so that adding or losing workers does not change the result: of fewer
    workers each takes more."""
    optimizer: Kind = "adamw"
    """`adamw`; or `muon`, which steps matrices in all of their directions alike: at the same rate, and on
    Moving MNIST in fewer steps."""
    learning_rate: float = 1e-3
    """Peak learning rate, at the end of the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 100
    """Steps of linear warm-up from zero."""
    schedule: Schedule = "cosine"
    """After the warm-up: cosine to 2 % of the peak at the last step of the last epoch, or constant."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    accumulate: int = 1
    """Batches whose gradients are added up before each step."""
    metric: str = "loss"
    """Validation metric that decides which checkpoint is best and when to stop: `loss` or one of the hybrid's."""
    patience: int = 3
    """Stop after this many epochs without a better metric."""
    validate_samples: int = 500
    """Validation samples that are decoded for the hybrid's own metrics (the loss is over all); 0 decodes none."""
    keep_checkpoints: int = 2
    """Best checkpoints kept beside the last one."""
    max_failures: int = 2
    """Restarts from the last checkpoint when a worker or node dies; what would fail again ends the run at once."""
    seed: int = 0
    """Decides initial weights, data order and dropout."""


@dataclass(frozen=True)
class Recipe:
    """A named, complete configuration of a training run."""

    hybrid: str
    """Which of the hybrids is trained."""
    model: HybridConfig
    """Architecture and preprocessing; kept in the artifact."""
    decoding: DecodingConfig
    """Decoding options of validation and, unless overridden, of batch jobs."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on one input row; what exceeds them is a bad sample."""
    cut: Cut | None = None
    """How clips are cut into windows, a sample each."""

    def check(self) -> None:
        """Refuses impossible combinations before any cluster starts.

        Raises:
            UsageError: names the option and what it may be.
        """
        train = self.train
        known = ["loss", *interface_of(self.hybrid).metrics_of(self.model)]
        if train.metric not in known:
            raise UsageError(f"`train.metric` '{train.metric}' is unknown for a {self.hybrid}: use {', '.join(known)}")
        if train.metric != "loss" and train.validate_samples < 1:
            raise UsageError(f"`train.metric` {train.metric} needs `train.validate_samples` of at least 1")
        for name, kinds in (("optimizer", get_args(Kind)), ("schedule", get_args(Schedule))):
            if getattr(train, name) not in kinds:
                raise UsageError(f"`train.{name}` is '{getattr(train, name)}': use {' or '.join(kinds)}")
        for name in ("epochs", "batch_size", "accumulate", "patience", "keep_checkpoints"):
            if getattr(train, name) < 1:
                raise UsageError(f"`train.{name}` is {getattr(train, name)}: it must be at least 1")
        for name in ("weight_decay", "warmup_steps", "validate_samples", "max_failures", "seed"):
            if not 0 <= getattr(train, name) < MOST:
                raise UsageError(f"`train.{name}` is {getattr(train, name)}: it must be 0 or more, below {MOST}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(train, name) < math.inf:
                raise UsageError(f"`train.{name}` is {getattr(train, name)}: it must be positive")

    @property
    def higher_is_better(self) -> bool:
        """Direction of `train.metric`."""
        return interface_of(self.hybrid).metrics.get(self.train.metric, False)
