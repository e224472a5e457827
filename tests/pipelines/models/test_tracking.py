import json
import re
import time
from importlib import metadata
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException

from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.models import artifacts, tracking
from pipelines.models.server import default_is
from pipelines.models.tracking import Tracker, flatten
from tests import tiny

AWAY = "http://127.0.0.1:9"
FILES = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=1), {}, "Card.\n")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow whose folder does not exist yet; making its tables takes seconds, so the tests share it."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/new/mlflow.db"


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


# ---- the registered model's environment -----------------------------------------------------------------------------
def test_a_registered_model_names_pinned_packages_of_others_and_brings_its_own_code(uri: str, tmp_path: Path) -> None:
    """Our own name is not registered on the public index: whoever registers it would run code in each environment."""
    tracker = Tracker(uri)
    tracker.start("train", {}, {})
    assert tracker.register("environment", FILES) == "1"
    with default_is(uri):
        stored = Path(mlflow.artifacts.download_artifacts("models:/environment/1", dst_path=str(tmp_path)))
    requirements = (stored / "requirements.txt").read_text().split()
    assert requirements == tracking.pinned_requirements()
    for line in requirements:
        name, version = line.split("==")
        assert "+" not in version, "an index has no local versions"
        assert metadata.version(name).split("+")[0] == version
    conda = yaml.safe_load((stored / "conda.yaml").read_text())["dependencies"]
    assert next(each["pip"] for each in conda if isinstance(each, dict)) == requirements
    python = yaml.safe_load((stored / "python_env.yaml").read_text())
    assert python["dependencies"] == ["-r requirements.txt"]
    for file in ("requirements.txt", "conda.yaml", "python_env.yaml", "MLmodel"):
        assert not re.search(r"hybrid[-_.]pipelines", (stored / file).read_text(), re.IGNORECASE), file

    code = {path.relative_to(stored / "code").as_posix() for path in (stored / "code").rglob("*") if path.is_file()}
    assert {"hybrid_models/translator/translator.py", "pipelines/models/session.py"} <= code
    assert {path.split("/")[0] for path in code} == {"hybrid_models", "pipelines"}
    assert sum((stored / "code" / path).stat().st_size for path in code) < 2 << 20


def test_of_a_checkout_only_modules_become_the_models_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (
        "__init__.py",
        "room/__init__.py",
        "room/.env",
        "notes.md",
        ".old/a.py",
        "__pycache__/a.pyc",
        "a-b.py",
    ):
        (tmp_path / "pipelines" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pipelines" / path).write_text("x = 1")
    monkeypatch.setattr(tracking.pipelines, "__file__", str(tmp_path / "pipelines" / "__init__.py"))
    _, copied = tracking._copy_packages(tmp_path / "scratch")
    files = [path.relative_to(copied).as_posix() for path in Path(copied).rglob("*") if path.is_file()]
    assert sorted(files) == ["__init__.py", "room/__init__.py"]
