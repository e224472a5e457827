import json
import os
import sqlite3
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from hybrid_models.errors import UsageError
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.models import artifacts, tracking
from pipelines.models.tracking import Tracker, default_uri, fetch_model, flatten
from tests import tiny

AWAY = "http://127.0.0.1:9"
FILES = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=1), {}, "Card.\n")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow whose folder does not exist yet; making its tables takes seconds, so the tests share it."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/new/mlflow.db"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def started(uri: str, name: str = "run") -> tuple[Tracker, str]:
    tracker = Tracker(uri)
    run_id = tracker.start(name, {"recipe": "r", "model": {"hidden_size": 32, "cell": "gru"}}, {"hybrid.job": "train"})
    assert run_id is not None
    return tracker, run_id


def curve(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """A metric as MLflow has it: steps and values."""
    history = mlflow.MlflowClient(uri).get_metric_history(run_id, key)
    return [(metric.step, metric.value) for metric in history]


def test_what_is_logged_has_no_passwords(uri: str) -> None:
    tracker = Tracker(uri)
    address = "https://someone:marked@host/x?sig=marked"
    run_id = tracker.start(address, {"input": address, "model": {"uri": address}}, {"hybrid.job": address})
    assert run_id is not None
    tracker.log_text(json.dumps({"mlflow": address}), "summary.json")
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert run.info.run_name == run.data.params["input"] == "https://***@host/x?sig=***"
    assert "marked" not in str(run.to_dictionary())
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/summary.json")
    assert json.loads(text) == {"mlflow": "https://***@host/x?sig=***"}


def test_a_run_belongs_to_its_experiment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def experiment_of(**given: str) -> str:
        tracker = Tracker(uri)
        run_id = tracker.start("run", {}, {}, **given)
        assert run_id is not None
        api = mlflow.MlflowClient(uri)
        return str(api.get_experiment(api.get_run(run_id).info.experiment_id).name)

    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert experiment_of() == "hybrid"
    assert experiment_of(experiment="products") == experiment_of(experiment="products") == "products"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the-teams")
    assert experiment_of() == "the-teams"
    assert experiment_of(experiment="products") == "products"


# ---- runs --------------------------------------------------------------------------------------------------------
def test_two_jobs_that_start_together_make_one_experiment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for it, and finds none, before the other one has made it."""
    Tracker(uri).start("first", {}, {}, "together")
    tracker = Tracker(uri)
    ask, answers = tracker._client.get_experiment_by_name, [None]
    monkeypatch.setattr(tracker._client, "get_experiment_by_name", lambda name: answers.pop() if answers else ask(name))
    assert tracker.start("second", {}, {}, "together") is not None
    runs = mlflow.MlflowClient(uri).search_runs([ask("together").experiment_id])
    assert {run.info.run_name for run in runs} == {"first", "second"}


def test_a_run_has_its_name_parameters_tags_and_end(uri: str) -> None:
    tracker, run_id = started(uri, "night")
    tracker.log_metrics({"rows": 60, "errors/X": 2}, step=3)
    tracker.log_text('{"rows": 60}', "summary.json")
    tracker.log_file(b"picture", "pictures/one.png")
    tracker.log_file(b"table", "two.csv")
    tracker.finish()
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.run_name == "night"
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "hybrid"
    assert run.data.params == {"recipe": "r", "model.hidden_size": "32", "model.cell": "gru"}
    assert run.data.tags["hybrid.job"] == "train"
    assert curve(uri, run_id, "rows") == [(3, 60.0)]
    assert curve(uri, run_id, "errors/X") == [(3, 2.0)]
    local = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (local / "summary.json").read_text() == '{"rows": 60}'
    assert (local / "pictures/one.png").read_bytes() == b"picture"
    assert (local / "two.csv").read_bytes() == b"table"

    again = Tracker(uri, run_id)
    again.resume()
    assert client.get_run(run_id).info.status == "RUNNING"
    again.finish(succeeded=False)
    assert client.get_run(run_id).info.status == "FAILED"


def entries(first: int, stop: int) -> list[dict[str, float]]:
    """A history as training keeps it: the loss at every step, the validation loss at every third one."""
    history: list[dict[str, float]] = []
    for step in range(first, stop):
        history.append({"step": step, "time": 1000 + step, "loss": 10.0 - step})
        if step % 3 == 0:
            history.append({"step": step, "time": 1000 + step, "val_loss": 100.0 - step, "epoch": step / 3})
    return history


def test_curves_are_caught_up_without_repeated_or_missing_steps(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "METRICS_PER_REQUEST", 4)  # several requests
    tracker, run_id = started(uri)
    tracker.catch_up([])
    tracker.catch_up(entries(1, 5))
    tracker.catch_up(entries(1, 5))
    Tracker(uri, run_id).catch_up(entries(1, 11))  # a resumed run has the whole history again
    tracker.catch_up(entries(1, 12))
    assert curve(uri, run_id, "loss") == [(step, 10.0 - step) for step in range(1, 12)]
    assert curve(uri, run_id, "val_loss") == [(step, 100.0 - step) for step in (3, 6, 9)]
    assert curve(uri, run_id, "epoch") == [(3, 1.0), (6, 2.0), (9, 3.0)]
    times = [metric.timestamp for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, "loss")]
    assert times == [1000 + step for step in range(1, 12)], "the time of training, not of catching up"


def test_what_was_logged_when_mlflow_came_back_is_whole(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, run_id = started(uri)
    whole = tracker._client.log_batch

    def away(*args: object, **kwargs: object) -> None:
        raise MlflowException("connection refused")

    monkeypatch.setattr(tracker._client, "log_batch", away)
    tracker.catch_up(entries(1, 4))
    monkeypatch.setattr(tracker._client, "log_batch", whole)
    assert curve(uri, run_id, "loss") == []
    tracker.catch_up(entries(1, 7))
    assert curve(uri, run_id, "loss") == [(step, 10.0 - step) for step in range(1, 7)]


def test_many_parameters_go_in_several_requests(uri: str) -> None:
    tracker = Tracker(uri)
    run_id = tracker.start("wide", {f"p{i}": i for i in range(230)}, {})
    assert run_id is not None
    assert mlflow.MlflowClient(uri).get_run(run_id).data.params == {f"p{i}": str(i) for i in range(230)}


def test_flatten() -> None:
    assert dict(flatten({"a": 1, "b": {"c": {"d": 2}, "e": [3]}, "f": {}})) == {"a": 1, "b.c.d": 2, "b.e": [3]}


# ---- MLflow away -------------------------------------------------------------------------------------------------
def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pipelines.models.tracking"]


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_away_costs_a_warning_and_little_time(caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    tracker = Tracker(AWAY)
    assert tracker.start("run", {}, {}) is None
    assert tracker.run_id is None
    tracker.catch_up(entries(1, 3))
    tracker.log_text("x", "x.txt")
    tracker.log_file(b"x", "x.png")
    assert tracker.register("translator", {}) is None
    tracker.finish()
    assert len(warnings(caplog)) == 1, "without a run nothing more is tried"
    assert warnings(caplog)[0].startswith(f"MLflow at {AWAY}: cannot create the run, going on without it: ")

    tracker = Tracker(AWAY, "an-earlier-run")
    tracker.resume()
    tracker.catch_up(entries(1, 3))
    tracker.log_text("x", "x.txt")
    assert tracker.register("translator", FILES) is None
    tracker.finish()
    said = [line.split(": cannot ")[1].split(",")[0] for line in warnings(caplog)[1:]]
    assert said == ["resume the run", "log metrics", "store x.txt", "register the model", "end the run"]
    assert all("\n" not in line for line in warnings(caplog))
    assert time.monotonic() - began < 60


def test_a_file_that_is_no_database_is_a_warning_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    assert Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}").start("run", {}, {}) is None
    assert "cannot create the run, going on without it: " in warnings(caplog)[0]


def test_a_database_that_cannot_be_opened_is_a_warning_too(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker("sqlite:////proc/nowhere/mlflow.db")
    assert tracker.start("run", {}, {}) is None
    assert len(warnings(caplog)) == 1
    assert "cannot create the run, going on without it: " in warnings(caplog)[0]
    Tracker("sqlite:////proc/nowhere/mlflow.db", "an-earlier-run").catch_up(entries(1, 3))
    assert len(warnings(caplog)) == 2


@pytest.mark.usefixtures("impatient")
def test_a_model_of_a_server_that_is_away_is_no_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError) as caught:
        fetch_model("models:/translator/1", tmp_path, AWAY)
    assert str(caught.value).startswith(f"MLflow at {AWAY}: cannot get models:/translator/1: ")
    assert "\n" not in str(caught.value)


def test_defaults_make_mlflow_give_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    Tracker(AWAY)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "90")
    Tracker(AWAY)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "90", "whoever sets it knows better"


# ---- registered models -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def versions(uri: str) -> list[dict[str, bytes]]:
    """Two registered versions of `translator`."""
    made = []
    for seed in (0, 1):
        tracker, _ = started(uri, f"train {seed}")
        files = artifacts.make(tiny.translator(seed), TranslatorDecoding(beam_size=1), {"seed": seed}, "Card.\n")
        assert tracker.register("translator", files) == str(seed + 1)
        tracker.finish()
        made.append(files)
    return made


def test_registered_models_are_fetched_by_version_and_alias(
    uri: str, versions: list[dict[str, bytes]], tmp_path: Path
) -> None:
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/translator/99", "MLflow at {uri}: cannot get models:/translator/99: "),
        ("models:/translator@nobody", "MLflow at {uri}: cannot get models:/translator@nobody: "),
        ("models:/painter/1", "MLflow at {uri}: cannot get models:/painter/1: "),
        ("models:/translator/one", "MLflow at {uri}: cannot get models:/translator/one: "),
        ("models:/translator", "models:/translator names no version: write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/translator/", "models:/translator/ names no version: write "),
        ("models:/", "models:/ names no version: write "),
    ],
)
@pytest.mark.usefixtures("versions")
def test_unknown_models_are_named(uri: str, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        fetch_model(name, tmp_path, uri)
    assert str(caught.value).startswith(message.format(uri=uri))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_hybrid_is_refused(uri: str, tmp_path: Path) -> None:
    tracker, run_id = started(uri, "other")
    tracker.log_text("x", "other/MLmodel")
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("other")
    client.create_model_version("other", f"{client.get_run(run_id).info.artifact_uri}/other")
    with pytest.raises(UsageError, match=r"models:/other/1 holds no hybrid's artifact: was it registered by `hybrid"):
        fetch_model("models:/other/1", tmp_path, uri)


# ---- where MLflow is ---------------------------------------------------------------------------------------------
def test_the_default_is_the_environment_or_an_absolute_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "sqlite:///mlflow.db")
    assert default_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{tmp_path}/x/y.db")
    assert default_uri() == f"sqlite:///{tmp_path}/x/y.db"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://mlflow.example")
    assert default_uri() == "https://mlflow.example"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other.example")
    assert default_uri() == "https://other.example"


def test_a_model_that_is_too_large_is_not_fetched(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, _ = started(uri)
    version = tracker.register("translator", FILES)
    least = sum(map(len, FILES.values()))
    monkeypatch.setattr(tracking, "MAX_MODEL", least)  # MLflow's own files come on top
    with pytest.raises(UsageError, match=rf"^models:/translator/{version} has [\d,]+ bytes, more than {least:,}: "):
        fetch_model(f"models:/translator/{version}", tmp_path, uri)
    assert list(tmp_path.iterdir()) == []


def test_a_registration_is_whole_or_taken_up_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is there, but its alias failed: the challenger is the one before. Done again, it is this one."""
    before, tracker = Tracker(uri), Tracker(uri)
    for each in (before, tracker):
        each.start("train", {}, {})
    assert before.register("taken-up", FILES) == "1"
    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "set_registered_model_alias", None)
        assert tracker.register("taken-up", FILES) is None
    client = mlflow.MlflowClient(uri)
    assert str(client.get_model_version_by_alias("taken-up", "challenger").version) == "1"
    assert tracker.register("taken-up", FILES) == "2"
    assert str(client.get_model_version_by_alias("taken-up", "challenger").version) == "2"
    assert len(client.search_model_versions("name = 'taken-up'")) == 2, "and there is no third one"


def test_a_new_database_is_made_ready_before_two_ask_it(tmp_path: Path) -> None:
    new = f"sqlite:///{tmp_path}/new/mlflow.db"
    tracking.make_ready(new)
    tables = sqlite3.connect(tmp_path / "new/mlflow.db").execute("SELECT name FROM sqlite_master").fetchall()
    assert {("experiments",), ("registered_models",)} <= set(tables)


@pytest.mark.usefixtures("impatient")
def test_what_cannot_be_made_ready_is_told_in_one_line() -> None:
    with pytest.raises(ConnectionError, match=rf"^MLflow at {AWAY}: cannot be opened: "):
        tracking.make_ready(AWAY)
