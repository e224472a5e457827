from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs import models
from pipelines.models import server
from pipelines.models.registry import Version

TRAINING = {"recipe": "captioner-demo", "data": "lake/scenes", "metrics": {"val_cider_d": 2.5, "val_bleu4": 70.126}}
DECISION = {
    "promoted": False, "forced": "", "metric": "cider_d", "candidate_value": 2.5, "rival_value": 2.75,
    "rival": "models:/captioner/1",
}  # fmt: skip


def version(training: dict, promotion: dict) -> Version:
    return Version("products", "2", ["challenger", "champion"], "2026-01-31 03:00", training, promotion)


def test_a_row_tells_where_a_model_comes_from_and_what_was_decided() -> None:
    assert models.row(version(TRAINING, DECISION), "captioner") == {
        "model": "models:/products/2",
        "kind": "captioner",
        "aliases": "challenger champion",
        "created": "2026-01-31 03:00",
        "recipe": "captioner-demo",
        "data": "lake/scenes",
        "metrics": "cider_d=2.5 bleu4=70.13",
        "promotion": "refused; cider_d 2.5, 2.75 of models:/captioner/1",
    }
    assert models.row(version({}, {}), "captioner")["promotion"] is None
    forced = {"promoted": True, "forced": "the old one is broken"}
    assert models.row(version({}, forced), "captioner")["promotion"] == "forced: the old one is broken"
    odd = models.row(version({"metrics": {"val_loss": None, "val_bleu": 3.0}}, {"rival": "x"}), "captioner")
    assert (odd["metrics"], odd["promotion"]) == ("bleu=3", "refused")
    assert models.row(version({"metrics": 7}, {}), "captioner")["metrics"] == ""


def test_an_empty_registry_is_an_empty_table(tracking_uri: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    server.make_ready(tracking_uri)
    models.main(["--mlflow", tracking_uri, "--format", "csv"])
    assert capsysbinary.readouterr().out.decode().strip() == (
        '"model","kind","aliases","created","recipe","data","metrics","promotion"'
    )


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"there is no MLflow database at {tmp_path}/mlflow.db"):
        models.main(["--mlflow", f"sqlite:///{tmp_path}/mlflow.db?timeout=60"])
    assert not list(tmp_path.iterdir())


def test_a_terminal_sees_all_of_a_version(tracking_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.text(models.row(version(TRAINING, DECISION), "captioner")).splitlines() == [
        "models:/products/2 captioner 2026-01-31 03:00 challenger champion",
        "    captioner-demo on lake/scenes",
        "    cider_d=2.5 bleu4=70.13",
        "    refused; cider_d 2.5, 2.75 of models:/captioner/1",
    ]
    server.make_ready(tracking_uri)
    models.main(["--mlflow", tracking_uri])
    assert capsys.readouterr().out == "no models: `hybrid train` registers them\n"
