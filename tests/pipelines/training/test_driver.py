import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import ray
import torch
from PIL import Image
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from safetensors.torch import load as load_tensors

from hybrid_models import contract
from hybrid_models.errors import UsageError
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import Translator, TranslatorDecoding
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.staging import checks
from pipelines.staging.prepared import PreparedSamples, SampleIndex
from pipelines.storage import StorageError
from pipelines.training import driver, loop, preparation, runs, workers
from pipelines.training.checkpoints import Progress
from pipelines.training.recipe import Recipe, TrainConfig
from pipelines.training.runs import TrainJob, TrainTask
from tests import tiny

RECIPE = Recipe(
    "translator",
    TranslatorConfig(vocab_size=300, embedding_size=16, hidden_size=32, attention_size=16, dropout=0.2),
    TranslatorDecoding(beam_size=1, max_length=12),
    TrainConfig(
        epochs=3, batch_size=16, learning_rate=1e-2, warmup_steps=5, patience=3, validate_samples=8, max_failures=0
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training and validation pairs; one of each split cannot be used."""
    folder = tmp_path_factory.mktemp("lake")
    for split, rows, seed in (("train", 230, 1), ("val", 40, 2)):
        tiny.write_pairs(str(folder / "data" / split), rows, seed)
        storage.write_bytes(str(folder / "data" / split / "more.jsonl"), b'{"id": "bad", "en": "der Hund"}\n')
    return folder


def job_of(lake: Path, name: str, recipe: Recipe = RECIPE, num_workers: int = 1) -> TrainJob:
    mlflow_uri = f"sqlite:///{lake}/mlflow.db"
    return TrainJob(recipe, "test", str(lake / "data"), str(lake), name, mlflow_uri, num_workers, Resources())


def train_to_the_end(job: TrainJob) -> dict[str, Any]:
    return asdict(driver.train(job, runs.check(job)))


@dataclass(frozen=True)
class Trained:
    """What a run left."""

    job: TrainJob
    summary: dict[str, Any]

    def weights(self, epoch: int) -> dict[str, torch.Tensor]:
        """The checkpoint after an epoch."""
        place = f"{self.job.run}/checkpoint_epoch_{epoch:04d}/weights.safetensors"
        return load_tensors(Path(place).read_bytes())

    @property
    def history(self) -> list[dict[str, float]]:
        """The entries without what differs from machine to machine."""
        lines = storage.read_text(f"{self.job.run}/history.jsonl").splitlines()
        noisy = ("time", "samples_per_second")
        return [{key: value for key, value in json.loads(line).items() if key not in noisy} for line in lines]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """A metric as MLflow has it."""
        client = mlflow.MlflowClient(self.job.tracking_uri)
        found = client.get_metric_history(self.summary["mlflow_run_id"], key)
        return [(metric.step, metric.value) for metric in found]


@pytest.fixture(scope="module")
def whole(ray_cluster: str, lake: Path) -> Trained:
    """Three epochs without interruption."""
    job = replace(job_of(lake, "whole"), pictures=2)
    return Trained(job, train_to_the_end(job))


def test_workers_take_gpus_and_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {"CPU": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(connection, "for_others", dict)
    for gpus, wanted, count, asked, per_worker, threads in (
        (0, "auto", 2, 0, {"CPU": pytest.approx(3.6)}, 4),
        (0, "auto", 2, 1, {"CPU": pytest.approx(0.9)}, 1),
        (0, "auto", 2, 6, {"CPU": pytest.approx(3.6)}, 4),
        (0, "auto", 160, 0, {"CPU": pytest.approx(0.045)}, 1),
        (4, "auto", 2, 0, {"CPU": 1.0, "GPU": 1.0}, 4),
        (4, "auto", 4, 0, {"CPU": 1.0, "GPU": 1.0}, 2),
        (4, "no", 2, 0, {"CPU": pytest.approx(3.6)}, 4),
        (0, "yes", 2, 0, {"CPU": 1.0, "GPU": 1.0}, 4),
    ):
        monkeypatch.setattr(ray, "cluster_resources", lambda gpus=gpus: {"GPU": gpus} if gpus else {})
        scaling, found = driver._scaling((count, count), wanted, asked)
        assert (scaling.use_gpu, scaling.num_workers, scaling.resources_per_worker, found) == (
            "GPU" in per_worker, count, per_worker, threads,
        )  # fmt: skip
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 4})
    with pytest.raises(UsageError, match="`num_workers` is 5, but the cluster has 4 GPUs: use at most one for each"):
        driver._scaling((5, 5), "auto", 0)
    assert driver._scaling((5, 5), "yes", 0)[0].use_gpu, "the cluster may grow"
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(connection, "for_others", lambda: {connection.STARTED_HERE: ""})
    with pytest.raises(UsageError, match=r"^`gpu` is yes, but this machine has no GPU: leave it out"):
        driver._scaling((1, 1), "yes", 0)  # Ray would wait for one without end
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 4})
    with pytest.raises(UsageError, match="`num_workers` is 5, but the cluster has 4 GPUs: use at most one for each"):
        driver._scaling((5, 5), "yes", 0)


def test_of_an_elastic_training_each_worker_is_as_large_as_if_there_were_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(ray, "cluster_resources", dict)
    for least, cpus, threads in ((1, 7.2, 8), (2, 3.6, 4)):
        scaling, found = driver._scaling((least, 4), "auto", 0)
        assert (scaling.min_workers, scaling.max_workers) == (least, 4)
        assert (scaling.resources_per_worker, found) == ({"CPU": pytest.approx(cpus)}, threads)
    assert not driver._scaling((4, 4), "auto", 0)[0].elasticity_enabled
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2})
    assert driver._scaling((2, 4), "auto", 0)[0].num_workers == (2, 4), "GPUs may come"
    with pytest.raises(UsageError, match="`num_workers` is 3, but the cluster has 2 GPUs"):
        driver._scaling((3, 4), "auto", 0)


# ---- one run -----------------------------------------------------------------------------------------------------
def test_the_vocabulary_is_that_of_the_training_texts_alone(whole: Trained) -> None:
    texts = [" ".join(reversed(sentence.split())) for sentence in tiny.sentences(230, 1)]
    pairs = [{"en": source, "de": target} for source, target in zip(tiny.sentences(230, 1), texts, strict=True)]
    alone = Translator.learn_assets(RECIPE.model, [t for pair in pairs for t in RECIPE.model.training_texts(pair)])
    assert artifacts.read(f"{whole.job.run}/artifact").assets == alone


def test_training_lowers_the_loss_and_keeps_the_best_model(whole: Trained) -> None:
    summary = whole.summary
    losses = [entry["val_loss"] for entry in whole.history if "val_loss" in entry]
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.95 * losses[0]
    assert (summary["epochs"], summary["best_epoch"], summary["steps"]) == (3, 3, 3 * (230 // 16))
    assert (summary["metric"], summary["value"]) == ("val_loss", losses[2])
    assert summary["bad_samples"]["train"] == summary["bad_samples"]["val"]
    assert sum(summary["bad_samples"]["train"].values()) == 1
    assert (summary["model"], summary["hybrid"]) == (f"models:/translator/{summary['model_version']}", "translator")
    finished = runs.finished(whole.job)
    assert finished is not None
    assert asdict(finished) == summary

    artifact = artifacts.read(summary["artifact"], "translator")
    assert artifact.config == RECIPE.model
    assert artifact.decoding == RECIPE.decoding
    state = artifact.load().state_dict()
    best = whole.weights(3)
    assert all(torch.equal(state[name], best[name]) for name in best)
    initial = artifacts.read(f"{whole.job.run}/initial").load().state_dict()
    assert not torch.equal(initial["bridge.weight"], state["bridge.weight"])
    registered = artifacts.read(summary["model"], "translator", whole.job.tracking_uri)
    assert registered.files[artifacts.WEIGHTS] == artifact.files[artifacts.WEIGHTS]
    card = (Path(summary["artifact"]) / "README.md").read_text()
    assert f"| loss | {losses[2]:.4g} |" in card
    assert f"{summary['parameters']:,} parameters" in card
    drawn = ["learning-curves.png", "example-1.png", "example-2.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", card) == drawn
    client = mlflow.MlflowClient(whole.job.tracking_uri)
    stored = client.list_artifacts(summary["mlflow_run_id"], "pictures")
    assert {Path(found.path).name for found in stored} == set(drawn)
    for name in drawn:
        assert Image.open(Path(summary["artifact"], name)).size > (200, 100)


def test_the_curves_in_mlflow_are_the_history(whole: Trained) -> None:
    steps = [entry["step"] for entry in whole.history if "loss" in entry]
    assert steps == [10, 14, 20, 28, 30, 40, 42], "every tenth step and the last of each epoch"
    for key in ("loss", "learning_rate", "gradient_norm", "val_loss", "val_bleu", "epoch"):
        assert whole.curve(key) == [(entry["step"], entry[key]) for entry in whole.history if key in entry], key
    client = mlflow.MlflowClient(whole.job.tracking_uri)
    run = client.get_run(whole.summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "16"
    assert run.data.params["model.hidden_size"] == "32"
    assert run.data.tags["hybrid.run"] == whole.job.run


# ---- killed and started again ------------------------------------------------------------------------------------
def dying_once(marker: str, epoch: int) -> Callable[[TrainTask], None]:
    """A worker that is killed after the steps of an epoch, before they are saved; Ray knows the last checkpoint."""

    def worker(task: TrainTask) -> None:
        from pipelines.training import loop

        validate = loop.validate
        last, registered = f"checkpoint_epoch_{epoch - 1:04d}", Path(task.run, "checkpoint_manager_snapshot.json")

        def validate_or_die(*args: Any) -> Any:
            if Path(task.run, last).exists() and not Path(marker).exists():
                for _ in range(300):
                    if registered.exists() and last in registered.read_text():
                        break
                    time.sleep(0.1)
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return validate(*args)

        loop.validate = validate_or_die  # type: ignore[assignment]
        loop.train_worker(task)

    return worker


def killed(job: TrainJob, marker: Path, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a run that dies in this epoch."""
    monkeypatch.setattr(driver, "train_worker", dying_once(str(marker), epoch))
    with pytest.raises(Exception, match=r"(?i)died|killed|unexpectedly|failed"):
        train_to_the_end(job)
    assert marker.exists()
    assert runs.finished(job) is None


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    whole: Trained, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in its third epoch; then the second one's checkpoint is cut off, and it goes on from the first one's.

    One that goes on from its newest checkpoint is in tests/chaos/test_accidents.py.
    """
    job = job_of(lake, "killed")
    killed(job, tmp_path / "died", 3, monkeypatch)
    first_start = runs.read_state(job)
    assert first_start is not None
    client = mlflow.MlflowClient(job.tracking_uri)
    assert client.get_run(str(first_start.mlflow_run_id)).info.status == "FAILED"
    staged = storage.list_files(f"{lake}/features")

    expected, found = whole.weights(2), Trained(job, {}).weights(2)
    assert all(torch.equal(expected[name], found[name]) for name in expected), "bit for bit"
    assert not [record for record in caplog.records if "is damaged" in record.getMessage()]
    newest = Path(job.run, "checkpoint_epoch_0002", "weights.safetensors")
    newest.write_bytes(newest.read_bytes()[:1000])

    again = Trained(job, train_to_the_end(job))
    (said,) = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert said.startswith(f"killed: {newest.parent} is damaged: ")
    assert said.endswith("; going on from the one before")
    assert again.summary["mlflow_run_id"] == first_start.mlflow_run_id, "the same command goes on in the same run"
    assert client.get_run(str(first_start.mlflow_run_id)).info.status == "FINISHED"
    assert storage.list_files(f"{lake}/features") == staged, "samples are not prepared again"
    assert again.history == whole.history, "no step is repeated or missing, and every value is the same"
    for key in ("loss", "val_loss", "gradient_norm", "epoch"):
        assert again.curve(key) == whole.curve(key)
    best = artifacts.read(again.summary["artifact"]).load().state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in whole.weights(3).items()), "bit for bit"

    for name in ("checkpoint_manager_snapshot.json", "history.jsonl", "summary.json"):  # as a full disk leaves them
        Path(job.run, name).write_bytes(Path(job.run, name).read_bytes()[:20])
    assert train_to_the_end(job) == again.summary, "what is trained is not trained again"


def dying_within(checkpoint: str, marker: str, notes: str) -> Callable[[TrainTask], None]:
    """A worker that notes where it begins, and is killed once, four steps after a checkpoint that Ray knows."""

    def worker(task: TrainTask) -> None:
        from pipelines.training import loop

        train_epoch, step = loop.train_epoch, loop.step
        snapshot, steps = Path(task.run, "checkpoint_manager_snapshot.json"), [0]

        def begun(*args: Any) -> None:
            with Path(notes).open("a") as file:
                file.write(f"{args[4].step} ")
            train_epoch(*args)

        def step_or_die(*args: Any) -> Any:
            steps[0] += Path(task.run, checkpoint).exists()
            if steps[0] > 4 and not Path(marker).exists():
                while checkpoint not in snapshot.read_text():
                    time.sleep(0.1)
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        loop.train_epoch, loop.step = begun, step_or_die
        loop.train_worker(task)

    return worker


def test_a_run_that_was_killed_within_an_epoch_goes_on_within_it(
    whole: Trained, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, train=replace(RECIPE.train, max_failures=1))
    job = replace(job_of(lake, "within", recipe), checkpoint_minutes=1e-9)
    worker = dying_within("checkpoint_epoch_0001_step_00000020", str(tmp_path / "died"), str(tmp_path / "begun"))
    monkeypatch.setattr(driver, "train_worker", worker)
    again = Trained(job, train_to_the_end(job))
    assert (tmp_path / "died").exists()
    assert (tmp_path / "begun").read_text().split() == ["0", "14", "20", "28"]
    assert again.history == whole.history, "no step is repeated or missing, and every value is the same"
    assert again.curve("loss") == whole.curve("loss")
    assert all(torch.equal(tensor, again.weights(3)[name]) for name, tensor in whole.weights(3).items()), "bit for bit"
    kept = {path.name for path in Path(job.run).glob("checkpoint_epoch_*")}
    assert kept == {f"checkpoint_epoch_{epoch:04d}" for epoch in (1, 2, 3)}, "those within epochs have made room"
    assert again.summary["value"] == whole.summary["value"]


def died(said: str) -> ActorDiedError:
    """As Ray tells what its controller died of when it was made."""
    told = f"Traceback (most recent call last):\n  File x.py, line 1, in __init__\n{said}"
    return ActorDiedError(RayTaskError("TrainController.__init__", told, Exception(said)))


@pytest.mark.parametrize(
    "failure",
    [
        ControllerError(OSError("AWS Error NETWORK_CONNECTION")),
        WorkerGroupError("", {0: StorageError("cannot write w")}),
        StorageError("cannot read the samples"),
        died("OSError: When listing 'x': AWS Error NETWORK_CONNECTION"),
    ],
)
def test_a_store_that_is_away_is_waited_for(
    failure: TrainingFailedError | StorageError | ActorDiedError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = job_of(tmp_path, "away")
    waits: list[float] = []
    monkeypatch.setattr(storage, "wait_for", lambda uri, seconds: waits.append(seconds))
    answers = iter([failure, failure])

    def fit() -> Any:
        if (error := next(answers, None)) is not None:
            raise error
        return "trained"

    assert driver._through_outages(fit, job) == "trained"
    assert waits == [driver.OUTAGE_SECONDS] * 2
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("away: the store failed, waiting until it answers (4 more times): ")

    answers = iter([failure] * 99)
    with pytest.raises(type(failure)):
        driver._through_outages(fit, job)
    assert len(waits) == 2 + driver.MAX_OUTAGES
    answers = iter([WorkerGroupError("", {0: FloatingPointError("the gradients are not finite")})])
    with pytest.raises(WorkerGroupError):
        driver._through_outages(fit, job)
    answers = iter([died("KeyError: 3")])
    with pytest.raises(ActorDiedError):
        driver._through_outages(fit, job)
    assert len(waits) == 2 + driver.MAX_OUTAGES, "no store failed"


def test_no_waiting_helps_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "wait_for", lambda *_: pytest.fail("there is nothing to wait for"))
    full = OSError(28, "No space left on device")
    for failure in (ControllerError(full), WorkerGroupError("", {0: StorageError(f"cannot write w: {full}")})):

        def fit(failure: TrainingFailedError = failure) -> None:
            raise failure

        with pytest.raises(TrainingFailedError):
            driver._through_outages(fit, job_of(tmp_path, "full"))


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_that_has_no_memory_for_a_step_says_what_to_lower(
    lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it has come to a checkpoint before: then something else takes the memory."""

    def short(task: TrainTask) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTry")

    monkeypatch.setattr(driver, "train_worker", short)
    job = job_of(lake, "short")
    with pytest.raises(
        UsageError, match=r"^short has not enough memory to train \(CUDA out of memory\.\): lower `train"
    ):
        train_to_the_end(job)
    assert runs.read_state(job) is None, "other options may be tried under its name"
    runs.claim(job, runs.check(job))
    storage.write_bytes(f"{job.run}/checkpoint_epoch_0001/progress.json", b"{}")
    failure = WorkerGroupError("", {0: torch.OutOfMemoryError("CUDA out of memory.")})
    monkeypatch.setattr(driver, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=lambda: raise_(failure)))
    with pytest.raises(WorkerGroupError):
        train_to_the_end(job)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou"),
            "DefaultCPUAllocator: can't allocate memory:",
        ),
        (FloatingPointError("not finite"), None),
        (
            WorkerHealthCheckFailedError("A worker health check failed.", RuntimeError("killed: out of memory")),
            "killed: out of memory",
        ),
        (WorkerHealthCheckFailedError("A worker health check failed.", RuntimeError("the node is gone")), None),
    ],
)
def test_a_worker_that_had_too_little_memory_is_known(failure: Exception, said: str | None) -> None:
    assert driver._shortage(WorkerGroupError("", {0: RuntimeError("another one"), 1: failure})) == said


