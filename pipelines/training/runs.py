"""A training run: what it is, what an earlier start of it left, and what is refused before it begins."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pyarrow.fs import FileSystem

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts, tracking, weights
from pipelines.reading.shards import Shard, list_shards
from pipelines.secrets import shown
from pipelines.staging.prepared import SampleIndex
from pipelines.storage import IsOwn
from pipelines.training.recipe import Recipe

if TYPE_CHECKING:
    import ray

log = logging.getLogger(__name__)
CHECKPOINT = re.compile(r"checkpoint_epoch_(?P<epoch>\d{4,})(?:_step_(?P<step>\d{8,}))?(?:_(?P<fallbacks>\d+))?")
"""A checkpoint's folder in a run's: after an epoch, or at a step within the next one."""
STATE = "run.json"
"""Of a run: what it is, a `RunState`."""
INITIAL = "initial"
"""Of a run: the untrained model, an artifact."""
HISTORY = "history.jsonl"
"""Of a run that has trained: every entry that was logged, written with each checkpoint."""
RELEASED = re.compile(
    r"attempt|failure\.json|checkpoint_manager_snapshot\.json|initial/[^/]+|\.validate_storage_marker"
)
"""Files of a run's folder that may remain where a start ended before it trained. The last is Ray's."""
FREE = ("train.max_failures", "train.keep_checkpoints")
"""Options that decide nothing of what is learned: a run goes on with others of them."""
Shards = tuple[list[Shard], list[Shard]]
"""The shards of `train` and `val`."""


@dataclass(frozen=True)
class TrainJob:
    """One training run.

    Args:
        recipe: what is trained and how.
        recipe_name: its name.
        data: URI of a dataset folder with `train` and `val`.
        storage: URI below which runs and features are kept.
        name: the run's name; the same name goes on.
        tracking_uri: MLflow.
        num_workers: training processes; or the least and the most of them, then as many as the cluster has room for.
        resources: for decoding and features.
        checkpoint_minutes: between checkpoints within an epoch, beside those at its end; 0 makes none there.
        pictures: how many validation samples the model card shows; without any it has no curves either.
        gpu: whether each training process takes a GPU: "yes", "no", or "auto", if the cluster has any now.
        register_as: name of the registered model, the hybrid's by default.
        experiment: of MLflow, which the run belongs to.
    """

    recipe: Recipe
    recipe_name: str
    data: str
    storage: str
    name: str
    tracking_uri: str
    num_workers: int | tuple[int, int]
    resources: Resources
    checkpoint_minutes: float = 10.0
    pictures: int = 0
    gpu: Literal["auto", "yes", "no"] = "auto"
    register_as: str = ""
    experiment: str = ""

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.register_as or self.recipe.hybrid

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most training processes."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def runs(self) -> str:
        """URI of the folder of runs."""
        return storage.join(storage.absolute(self.storage), "runs")

    @property
    def run(self) -> str:
        """URI of this run's folder."""
        return storage.join(self.runs, self.name)

    @property
    def is_own(self) -> IsOwn:
        """Which files of the run's folder a start may replace."""
        return files_of(self.run)


@dataclass(frozen=True)
class RunState:
    """What `run.json` in the run's folder says."""

    recipe: str
    config: dict[str, Any]
    data: str
    shards: str
    """Hash of the shards' URIs and etags."""
    mlflow_run_id: str | None


def state_of(job: TrainJob, shards: Shards, mlflow_run_id: str | None) -> bytes:
    """What `run.json` says of a run that is started so."""
    state = RunState(job.recipe_name, plain(job.recipe), job.data, shards_digest(shards), mlflow_run_id)
    return json.dumps(asdict(state), indent=2).encode()


def files_of(run: str) -> storage.IsOwn:
    """Recognises the files of a run's folder, which this program claimed by its `run.json`."""
    return storage.in_claimed(storage.join(run, STATE))


