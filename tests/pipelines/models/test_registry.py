import json
import os
from pathlib import Path

import mlflow
import pytest

from hybrid_models.errors import UsageError
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.models import artifacts, registry
from pipelines.models.registry import fetch_model
from pipelines.models.tracking import Tracker
from tests import tiny

AWAY = "http://127.0.0.1:9"
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


def test_a_tag_that_is_damaged_hides_no_version(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    client = mlflow.MlflowClient(uri)
    for tag in ("{", "[1]"):
        client.set_model_version_tag("translator", "2", registry.TRAINING_TAG, tag)
        found = {one.version: one.training for one in registry.versions(uri, ["translator"])}
        assert found["2"] == {}
        assert found["1"] == TRAINING
    assert "models:/translator/2: its tag " in caplog.text
    client.set_model_version_tag("translator", "2", registry.TRAINING_TAG, json.dumps(TRAINING))


def test_a_champion_gives_way_to_the_next_and_stays_known(uri: str) -> None:
    client = mlflow.MlflowClient(uri)
    assert registry.champion(uri, "translator") is None
    registry.promote(uri, "translator", "1")
    assert registry.champion(uri, "translator") == "1"
    registry.promote(uri, "translator", "3", "1")
    registry.promote(uri, "translator", "3", "3")
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
    with pytest.raises(UsageError, match=r"^translator has no champion yet: `hybrid promote translator` makes"):
        artifacts.read("models:/translator@champion", "translator", other)
    registry.promote(other, "main.models.translator", "1")
    assert registry.champion(other, "main.models.translator") == "1"
    assert registry.champion(other, "translator") is None
    assert artifacts.read("models:/main.models.translator@champion", "translator", other).version == "1"
    registry.check(other, "translator-de-en", "translator", "hybrid")
    registry.check(other, "new", "nowcaster", "hybrid")
    for name, kind in (("translator-de-en", "captioner"), ("nowcaster", "captioner")):
        with pytest.raises(UsageError, match=rf"`register_as` {name} is a \w+, not a captioner: give another name"):
            registry.check(other, name, kind, "hybrid")
    registry.check("sqlite:////proc/nowhere/mlflow.db", "translator", "translator", "hybrid")
    registry.check(other, "somebody-elses", "captioner", "hybrid")  # which has no version
    client.create_model_version("somebody-elses", f"file://{tmp_path}")
    with pytest.raises(UsageError, match=r"somebody-elses is somebody's model, and no hybrid: give another name$"):
        registry.check(other, "somebody-elses", "captioner", "hybrid")


def test_a_name_that_another_kind_took_meanwhile_is_left_to_it(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two first trainings were both checked before there was any model."""
    files = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=1), TRAINING, "Card.\n")
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("taken", tags={"hybrid.kind": "captioner"})
    tracker = Tracker(uri)
    tracker.start("train", {}, {})
    assert tracker.register("taken", files) is None
    assert "taken is a captioner by now, not a translator: the model is not registered" in caplog.text
    assert registry.kinds(uri)["taken"] == "captioner"
    assert not client.search_model_versions("name = 'taken'")


@pytest.mark.parametrize("name", ["o'brien", 'the "best"'])
def test_a_name_may_have_quotes(tmp_path: Path, name: str) -> None:
    """Of a model that somebody else registered, as a hybrid's."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    client.create_registered_model(name, tags={"hybrid.kind": "translator"})
    client.create_model_version(name, f"file://{tmp_path}")
    assert [(one.name, one.version) for one in registry.versions(uri, list(registry.kinds(uri)))] == [(name, "1")]


def test_a_decision_is_kept_with_its_version(uri: str) -> None:
    registry.note(uri, "translator", "2", {"promoted": False, "metric": "bleu"})
    found = {one.version: one.promotion for one in registry.versions(uri, ["translator"])}
    assert found["2"] == {"promoted": False, "metric": "bleu"}
    assert found["1"] == {}


def test_what_is_not_there_is_named(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot promote models:/translator/99: .*99") as caught:
        registry.promote(uri, "translator", "99", registry.champion(uri, "translator"))
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


# ---- fetched -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, bytes]]]:
    """An MLflow with two registered versions of `translator`, and their files."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('shelf')}/mlflow.db"
    made = []
    for seed in (0, 1):
        tracker = Tracker(uri)
        tracker.start(f"train {seed}", {}, {})
        files = artifacts.make(tiny.translator(seed), TranslatorDecoding(beam_size=1), {"seed": seed}, "Card.\n")
        assert tracker.register("translator", files) == str(seed + 1)
        tracker.finish()
        made.append(files)
    return uri, made


def test_registered_models_are_fetched_by_version_and_alias(
    shelf: tuple[str, list[dict[str, bytes]]], tmp_path: Path
) -> None:
    uri, versions = shelf
    settings = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), [os.environ.get(name) for name in settings])
    mlflow.MlflowClient(uri, registry_uri=uri).set_registered_model_alias("translator", "champion", "1")
    expected = {
        "models:/translator/1": ("1", versions[0]),
        "models:/translator/2": ("2", versions[1]),
        "models:/translator@challenger": ("2", versions[1]),
        "models:/translator@champion": ("1", versions[0]),
    }
    for number, (name, (version, files)) in enumerate(expected.items()):
        target = tmp_path / str(number)
        target.mkdir()
        folder, model, found = fetch_model(name, target, uri)
        assert (model, found) == (f"models:/translator/{version}", version)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        artifact = artifacts.read(name, "translator", uri)
        assert (artifact.model, artifact.version) == (f"models:/translator/{version}", version)
        assert artifact.meta["training"] == {"seed": int(version) - 1}
    after = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), [os.environ.get(name) for name in settings])
    assert after == before
    assert not any(path.suffix in (".pkl", ".pickle") for path in tmp_path.rglob("*")), "nothing is pickled"
    assert not any(path.suffix == ".py" for path in tmp_path.rglob("*")), "the code of MLflow's loader is not fetched"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/translator/99", "MLflow at {uri}: cannot get models:/translator/99: "),
        ("models:/translator@nobody", "MLflow at {uri}: cannot get models:/translator@nobody: "),
        ("models:/painter@champion", "there is no registered model painter yet: `hybrid train` registers one"),
        ("models:/painter/1", "MLflow at {uri}: cannot get models:/painter/1: "),
        ("models:/translator/one", "MLflow at {uri}: cannot get models:/translator/one: "),
        ("models:/translator", "models:/translator names no version: write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/translator/", "models:/translator/ names no version: write "),
        ("models:/", "models:/ names no version: write "),
    ],
)
def test_unknown_models_are_named(uri: str, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        fetch_model(name, tmp_path, uri)
    assert str(caught.value).startswith(message.format(uri=uri))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_hybrid_is_refused(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri)
    run_id = tracker.start("other", {}, {})
    assert run_id is not None
    tracker.log_text("x", "other/MLmodel")
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("other")
    client.create_model_version("other", f"{client.get_run(run_id).info.artifact_uri}/other")
    with pytest.raises(UsageError, match=r"models:/other/1 holds no hybrid's artifact: was it registered by `hybrid"):
        fetch_model("models:/other/1", tmp_path, uri)


def test_a_model_that_is_too_large_is_not_fetched(
    shelf: tuple[str, list[dict[str, bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, versions = shelf
    least = sum(map(len, versions[1].values()))
    monkeypatch.setattr(registry, "MAX_MODEL", least - 1)
    with pytest.raises(UsageError, match=rf"^models:/translator/2 has [\d,]+ bytes, more than {least - 1:,}: "):
        fetch_model("models:/translator/2", tmp_path, uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("impatient")
def test_a_model_of_a_server_that_is_away_is_no_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError) as caught:
        fetch_model("models:/translator/1", tmp_path, AWAY)
    assert str(caught.value).startswith(f"MLflow at {AWAY}: cannot get models:/translator/1: ")
    assert "\n" not in str(caught.value)
