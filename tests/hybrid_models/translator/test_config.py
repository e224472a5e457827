"""A translator's configuration."""

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.translator.config import TranslatorConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 255}, "hidden_size is 255: it must be even"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"vocab_size": 259}, "vocab_size is 259"),
        ({"target": "en"}, "source and target are both 'en'"),
    ],
)
def test_impossible_configurations_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        TranslatorConfig(**wrong)
