"""Recipes: named, complete configurations. `hybrid train NAME --model.x … --train.y …` overrides any field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from hybrid_models.captioner.decoding import CaptionerDecoding
from hybrid_models.captioner.preprocess import CaptionerConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.preprocess import NowcasterConfig
from hybrid_models.recogniser.decoding import RecogniserDecoding
from hybrid_models.recogniser.preprocess import RecogniserConfig
from hybrid_models.translator.decoding import TranslatorDecoding
from hybrid_models.translator.preprocess import TranslatorConfig
from pipelines.training.recipe import Recipe, TrainConfig


def translator_multi30k() -> Recipe:
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


def translator_demo() -> Recipe:
    """English → German of the demo's small grammar."""
    return Recipe(
        hybrid="translator",
        model=TranslatorConfig(vocab_size=1000, embedding_size=128, hidden_size=192, attention_size=128, dropout=0.2),
        decoding=TranslatorDecoding(beam_size=3),
        train=TrainConfig(
            epochs=3, batch_size=16, learning_rate=5e-3, warmup_steps=50, metric="bleu", validate_samples=100
        ),
    )


def captioner_flickr8k() -> Recipe:
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


def captioner_demo() -> Recipe:
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


def captioner_moving_scenes() -> Recipe:
    """Captions of moving scenes: as the demo's, with an RNN over the frames that tells what happens in which order."""
    demo = captioner_demo()
    return replace(
        demo,
        model=replace(cast(CaptionerConfig, demo.model), frames=8, temporal="lstm", dropout=0.2, vocab_size=600),
        train=replace(demo.train, epochs=12, patience=4, validate_samples=300),
    )


def nowcaster_radar() -> Recipe:
    """Rain of the next hour on a 256 x 256 radar grid."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(past_frames=10),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=2, batch_size=4, learning_rate=1e-3, warmup_steps=30, metric="crps", validate_samples=60
        ),
    )


def nowcaster_moving_mnist() -> Recipe:
    """The next ten frames of Moving MNIST."""
    return Recipe(
        hybrid="nowcaster",
        model=NowcasterConfig(
            past_frames=10, horizon_minutes=10, height=64, width=64, unit="intensity", patch=4,
            hidden_dims=(64, 64), kernel_size=5, augment=False,
        ),
        decoding=NowcasterDecoding(),
        train=TrainConfig(
            epochs=8, batch_size=16, learning_rate=4e-3, warmup_steps=100, metric="mse", validate_samples=200
        ),
    )  # fmt: skip


def nowcaster_moving_mnist_openstl() -> Recipe:
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


def captioner_coco() -> Recipe:
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


def captioner_msvd() -> Recipe:
    """Captions of MSVD's clips for GPUs, untested at full size: frozen ResNet-50, an LSTM over the frames."""
    coco = captioner_coco()
    return replace(
        coco,
        model=replace(
            cast(CaptionerConfig, coco.model),
            frames=16,
            temporal="lstm",
            mirror=False,
            vocab_size=5000,
            max_captions=40,
        ),
        train=replace(coco.train, epochs=20, batch_size=32, warmup_steps=200, validate_samples=100),
    )


def translator_iwslt14() -> Recipe:
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


def nowcaster_kth() -> Recipe:
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


def nowcaster_demo() -> Recipe:
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


def recogniser_moving_scenes() -> Recipe:
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


def recogniser_kth() -> Recipe:
    """Which of KTH's six actions is in a clip, untested at full size: frozen EfficientNet-Lite0."""
    return Recipe(
        hybrid="recogniser",
        model=RecogniserConfig(frames=20),
        decoding=RecogniserDecoding(),
        train=TrainConfig(
            epochs=20, batch_size=32, learning_rate=1e-3, warmup_steps=100, metric="accuracy", validate_samples=500
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "captioner-coco": captioner_coco,
    "captioner-demo": captioner_demo,
    "captioner-flickr8k": captioner_flickr8k,
    "captioner-moving-scenes": captioner_moving_scenes,
    "captioner-msvd": captioner_msvd,
    "nowcaster-demo": nowcaster_demo,
    "nowcaster-kth": nowcaster_kth,
    "nowcaster-moving-mnist": nowcaster_moving_mnist,
    "nowcaster-moving-mnist-openstl": nowcaster_moving_mnist_openstl,
    "nowcaster-radar": nowcaster_radar,
    "recogniser-kth": recogniser_kth,
    "recogniser-moving-scenes": recogniser_moving_scenes,
    "translator-demo": translator_demo,
    "translator-iwslt14": translator_iwslt14,
    "translator-multi30k": translator_multi30k,
}
