from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.contract import Hybrid
from hybrid_models.errors import UsageError
from hybrid_models.inputs import Inputs, Sample
from hybrid_models.interface import HybridConfig
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import Translator
from tests import tiny


@dataclass(frozen=True)
class Config(HybridConfig):
    size: int = 1
    dropout: float = 0.0


def test_ranges_that_hold() -> None:
    Config().check_ranges(("size",), shares=("dropout",))
    Config(size=7, dropout=0.99).check_ranges(("size",), shares=("dropout",))


def test_nothing_is_learned_from_texts_by_default() -> None:
    assert not Config.learns_from_texts
    assert Config().training_texts({"text": "a"}) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(size=0), "size is 0: it must be at least 1"),
        (Config(dropout=1.0), r"dropout is 1.0: it must be in \[0, 1\)"),
        (Config(dropout=-0.1), r"dropout is -0.1: it must be in \[0, 1\)"),
    ],
)
def test_the_first_field_out_of_its_range_is_named(config: Config, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.check_ranges(("size",), shares=("dropout",))


# ---- what is in a prepared sample ----
_PHOTO = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
_RAIN = np.random.default_rng(1).gamma(1.0, 2.0, (15, 32, 32)).astype(np.float32)
SEEN: dict[str, tuple[type[Hybrid], HybridConfig, Inputs]] = {
    "captioner": (
        Captioner,
        CaptionerConfig(encoder="test_resnet", image_size=32, mirror=True, vocab_size=300),
        Inputs(_PHOTO, {"captions": ["Ein Hund läuft im Park.", "ein Ball"]}),
    ),
    "nowcaster": (
        Nowcaster,
        NowcasterConfig(past_frames=3, horizon_minutes=60, height=32, width=32),
        Inputs(_RAIN, {"step_minutes": 5}),
    ),
    "translator": (Translator, TranslatorConfig(vocab_size=300), Inputs(None, {"en": "ein Ball", "de": "der See"})),
}
OTHER: dict[str, Any] = {"cell": "gru", "encoder_weights": "lake/weights.safetensors", "hidden_dims": (8, 8)}


def prepared(kind: type[Hybrid], config: HybridConfig, inputs: Inputs, weights: dict[str, torch.Tensor]) -> Sample:
    """The training sample, from the same frozen weights and assets whatever the configuration."""
    base = SEEN[kind.name][1]
    assets = kind.learn_assets(base, [f"source\t{text}" for text in tiny.sentences(100)] * base.learns_from_texts)
    hybrid = kind(config, assets)
    own = hybrid.state_dict()
    frozen = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.cnn.") and name in own}
    hybrid.load_state_dict(own | frozen)
    (sample,) = hybrid.eval().featurize([kind.preprocess(config, assets)(inputs, with_target=True)])
    return sample


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, (_, config, _) in SEEN.items() for field in sorted(config.not_in_samples)],
)
def test_a_field_that_is_not_in_samples_changes_none(name: str, field: str) -> None:
    kind, config, inputs = SEEN[name]
    weights = kind(config, kind.learn_assets(config, tiny.sentences(100))).state_dict() if name == "captioner" else {}
    value = getattr(config, field)
    if field in OTHER:
        other = OTHER[field]
    else:
        other = not value if isinstance(value, bool) else value + (0.25 if value < 1 else 2)
    before, after = (prepared(kind, c, inputs, weights) for c in (config, replace(config, **{field: other})))
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


@pytest.mark.parametrize("name", SEEN)
def test_the_fields_that_are_not_in_samples_exist(name: str) -> None:
    config = SEEN[name][1]
    assert config.not_in_samples < {field.name for field in fields(config)}
