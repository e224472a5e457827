from dataclasses import dataclass

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.inputs import HybridConfig


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
