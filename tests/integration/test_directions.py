"""Two directions of translation, side by side: each is trained, promoted and run at night under its own name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs import nightly, promote, train
from pipelines.datasets.demo.data import prepare_demo
from pipelines.models import registry
from pipelines.nights import ownership, query

SMALL = [
    *("--train.epochs", "1", "--train.validate-samples", "8", "--model.vocab-size", "300", "--pictures", "0"),
    *(word for size in ("hidden", "embedding", "attention") for word in (f"--model.{size}-size", "16")),
]


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_each_has_its_name_champion_and_table(tmp_path: Path, tracking_uri: str) -> None:
    prepare_demo(str(tmp_path), 8, 8, 64, night_rows=3, rows_per_shard=32, seed=0)
    mlflow = ["--mlflow", tracking_uri]
    for name, source, target in (("translator", "en", "de"), ("translator-de-en", "de", "en")):
        direction = ["--model.source", source, "--model.target", target, "--name", name, "--register-as", name]
        run = [
            "translator-demo",
            "--data",
            f"{tmp_path}/sentences",
            "--storage",
            f"{tmp_path}/lake",
            *direction,
            *SMALL,
        ]
        trained = train.main([*run, *mlflow])
        assert trained["model"] == f"models:/{name}/1"
        assert promote.main([name, "--force", "a test", *mlflow])["champion"] == f"models:/{name}/1"
    assert registry.kinds(tracking_uri) == {"translator": "translator", "translator-de-en": "translator"}
    with pytest.raises(UsageError, match="`register_as` captioner is a captioner, not a translator"):
        train.main([*run, "--register-as", "captioner", *mlflow])

    night = ["translations", "--input", f"{tmp_path}/sentences/night/ds={{ds}}", "--tables", f"{tmp_path}/tables",
             "--ds", "2026-01-01", "--max-error-fraction", "1", *mlflow]  # fmt: skip
    nightly.main(night)
    nightly.main([*night, "--model", "models:/translator-de-en@champion", "--table", "english"])
    sql = "SELECT model FROM translations_all UNION SELECT model FROM english_all ORDER BY model"
    found = query.query(sql, f"{tmp_path}/tables", ownership.names(f"{tmp_path}/tables"))
    assert found["model"].to_pylist() == ["models:/translator-de-en/1", "models:/translator/1"]
