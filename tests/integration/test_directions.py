"""Two directions of translation, side by side: each is trained, promoted and run at night under its own name, one of
them such as catalogues give."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs import infer, nightly, promote, report, train
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
    for name, source, target in (("translator", "en", "de"), ("shop.de_en", "de", "en")):
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
    assert registry.kinds(tracking_uri) == {"translator": "translator", "shop.de_en": "translator"}
    with pytest.raises(UsageError, match="`register_as` captioner is a captioner, not a translator"):
        train.main([*run, "--register-as", "captioner", *mlflow])

    night = ["translations", "--input", f"{tmp_path}/sentences/night/ds={{ds}}", "--tables", f"{tmp_path}/tables",
             "--ds", "2026-01-01", "--max-error-fraction", "1", *mlflow]  # fmt: skip
    nightly.main(night)
    nightly.main([*night, "--model", "models:/shop.de_en@champion", "--table", "english"])
    sql = "SELECT model FROM translations_all UNION SELECT model FROM english_all ORDER BY model"
    found = query.query(sql, f"{tmp_path}/tables", ownership.names(f"{tmp_path}/tables"))
    assert found["model"].to_pylist() == ["models:/shop.de_en/1", "models:/translator/1"]

    tables = ["--tables", f"{tmp_path}/tables", "--ds", "2026-01-01", *mlflow]
    given = ["--input", f"{tmp_path}/sentences/night/ds=2026-01-01", "--table", "english", "--max-error-fraction", "1"]
    again = infer.main(["translations", *given, "--model", "models:/shop.de_en@champion", *tables])
    assert (again["model"], again["changed"], again["rows_computed"]) == ("models:/shop.de_en/1", False, 0)
    told = report.main(tables)
    assert set(told["tables"]) == {"translations", "english"}
    page = Path(told["out"]).read_text()
    assert "models:/shop.de_en/1" in page
    assert page.count("<figure>") == 6, "both models are found by their names"
