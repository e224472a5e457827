"""Recipes of the nowcaster: radar, and the next frames of videos."""

from __future__ import annotations

from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from pipelines.training.recipe import Recipe, TrainConfig


def radar() -> Recipe:
    """Rain of the next hour on a 256 x 256 radar grid."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(past_frames=10),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=2, batch_size=4, learning_rate=1e-3, warmup_steps=30, metric="crps", validate_samples=60
        ),
    )


def moving_mnist() -> Recipe:
    """The next ten frames of Moving MNIST, for 20,000 sequences in an hour of two cores."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(
            past_frames=10, horizon_minutes=10, height=64, width=64, unit="intensity", patch=4,
            hidden_dims=(64, 64), kernel_size=5, augment=False,
        ),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=3, batch_size=8, learning_rate=2.8e-3, optimizer="muon", warmup_steps=100, metric="mse",
            validate_samples=200,
        ),
    )  # fmt: skip


def moving_mnist_openstl() -> Recipe:
    """Moving MNIST for a GPU, untested at full length: OpenSTL's ConvLSTM-S in structure, size and rate, in half of its
    200 epochs of 10,000 sequences; with cross entropy, a cosine, no scheduled sampling and no new sequences."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(
            past_frames=10, horizon_minutes=10, height=64, width=64, unit="intensity", patch=4,
            hidden_dims=(128, 128, 128, 128), kernel_size=5, augment=False,
        ),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=100, batch_size=16, learning_rate=5e-4, warmup_steps=2000, metric="mse", validate_samples=1000,
            patience=20,
        ),
    )  # fmt: skip


def kth() -> Recipe:
    """The next twenty frames of KTH's actions for GPUs, untested at full size."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(
            past_frames=10, horizon_minutes=20, height=128, width=128, unit="intensity", patch=4,
            hidden_dims=(128, 128, 128, 128), kernel_size=5, augment=False,
        ),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=100, batch_size=16, learning_rate=5e-4, warmup_steps=500, metric="mse", validate_samples=500
        ),
    )  # fmt: skip


def demo() -> Recipe:
    """The next five frames of the demo's moving digits."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(
            past_frames=5, horizon_minutes=5, height=32, width=32, unit="intensity", patch=4,
            hidden_dims=(64,), kernel_size=3, augment=False,
        ),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=3, batch_size=8, learning_rate=1e-2, warmup_steps=30, metric="mse", validate_samples=100
        ),
    )  # fmt: skip
