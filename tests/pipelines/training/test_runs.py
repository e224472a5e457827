import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hybrid_models.captioner.captioner import CaptionerDecoding
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.errors import UsageError
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.training import runs
from pipelines.training.recipe import Recipe, TrainConfig
from pipelines.training.runs import Trained, TrainJob
from tests import tiny

RECIPE = Recipe("translator", TranslatorConfig(), TranslatorDecoding(), TrainConfig(batch_size=16))


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """A job on one shard of each split."""
    for split in ("train", "val"):
        tiny.write_pairs(str(tmp_path / "data" / split), 4, seed=1)
    mlflow = f"sqlite:///{tmp_path}/mlflow.db"
    return TrainJob(RECIPE, "test", str(tmp_path / "data"), str(tmp_path / "lake"), "mine", mlflow, 1, Resources())


def refusal(job: TrainJob) -> str:
    with pytest.raises(UsageError) as caught:
        runs.check(job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained_by(job: TrainJob) -> Trained:
    values = {"val_loss": 1.0}
    return Trained(
        job.run, "translator", f"{job.run}/artifact", "models:/translator/3", "3", "val_loss", 1.0, values, 1, 1, 9, 99,
        job.tracking_uri, "run", {},
    )  # fmt: skip


def test_impossible_jobs_are_refused(job: TrainJob, tmp_path: Path) -> None:
    assert [len(shards) for shards in runs.check(job)] == [1, 1]
    assert refusal(replace(job, num_workers=0)) == "`num_workers` is 0: it must be at least 1"
    assert refusal(replace(job, num_workers=17)) == (
        "`train.batch_size` 16 is too small for `num_workers` 17: it must be at least 17"
    )
    assert refusal(replace(job, num_workers=(0, 2))) == "`num_workers` is 0: it must be at least 1"
    assert refusal(replace(job, num_workers=(4, 2))) == "`num_workers` is 4..2: the least comes first, 2..4"
    assert refusal(replace(job, num_workers=(1, 17))) == (
        "`train.batch_size` 16 is too small for `num_workers` 17: it must be at least 17"
    )
    runs.check(replace(job, num_workers=(1, 16)))
    for minutes in (-1.0, math.nan, math.inf):
        assert refusal(replace(job, checkpoint_minutes=minutes)) == (
            f"`checkpoint_minutes` is {minutes}: it must be 0 or more"
        )
    rewards = Recipe("captioner", CaptionerConfig(reward_share=0.4), CaptionerDecoding(), TrainConfig(batch_size=15))
    assert refusal(replace(job, recipe=rewards, num_workers=8)).endswith("it must be at least 16"), "two images each"
    assert refusal(replace(job, data=str(tmp_path))).startswith(f"no shards found at {tmp_path}/train: ")
    assert refusal(replace(job, storage="/proc/nowhere")).startswith("cannot write /proc/nowhere/")
    assert refusal(replace(job, storage="memory://lake")).startswith("memory://lake is no address of a known kind")
    wrong = replace(RECIPE, train=replace(RECIPE.train, metric="cider_d"))
    assert refusal(replace(job, recipe=wrong)).startswith("`train.metric` 'cider_d' is unknown for a translator")


def test_weights_that_are_not_there_are_told_at_once(job: TrainJob, tmp_path: Path) -> None:
    model = CaptionerConfig(encoder_weights=str(tmp_path / "eye.safetensors"))
    recipe = Recipe("captioner", model, CaptionerDecoding(), TrainConfig(batch_size=16))
    assert refusal(replace(job, recipe=recipe)) == (
        f"there are no weights at {tmp_path}/eye.safetensors: name a safetensors file, or hub"
    )
    (tmp_path / "eye.safetensors").write_bytes(b"")
    shards = runs.check(replace(job, recipe=recipe))
    (tmp_path / "eye.safetensors").unlink()
    runs.claim(replace(job, recipe=recipe), shards)
    storage.write_bytes(f"{job.run}/initial/config.json", b"{}")
    runs.check(replace(job, recipe=recipe))  # which has read them


def test_a_name_belongs_to_one_configuration(job: TrainJob) -> None:
    assert runs.read_state(job) is None
    digest = runs.shards_digest(runs.check(job))
    state = {
        "recipe": "test",
        "config": runs.plain(RECIPE),
        "data": job.data,
        "shards": digest,
        "mlflow_run_id": None,
    }
    storage.write_bytes(f"{job.run}/run.json", json.dumps(state).encode())
    runs.check(job)
    other = replace(RECIPE, train=replace(RECIPE.train, batch_size=32))
    assert refusal(replace(job, recipe=other)) == (
        "run 'mine' was started with train.batch_size=16, not 32: use another `name`"
    )
    free = replace(RECIPE.train, max_failures=50, keep_checkpoints=1)
    runs.check(replace(job, recipe=replace(RECIPE, train=free)))  # they decide nothing of what is learned
    config = runs.plain(RECIPE)
    assert config["model"].pop("cell") == "gru"
    storage.write_bytes(f"{job.run}/run.json", json.dumps({**state, "config": config}).encode(), storage.anything)
    runs.check(job)  # of a version that had no such option
    lstm = replace(RECIPE, model=replace(RECIPE.model, cell="lstm"))
    assert (
        refusal(replace(job, recipe=lstm)) == "run 'mine' was started with model.cell=gru, not lstm: use another `name`"
    )
    storage.write_bytes(f"{job.run}/run.json", json.dumps({**state, "shards": "others"}).encode(), storage.anything)
    assert refusal(job) == f"run 'mine' was started before the shards of {job.data} changed: use another `name`"
    for damaged in (b'{"recipe": ', b'{"recipe": "test"}', b"[]"):
        storage.write_bytes(f"{job.run}/run.json", damaged, storage.anything)
        assert refusal(job) == (f"{job.run}/run.json is damaged: bring it back from a backup, or use another `name`")


def test_of_two_first_starts_at_once_both_go_on_only_if_they_are_the_same(job: TrainJob) -> None:
    """Both were checked when there was no run; else one would go on with the other's net and its own optimizer."""
    shards = runs.check(job)
    other = replace(job, recipe=replace(RECIPE, train=replace(RECIPE.train, seed=1)))
    runs.check(other)
    runs.claim(job, shards)
    runs.claim(job, shards)
    with pytest.raises(UsageError, match=r"^run 'mine' was started with train.seed=0, not 1: use another `name`$"):
        runs.claim(other, shards)
    state = runs.read_state(job)
    assert state is not None
    assert (state.config["train"]["seed"], state.mlflow_run_id) == (0, None)


@pytest.mark.parametrize(
    "trained", ["", "history.jsonl", "summary.json", "checkpoint_epoch_0001/progress.json", "artifact/config.json"]
)
def test_a_run_in_which_nothing_was_trained_is_let_go(job: TrainJob, trained: str) -> None:
    for name in filter(None, ("run.json", "initial/config.json", "initial/weights.safetensors", "attempt", trained)):
        storage.write_bytes(f"{job.run}/{name}", b"{}")
    runs.release(job)
    kept = trained not in ("", "artifact/config.json")
    assert storage.exists(f"{job.run}/run.json") == storage.exists(f"{job.run}/initial/config.json") == kept


def test_a_finished_run_whose_checkpoints_were_freed_is_not_begun_again(job: TrainJob) -> None:
    digest = runs.shards_digest(runs.check(job))
    state = {"recipe": "test", "config": runs.plain(RECIPE), "data": job.data, "shards": digest, "mlflow_run_id": None}
    storage.write_bytes(f"{job.run}/run.json", json.dumps(state).encode())
    storage.write_bytes(f"{job.run}/summary.json", json.dumps(asdict(trained_by(job))).encode())
    runs.check(job)
    elsewhere = replace(job, tracking_uri="sqlite:////elsewhere/mlflow.db")
    assert refusal(elsewhere) == (
        "run 'mine' is finished and its checkpoints were freed, so it cannot be registered again: "
        f"use its artifact {job.run}/artifact, or another `name`"
    )
    storage.write_bytes(f"{job.run}/checkpoint_epoch_0001/progress.json", b"{}")
    runs.check(elsewhere)


def test_a_run_is_finished_when_its_model_is_registered_where_it_is_asked_for(job: TrainJob) -> None:
    assert runs.finished(job) is None
    trained = trained_by(job)
    storage.write_bytes(f"{job.run}/summary.json", json.dumps(asdict(trained)).encode())
    assert runs.finished(job) == trained
    assert runs.finished(replace(job, tracking_uri="http://elsewhere")) is None
    for damaged in (b"", b"{", b"{}", json.dumps(asdict(replace(trained, model_version=None))).encode()):
        storage.write_bytes(f"{job.run}/summary.json", damaged, storage.anything)
        assert runs.finished(job) is None


def test_a_folder_of_the_runs_name_that_is_no_run_is_refused(job: TrainJob) -> None:
    """Its `summary.json` and `history.jsonl` were replaced, and `checkpoint_epoch_*` removed later."""
    for name in ("summary.json", "history.jsonl", "artifact/config.json", "checkpoint_epoch_0001/notes.txt"):
        storage.write_bytes(f"{job.run}/{name}", b"the user's")
        message = f"{job.run} has files, such as {name}, but no run.json, so it is no training run: use another `name`"
        assert refusal(job).startswith(message)
        with pytest.raises(UsageError, match=r"but no run\.json"):
            runs.claim(job, ([], []))
        storage.delete(f"{job.run}/{name}", storage.anything)
    for name in ("attempt", ".validate_storage_marker", "initial/config.json"):  # of a start that ended early
        storage.write_bytes(f"{job.run}/{name}", b"x")
    runs.claim(job, ([], []))
    assert storage.exists(f"{job.run}/run.json")
