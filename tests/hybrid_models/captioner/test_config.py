"""A captioner's configuration."""

import pytest

from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.errors import UsageError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"cell": "rnn"}, "cell is 'rnn': it must be one of gru, lstm"),
        ({"vocab_size": 10}, "vocab_size is 10"),
        ({"reward_share": 1.0}, "reward_share is 1.0"),
        ({"encoder_weights": "none"}, "random net"),
    ],
)
def test_impossible_configurations_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        CaptionerConfig(**wrong)
