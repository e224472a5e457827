"""Recipes of the translator."""

from __future__ import annotations

from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.decoding import TranslatorDecoding
from pipelines.training.recipe import Recipe, TrainConfig


def multi30k() -> Recipe:
    """English → German on Multi30k (`--model.source de --model.target en` for the other direction)."""
    return Recipe(
        hybrid="translator",
        model=TranslatorConfig(dropout=0.4),
        decoding=TranslatorDecoding(),
        train=TrainConfig(
            epochs=12,
            batch_size=32,
            learning_rate=3e-3,
            warmup_steps=300,
            metric="bleu",
            validate_samples=1014,
            patience=6,
        ),
    )


def demo() -> Recipe:
    """English → German of the demo's small grammar."""
    return Recipe(
        hybrid="translator",
        model=TranslatorConfig(vocab_size=1000, embedding_size=128, hidden_size=192, attention_size=128, dropout=0.2),
        decoding=TranslatorDecoding(beam_size=3),
        train=TrainConfig(
            epochs=3, batch_size=16, learning_rate=5e-3, warmup_steps=50, metric="bleu", validate_samples=100
        ),
    )


def iwslt14() -> Recipe:
    """German → English on IWSLT14 for GPUs, untested at full size."""
    return Recipe(
        hybrid="translator",
        model=TranslatorConfig(
            source="de", target="en", vocab_size=10_000, embedding_size=512, hidden_size=1024, attention_size=1024,
            encoder_layers=2, dropout=0.4,
        ),
        decoding=TranslatorDecoding(),
        train=TrainConfig(
            epochs=20, batch_size=64, learning_rate=1e-3, warmup_steps=1000, metric="bleu", validate_samples=2000
        ),
    )  # fmt: skip