def claim(job: TrainJob, shards: Shards) -> None:
    """Says what this run is, if nothing does: another start of its name, which began at the same moment, goes on only
    if it is the same.

    Raises:
        UsageError: another start began it otherwise.
    """
    _check_claimable(job)
    storage.write_new(storage.join(job.run, STATE), state_of(job, shards, None))
    _check_same(job, shards)


def _check_claimable(job: TrainJob) -> None:
    """Refuses a folder of the run's name that has files, but no `run.json`: this program did not make it.

    Raises:
        UsageError: names the folder and the fix.
    """
    if storage.exists(storage.join(job.run, STATE)):
        return
    names = [file.uri.removeprefix(f"{job.run}/") for file in storage.list_all(job.run)]
    if foreign := [name for name in names if not RELEASED.fullmatch(name)]:
        raise UsageError(
            f"{shown(job.run)} has files, such as {shown(foreign[0])}, but no {STATE}, so it is no training run: "
            "use another `name` or `storage`"
        )


def _check_same(job: TrainJob, shards: Shards) -> bool:
    """Refuses what an earlier start of this run began otherwise; whether there was one."""
    state = read_state(job)
    if state is not None and (different := difference(job, state, shards)):
        raise UsageError(f"run '{job.name}' was started {different}: use another `name`")
    return state is not None


def check(job: TrainJob) -> Shards:
    """Everything that can be refused before a cluster starts; returns the shards of `train` and `val`.

    Raises:
        UsageError: names the option or object and the fix.
    """
    job.recipe.check()
    fewest, most = job.workers
    if fewest < 1:
        raise UsageError(f"`num_workers` is {fewest}: it must be at least 1")
    if fewest > most:
        raise UsageError(f"`num_workers` is {fewest}..{most}: the least comes first, {most}..{fewest}")
    if not 0 <= job.checkpoint_minutes < math.inf:
        raise UsageError(f"`checkpoint_minutes` is {job.checkpoint_minutes}: it must be 0 or more")
    least = most * job.recipe.model.least_share
    if job.recipe.train.batch_size < least:
        raise UsageError(
            f"`train.batch_size` {job.recipe.train.batch_size} is too small for `num_workers` {most}: "
            f"it must be at least {least}"
        )
    cut = job.recipe.cut is not None
    train, val = (list_shards(storage.join(job.data, split), cut) for split in ("train", "val"))
    storage.check_writable(job.storage)
    _check_claimable(job)
    _check_for_checkpoints(job.runs)
    if _check_same(job, (train, val)):
        _check_not_tidied(job)
    if not storage.exists(storage.join(job.run, INITIAL, weights.CONFIG)):
        for uri in job.recipe.model.weights_read:
            if not storage.exists(uri):
                raise UsageError(f"there are no weights at {shown(uri)}: name a safetensors file, or hub")
    return train, val


def _check_for_checkpoints(uri: str) -> None:
    """Refuses a store that Ray Train, which keeps checkpoints by pyarrow, does not know: else it would say so after all
    samples are prepared."""
    if uri.startswith("s3://"):  # which it knows, and asks for its region
        return
    try:
        FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"`storage` {shown(uri)} cannot keep checkpoints ({reason}): use s3:// or a folder") from None


def release(job: TrainJob) -> None:
    """Lets a run begin anew with other options or data, as long as nothing was trained: who follows the advice that it
    ended with needs no other name.

    Raises:
        StorageError: the store kept failing.
    """
    if not has_trained(job):
        storage.delete(storage.join(job.run, INITIAL, weights.CONFIG), job.is_own)  # so it is made anew
        storage.delete(storage.join(job.run, STATE), job.is_own)


def has_trained(job: TrainJob) -> bool:
    """Whether a run has come to a checkpoint.

    Raises:
        StorageError: the store kept failing.
    """
    kept = [file.uri.removeprefix(job.run + "/").split("/")[0] for file in storage.list_all(job.run)]
    return any(name in (HISTORY, "summary.json") or CHECKPOINT.fullmatch(name) for name in kept)


