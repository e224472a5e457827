"""Recipes of the recogniser."""

from __future__ import annotations

from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.recogniser.decoding import RecogniserDecoding
from pipelines.training.recipe import Recipe, TrainConfig


def moving_scenes() -> Recipe:
    """Which action is in a moving scene: a small convolutional net trained together with the RNN."""
    return Recipe(
        hybrid="recogniser",
        model=RecogniserConfig(
            encoder="test_resnet", encoder_weights="none", freeze_encoder=False, image_size=64, frames=8,
            hidden_size=128, dropout=0.2, label_smoothing=0.05,
        ),
        decoding=RecogniserDecoding(),
        train=TrainConfig(
            epochs=10, batch_size=16, learning_rate=3e-3, warmup_steps=50, metric="accuracy", validate_samples=400,
            patience=4,
        ),
    )  # fmt: skip


def kth() -> Recipe:
    """Which of KTH's six actions is in a clip, untested at full size: frozen EfficientNet-Lite0."""
    return Recipe(
        hybrid="recogniser",
        model=RecogniserConfig(frames=20),
        decoding=RecogniserDecoding(),
        train=TrainConfig(
            epochs=20, batch_size=32, learning_rate=1e-3, warmup_steps=100, metric="accuracy", validate_samples=500
        ),
    )
