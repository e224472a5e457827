import math
from dataclasses import replace
from typing import Any

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.preprocess import Unit
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.training.recipe import Recipe, TrainConfig


def recipe(**options: Any) -> Recipe:
    return Recipe("translator", TranslatorConfig(), TranslatorDecoding(), TrainConfig(**options))


def test_defaults_are_possible() -> None:
    recipe().check()
    recipe(validate_samples=0).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cider_d"}, "`train.metric` 'cider_d' is unknown for a translator: use loss, bleu, chrf"),
        ({"metric": "bleu", "validate_samples": 0}, "`train.metric` bleu needs `train.validate_samples` of at least 1"),
        *[
            ({name: value}, f"`train.{name}` is {value}: it must be at least 1")
            for name in ("epochs", "batch_size", "accumulate", "patience", "keep_checkpoints")
            for value in (0, -3)
        ],
        *[
            ({name: value}, f"`train.{name}` is {value}: it must be 0 or more, below 9223372036854775808")
            for name in ("weight_decay", "warmup_steps", "validate_samples", "max_failures", "seed")
            for value in (-1, 1 << 70)
        ],
        ({"optimizer": "adam"}, "`train.optimizer` is 'adam': use adamw or muon"),
        ({"schedule": "linear"}, "`train.schedule` is 'linear': use cosine or constant"),
        ({"weight_decay": math.nan}, "`train.weight_decay` is nan: it must be 0 or more, below 9223372036854775808"),
        ({"learning_rate": math.nan}, "`train.learning_rate` is nan: it must be positive"),
        ({"clip_norm": math.inf}, "`train.clip_norm` is inf: it must be positive"),
        ({"learning_rate": 0.0}, "`train.learning_rate` is 0.0: it must be positive"),
        ({"clip_norm": -1.0}, "`train.clip_norm` is -1.0: it must be positive"),
    ],
)
def test_impossible_combinations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(**options).check()
    assert str(caught.value) == message


@pytest.mark.parametrize(("unit", "metric", "known"), [("mm/h", "ssim", "csi_1"), ("intensity", "crps", "ssim")])
def test_a_metric_that_the_configuration_does_not_have_is_refused(unit: Unit, metric: str, known: str) -> None:
    model = NowcasterConfig(unit=unit)
    options = [TrainConfig(metric=name) for name in (metric, known)]
    with pytest.raises(UsageError, match=f"`train.metric` '{metric}' is unknown for a nowcaster: use loss, .*{known}"):
        Recipe("nowcaster", model, NowcasterDecoding(), options[0]).check()
    Recipe("nowcaster", model, NowcasterDecoding(), options[1]).check()


def test_the_metric_has_a_direction() -> None:
    assert not recipe(metric="loss").higher_is_better
    assert recipe(metric="bleu").higher_is_better


def test_a_recipe_cannot_be_changed_by_accident() -> None:
    original = recipe()
    changed = replace(original, train=replace(original.train, epochs=3))
    assert (original.train.epochs, changed.train.epochs) == (10, 3)
    with pytest.raises(AttributeError):
        original.train.epochs = 4  # type: ignore[misc]
