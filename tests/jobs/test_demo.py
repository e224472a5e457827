from pathlib import Path

import pytest

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from jobs import demo
from jobs.recipes import RECIPES


def test_the_demo_shows_three_hybrids_by_a_metric_and_columns_that_they_have() -> None:
    hybrids = [RECIPES[task.recipe]().hybrid for task in demo.TASKS]
    assert len({*hybrids} & {*HYBRIDS}) == len(hybrids) == 3
    for task, name in zip(demo.TASKS, hybrids, strict=True):
        hybrid = HYBRIDS[name]
        assert task.metric in hybrid.metrics
        assert RECIPES[task.recipe]().train.metric == task.metric
        assert set(task.columns.split(", ")) <= set(hybrid.payload_schema.names)


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write /proc/nowhere/"):
        demo.main(["--out", str(tmp_path), "--storage", "/proc/nowhere"])
    with pytest.raises(UsageError, match="--scenes"):
        demo.main(["--scenes", "many"])
