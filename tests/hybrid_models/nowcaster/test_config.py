"""A nowcaster's configuration."""

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.nowcaster.config import NowcasterConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past_frames": 0}, "past_frames is 0"),
        ({"past_frames": 1}, "motion of rain needs at least 2"),
        ({"horizon_minutes": 0}, "horizon_minutes is 0"),
        ({"unit": "dBZ"}, "unit is 'dBZ'"),
        ({"hidden_dims": ()}, "hidden_dims"),
        ({"hidden_dims": (8, 0)}, "hidden_dims"),
        ({"kernel_size": 4}, "kernel_size is 4: it must be odd"),
        ({"patch": 0}, "patch is 0"),
        ({"width": 128}, "cannot be turned"),
        ({"colour": True}, "colour is True, but rain has none: set unit to 'intensity'"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        NowcasterConfig(**options)
