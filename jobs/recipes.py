"""Recipes: named, complete configurations. `hybrid train NAME --model.x … --train.y …` overrides any field."""

from __future__ import annotations

from collections.abc import Callable

from hybrid_models.captioner import CaptionerConfig, CaptionerDecoding
from hybrid_models.translator import TranslatorConfig, TranslatorDecoding
from pipelines.config import Recipe, TrainConfig


def translator_multi30k() -> Recipe:
    """English → German on Multi30k (`--model.source de --model.target en` for the other direction)."""
    return Recipe(
        hybrid="translator",
        model=TranslatorConfig(),
        decoding=TranslatorDecoding(),
        train=TrainConfig(
            epochs=12, batch_size=128, learning_rate=1e-3, warmup_steps=200, metric="bleu", validate_samples=500
        ),
    )


def translator_demo() -> Recipe:
    """English → German of the demo's small grammar."""
    return Recipe(
        hybrid="translator",
        model=TranslatorConfig(vocab_size=600, embedding_size=128, hidden_size=192, attention_size=128, dropout=0.2),
        decoding=TranslatorDecoding(beam_size=3),
        train=TrainConfig(
            epochs=5, batch_size=64, learning_rate=3e-3, warmup_steps=50, metric="bleu", validate_samples=100
        ),
    )


def captioner_flickr8k() -> Recipe:
    """Captions of photographs on Flickr8k: frozen EfficientNet-Lite0, LSTM with attention over its 7 x 7 grid."""
    return Recipe(
        hybrid="captioner",
        model=CaptionerConfig(),
        decoding=CaptionerDecoding(),
        train=TrainConfig(
            epochs=10, batch_size=32, learning_rate=5e-4, warmup_steps=200, metric="cider_d", validate_samples=300
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "translator-multi30k": translator_multi30k,
    "translator-demo": translator_demo,
    "captioner-flickr8k": captioner_flickr8k,
}
