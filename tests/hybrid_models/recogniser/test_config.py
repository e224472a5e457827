"""A recogniser's configuration."""

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.recogniser.config import RecogniserConfig


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frames": 0}, "frames"),
        ({"cell": "rnn"}, "cell"),
        ({"dropout": 1.0}, "dropout"),
        ({"encoder_weights": "none"}, "freeze_encoder"),
    ],
)
def test_impossible_configurations_are_refused(changes, named):
    with pytest.raises(UsageError, match=named):
        RecogniserConfig(**changes)
