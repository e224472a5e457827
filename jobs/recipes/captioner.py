"""Recipes of the captioner: scenes and clips of the demo, and photographs and videos that people captioned."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.captioner.decoding import CaptionerDecoding
from pipelines.training.recipe import Recipe, TrainConfig


def flickr8k() -> Recipe:
    """Captions of photographs on Flickr8k: frozen EfficientNet-Lite0, LSTM with attention, rewards in the end."""
    return Recipe(
        hybrid="captioner",
        model=CaptionerConfig(image_size=288, mirror=True, dropout=0.5, reward_share=0.5),
        decoding=CaptionerDecoding(),
        train=TrainConfig(
            epochs=12,
            batch_size=32,
            learning_rate=2e-3,
            warmup_steps=200,
            metric="cider_d",
            validate_samples=300,
            patience=6,
        ),
    )


def demo() -> Recipe:
    """Captions of the demo's scenes: a small convolutional net trained together with the decoder."""
    return Recipe(
        hybrid="captioner",
        model=CaptionerConfig(
            encoder="test_resnet",
            encoder_weights="none",
            freeze_encoder=False,
            image_size=64,
            frames=4,
            embedding_size=64,
            hidden_size=128,
            attention_size=64,
            dropout=0.1,
            vocab_size=400,
        ),
        decoding=CaptionerDecoding(),
        train=TrainConfig(
            epochs=4, batch_size=16, learning_rate=3e-3, warmup_steps=50, metric="cider_d", validate_samples=100
        ),
    )


def moving_scenes() -> Recipe:
    """Captions of moving scenes: as the demo's, with an RNN over the frames that tells what happens in which order."""
    base = demo()
    return replace(
        base,
        model=replace(cast(CaptionerConfig, base.model), frames=8, temporal="lstm", dropout=0.2, vocab_size=600),
        train=replace(base.train, epochs=12, patience=4, validate_samples=300),
    )


def coco() -> Recipe:
    """Captions on COCO 2017 for GPUs, untested at full size: frozen ResNet-50, rewards in the end."""
    return Recipe(
        hybrid="captioner",
        model=CaptionerConfig(
            encoder="resnet50", mirror=True, embedding_size=512, hidden_size=1024, attention_size=512, dropout=0.5,
            reward_share=0.5, vocab_size=10_000, max_captions=5,
        ),
        decoding=CaptionerDecoding(beam_size=5),
        train=TrainConfig(
            epochs=12, batch_size=64, learning_rate=1e-3, warmup_steps=1000, metric="cider_d", validate_samples=5000,
            patience=6,
        ),
    )  # fmt: skip


def msvd() -> Recipe:
    """Captions of MSVD's clips for GPUs, untested at full size: frozen ResNet-50, an LSTM over the frames."""
    base = coco()
    return replace(
        base,
        model=replace(
            cast(CaptionerConfig, base.model),
            frames=16,
            temporal="lstm",
            mirror=False,
            vocab_size=5000,
            max_captions=40,
        ),
        train=replace(base.train, epochs=20, batch_size=32, warmup_steps=200, validate_samples=100),
    )