def _check_not_tidied(job: TrainJob) -> None:
    """A finished run whose checkpoints were freed cannot go on, as it would for another MLflow."""
    if storage.exists(storage.join(job.run, "summary.json")) and finished(job) is None:
        kept = storage.list_files(job.run)
        if not any("/checkpoint_epoch_" in file.uri for file in kept):
            raise UsageError(
                f"run '{job.name}' is finished and its checkpoints were freed, so it cannot be registered again: "
                f"use its artifact {storage.join(job.run, 'artifact')}, or another `name`"
            )


def difference(job: TrainJob, state: RunState, shards: Shards) -> str:
    """What a run was started with, or before, that is not so now; empty if it is the same. A run that has trained goes
    on only with the configuration and the data of its start. An option that was not there then had its default's
    meaning."""
    ours = dict(tracking.flatten(plain(job.recipe)))
    theirs = {**_defaults(job.recipe), **dict(tracking.flatten(state.config))}
    ours["data"], theirs["data"] = job.data, state.data
    if differ := [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key not in FREE]:
        key, name = differ[0], differ[0].removeprefix("cut.")
        return f"with {name}={theirs.get(key)}, not {ours.get(key)}"
    return "" if state.shards == shards_digest(shards) else f"before the shards of {job.data} changed"


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """What the options of each of a recipe's groups are by default, where they have one."""
    groups = {name: getattr(recipe, name) for name in ("model", "decoding", "train", "limits")}
    known = {
        name: {option.name: option.default for option in fields(group) if option.default is not MISSING}
        for name, group in groups.items()
    }
    return dict(tracking.flatten(json.loads(json.dumps(known))))


def shards_digest(shards: Shards) -> str:
    """Hash of which shards there are, in which state."""
    return artifacts.fingerprint({"shards": [[(shard.uri, shard.etag) for shard in part] for part in shards]})


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON would give it back."""
    return dict(json.loads(json.dumps(asdict(recipe))))


def read_state(job: TrainJob) -> RunState | None:
    """What an earlier start of this run left.

    Raises:
        UsageError: it is damaged.
    """
    place = storage.join(job.run, STATE)
    try:
        return RunState(**json.loads(storage.read_text(place)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UsageError(f"{shown(place)} is damaged: bring it back from a backup, or use another `name`") from None


@dataclass(frozen=True)
class Trained:
    """What a run came to: `summary.json` in its folder."""

    run: str
    """URI of its folder."""
    hybrid: str
    artifact: str
    """URI of the best model."""
    model: str
    """`models:/NAME/VERSION`, or the artifact's URI where MLflow was away."""
    model_version: str | None
    metric: str
    """Name of the validation metric that chose the best epoch."""
    value: float
    metrics: dict[str, float]
    """All validation metrics of the best epoch."""
    best_epoch: int
    epochs: int
    steps: int
    parameters: int
    mlflow: str
    mlflow_run_id: str | None
    bad_samples: dict[str, dict[str, int]]
    """Samples that were left out: split → reason → how many."""


def finished(job: TrainJob) -> Trained | None:
    """The summary of this run if it has been trained to the end and its model is registered so at this MLflow."""
    place = storage.join(job.run, "summary.json")
    try:
        trained = Trained(**json.loads(storage.read_text(place)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:  # written anew at the end
        log.warning("%s is damaged, so the run goes on: %s", place, error)
        return None
    registered = trained.model == f"models:/{job.model_name}/{trained.model_version}"
    return trained if registered and trained.mlflow == shown(job.tracking_uri) else None


@dataclass(frozen=True)
class TrainTask:
    """Everything a worker needs."""

    recipe: Recipe
    initial: ray.ObjectRef[artifacts.Artifact]
    """The untrained `Artifact`, the same for all workers."""
    train: ray.ObjectRef[SampleIndex]
    val: ray.ObjectRef[SampleIndex]
    run: str
    """URI of the run's folder."""
    tracking_uri: str
    mlflow_run_id: str | None
    threads: int
    checkpoint_minutes: float
    progress: Any
    """Handle of the `Reporter`."""
    attempt: str = ""
    """Names this start of the driver: see `failures`."""
