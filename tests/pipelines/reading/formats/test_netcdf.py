"""Radar events."""

from pathlib import Path

from hybrid_models.inputs import Window
from pipelines.reading.limits import Limits
from tests.pipelines.reading.made import rows_of


def test_a_radar_file_over_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    window = Window(past_frames=2, horizon_minutes=10)
    (row,) = rows_of(tmp_path, "x.nc", bytes(5000), window=window, limits=Limits(max_bytes=1000))
    assert row["error"].startswith("MediaTooLarge")
