import os
from pathlib import Path

import mlflow
import pytest

from hybrid_models.errors import UsageError
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.models import artifacts, registry
from pipelines.models.tracking import Tracker
from tests import tiny

TRAINING = {"recipe": "translator-demo", "data": "s3://lake/pairs", "metrics": {"val_bleu": 31.25}}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with three versions of `translator`."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    files = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=1), TRAINING, "Card.\n")
    for number in ("1", "2", "3"):
        tracker = Tracker(uri)
        tracker.start("train", {}, {})
        assert tracker.register("translator", files) == number
    return uri


def test_versions_have_what_their_training_noted(uri: str) -> None:
    found = registry.versions(uri, ["captioner", "translator"])
    assert [(one.name, one.version) for one in found] == [("translator", number) for number in "321"]
    assert [list(one.aliases)[:1] for one in found] == [["challenger"], [], []]
    assert found[2].training == TRAINING
    assert found[0].created.startswith("20")


def test_a_champion_gives_way_to_the_next_and_stays_known(uri: str) -> None:
    client = mlflow.MlflowClient(uri)
    assert registry.champion(uri, "translator") is None
    registry.promote(uri, "translator", "1")
    assert registry.champion(uri, "translator") == "1"
    registry.promote(uri, "translator", "3")
    registry.promote(uri, "translator", "3")
    assert registry.champion(uri, "translator") == "3"
    assert str(client.get_model_version_by_alias("translator", "previous").version) == "1"
    aliases = {one.version: list(one.aliases) for one in registry.versions(uri, ["translator"])}
    assert aliases == {"3": ["challenger", "champion"], "2": [], "1": ["previous"]}


def test_models_have_names_of_their_own_and_a_kind(uri: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/mlflow.db"
    files = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=1), TRAINING, "Card.\n")
    for name in ("translator-de-en", "main.models.translator", "translator"):
        tracker = Tracker(other)
        tracker.start("train", {}, {})
        assert tracker.register(name, files) == "1"
    client = mlflow.MlflowClient(other)
    client.create_registered_model("captioner")  # of an earlier version
    client.create_registered_model("somebody-elses")
    client.create_registered_model("strange", tags={"hybrid.kind": "painter"})
    assert registry.kinds(other) == {
        "captioner": "captioner", "main.models.translator": "translator", "translator": "translator",
        "translator-de-en": "translator",
    }  # fmt: skip
    registry.promote(other, "main.models.translator", "1")
    assert registry.champion(other, "main.models.translator") == "1"
    assert registry.champion(other, "translator") is None
    assert artifacts.read("models:/main.models.translator@champion", "translator", other).version == "1"
    registry.check_kind(other, "translator-de-en", "translator")
    registry.check_kind(other, "new", "nowcaster")
    for name, kind in (("translator-de-en", "captioner"), ("nowcaster", "captioner")):
        with pytest.raises(UsageError, match=rf"`register_as` {name} is a \w+, not a captioner: give another name"):
            registry.check_kind(other, name, kind)
    registry.check_kind("sqlite:////proc/nowhere/mlflow.db", "translator", "translator")


def test_a_decision_is_kept_with_its_version(uri: str) -> None:
    registry.note(uri, "translator", "2", {"promoted": False, "metric": "bleu"})
    found = {one.version: one.promotion for one in registry.versions(uri, ["translator"])}
    assert found["2"] == {"promoted": False, "metric": "bleu"}
    assert found["1"] == {}


def test_what_is_not_there_is_named(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot promote models:/translator/99: .*99") as caught:
        registry.promote(uri, "translator", "99")
    assert "\n" not in str(caught.value)
    assert registry.champion(uri, "translator") != "99"
    with pytest.raises(UsageError, match=r"cannot ask for the champion of captioner: "):
        registry.champion(uri, "captioner")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setitem(os.environ, name, "1")
    with pytest.raises(ConnectionError) as caught:
        registry.versions("http://someone:secret@127.0.0.1:9", ["translator"])
    assert str(caught.value).startswith("MLflow at http://***@127.0.0.1:9: cannot list the models: ")
    assert "secret" not in str(caught.value)