def test_ctrl_c_is_the_programs_again_after_a_training() -> None:
    """Ray Train takes it, and calls `sys.exit(0)`."""
    before = signal.getsignal(signal.SIGINT)
    with driver._interruptible():
        signal.signal(signal.SIGINT, lambda *_: None)
    assert signal.getsignal(signal.SIGINT) is before

    @driver._interruptible()
    def interrupted() -> None:
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(SystemExit, match="143"), driver._interruptible():  # of SIGTERM
        sys.exit(143)


def fail_with(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("superseded", [True, False])
def test_a_start_that_is_not_the_newest_leaves_the_run_alone(
    superseded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, "twice")

    def fail(*_: object) -> None:
        if superseded:
            storage.write_bytes(f"{job.run}/attempt", b"another", storage.anything)
        raise UsageError("run 'twice' was started once more meanwhile")

    monkeypatch.setattr(driver, "_scaling", lambda *_: (None, 1))
    monkeypatch.setattr(driver, "initial_artifact", fail)
    with pytest.raises(UsageError, match="was started once more"):
        driver.train(job, ([], []))
    monkeypatch.setattr(driver, "is_newest", lambda *_: fail_with(StorageError("cannot read attempt")))
    with pytest.raises(UsageError, match="was started once more"):
        driver.train(replace(job, name="away"), ([], []))
    state = runs.read_state(job)
    assert (state is not None) == superseded
    found = {run.info.run_name: run.info.status for run in mlflow.MlflowClient(job.tracking_uri).search_runs(["1"])}
    assert found == {"away": "FAILED", "twice": "RUNNING" if superseded else "FAILED"}


def test_a_first_start_that_waits_for_mlflow_in_vain_lets_its_name_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, "begun")
    monkeypatch.setattr(driver, "_scaling", lambda *_: (None, 1))
    monkeypatch.setattr(driver.Tracker, "start", lambda *_: fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        driver.train(job, ([], []))
    assert runs.read_state(job) is None


def test_a_validation_shard_that_is_gone_costs_pictures_and_not_the_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was read hours ago, before the training."""
    for split in ("train", "val"):
        tiny.write_pairs(str(tmp_path / "data" / split), 20, 1)
    job = replace(job_of(tmp_path, "pictures"), pictures=1)
    shards = runs.check(job)
    logged = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "val_loss": 1.5}]

    def drawn() -> set[str]:
        return {name.split(".")[0] for name in driver._pictures(job, shards, tiny.translator(), logged, {})}

    assert drawn() == {"learning-curves", "example-1"}
    assert not caplog.records
    for shard in shards[1]:
        Path(shard.uri).unlink()
    assert drawn() == {"learning-curves"}
    assert "pictures: the model card has no examples: " in caplog.text


def test_more_workers_than_samples_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, "few", num_workers=4)
    driver._check_enough(job, [1, 2, 3, 4])  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match="has 3 samples to train on, too few for `num_workers` 4: it must have at least 4"
    ):
        driver._check_enough(job, [1, 2, 3])  # type: ignore[arg-type]


def counted_worker(starts: str) -> Callable[[TrainTask], None]:
    """A worker that notes that it was started, how far it came, and where its copies of samples are."""

    def worker(task: TrainTask) -> None:
        from pathlib import Path

        from pipelines.training import loop

        train = loop._train

        def begun(task: TrainTask) -> None:
            with Path(starts).open("a") as notes:
                notes.write("begun\n")
            Path(f"{starts}.copies").write_text(str(PreparedSamples(ray.get(task.train), task.run).folder))
            train(task)

        loop._train = begun
        with Path(starts).open("a") as notes:
            notes.write("started\n")
        try:
            loop.train_worker(task)
        finally:
            loop._train = train

    return worker


@pytest.mark.usefixtures("ray_cluster")
def test_what_would_fail_again_ends_the_run_at_its_first_try(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, train=replace(RECIPE.train, learning_rate=1e38, warmup_steps=0, max_failures=1))
    job = job_of(lake, "diverges", recipe)
    monkeypatch.setattr(driver, "train_worker", counted_worker(str(tmp_path / "starts")))
    with pytest.raises(
        FloatingPointError, match=r"^the gradients are not finite: lower `train\.learning_rate`"
    ) as caught:
        train_to_the_end(job)
    assert "in train_epoch" in caught.value.__notes__[0], "where it was"
    assert (tmp_path / "starts").read_text().split() == ["started", "begun", "started"]
    runs.check(replace(job, recipe=RECIPE))  # who follows the advice needs no other name
    assert not Path((tmp_path / "starts.copies").read_text()).exists(), "nobody goes on with them"


# ---- two workers -------------------------------------------------------------------------------------------------
def alone(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The same training in this process, by one worker without Ray; the validation of every epoch."""
    monkeypatch.setattr(workers, "rank", lambda: 0)
    monkeypatch.setattr(workers, "world_size", lambda: 1)
    for module in (loop, workers):
        monkeypatch.setattr(module, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(workers, "tell", lambda *args: None)
    torch.set_num_threads(1)
    initial = artifacts.read(f"{job.run}/initial")
    folder = preparation.features_folder(job, initial, initial.load())
    indices = [SampleIndex.of(checks.verify(shards, folder)) for shards in runs.check(job)]
    sets = [PreparedSamples(index, f"{job.run} alone") for index in indices]
    config = job.recipe.train
    hybrid, progress, values = initial.load(), Progress(), []
    optimizer = torch.optim.AdamW(
        hybrid.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    for epoch in range(config.epochs):
        progress.epoch = epoch
        loop.train_epoch(hybrid, optimizer, sets[0], config, progress, None, loop.Within(lambda: False, lambda: None))
        values.append(loop.validate(hybrid, sets[1], job.recipe)[0])
    for samples in sets:
        samples.remove()
    return values


def exact_worker() -> Callable[[TrainTask], None]:
    """A worker that computes in float32 everywhere: bf16 rounds a batch differently when it is split."""

    def worker(task: TrainTask) -> None:
        from hybrid_models import contract
        from pipelines.training import loop

        contract.bf16_is_fast = lambda device: False
        loop.train_worker(task)

    return worker


def test_two_workers_learn_what_one_does(ray_cluster: str, lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout the loss is a function of the data alone; batches of 15 and 16 are split into unequal shares."""
    recipe = replace(
        RECIPE,
        model=replace(RECIPE.model, dropout=0.0),  # type: ignore[call-arg]
        train=replace(RECIPE.train, epochs=2, batch_size=15),
    )
    job = job_of(lake, "both", recipe, num_workers=2)
    monkeypatch.setattr(driver, "train_worker", exact_worker())
    monkeypatch.setattr(contract, "bf16_is_fast", lambda device: False)
    both = Trained(job, train_to_the_end(job))
    one = alone(job, monkeypatch)
    two = [entry for entry in both.history if "val_loss" in entry]
    assert both.summary["steps"] == 2 * (230 // 15)
    for name in ("val_loss", "val_chrf"):
        assert [entry[name] for entry in two] == pytest.approx([entry[name] for entry in one], abs=1e-4)
    assert two[1]["val_loss"] < two[0]["val_loss"]
