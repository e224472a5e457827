from pathlib import Path

import pytest
from deltalake import DeltaTable

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from jobs import demo
from jobs.recipes import RECIPES


def test_the_demo_shows_every_hybrid_by_a_metric_and_columns_that_it_has() -> None:
    hybrids = [RECIPES[task.recipe]().hybrid for task in demo.TASKS]
    assert sorted(hybrids) == sorted(HYBRIDS)
    for task, name in zip(demo.TASKS, hybrids, strict=True):
        hybrid = HYBRIDS[name]
        assert task.metric in hybrid.metrics
        assert RECIPES[task.recipe]().train.metric == task.metric
        assert set(task.columns.split(", ")) <= set(hybrid.payload_schema.names)


@pytest.mark.usefixtures("ray_cluster")
def test_from_shards_to_sql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole line for one of the hybrids, with little data and one epoch."""
    monkeypatch.setattr(demo, "TASKS", [task for task in demo.TASKS if task.recipe == "translator-demo"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sizes = ["--scenes", "16", "--digits", "16", "--sentences", "200", "--epochs", "1"]
    summary = demo.main(["--out", str(tmp_path), *sizes])
    assert summary["tables"] == f"{tmp_path}/tables"
    assert summary["mlflow"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert summary["mlflow_command"] == f"mlflow server --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    assert list(summary["tasks"]) == ["translations"]
    task = summary["tasks"]["translations"]
    assert (task["metric"], task["model"]) == ("bleu", "models:/translator/1")
    assert task["baseline"] >= 0
    assert [(night["ds"], night["rows"], night["changed"]) for night in task["nights"]] == [
        ("2026-01-01", 90, True),
        ("2026-01-02", 90, True),
    ]
    assert task["rows"] == 180
    rows = DeltaTable(f"{tmp_path}/tables/translations").to_pyarrow_table()
    assert sorted(rows["ds"].to_pylist()) == ["2026-01-01"] * 90 + ["2026-01-02"] * 90
    assert set(rows["model"].to_pylist()) == {"models:/translator/1"}
    printed = capsys.readouterr()
    assert printed.out == "", "stdout is the summary's"
    assert "FROM translations ORDER BY ds, sample_id LIMIT 3" in printed.err


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write /proc/nowhere/"):
        demo.main(["--out", str(tmp_path), "--storage", "/proc/nowhere"])
    with pytest.raises(UsageError, match="--scenes"):
        demo.main(["--scenes", "many"])
