"""Training from the driver: shards → prepared samples → Ray Train → artifact → registered model.

The same command with the same name goes on wherever an earlier one was killed, in the same MLflow run: what is done
already is not done again: assets, initial weights and checkpoints lie in the run's folder, prepared samples in the
storage's `features`, for all runs.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hybrid_models import Hybrid
from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster.connection import check_grows, is_started_here, own_signals
from pipelines.cluster.resources import cpus_of_nodes
from pipelines.models import artifacts, weights
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Session
from pipelines.models.tracking import Tracker
from pipelines.reading.limits import is_memory_error
from pipelines.secrets import shown
from pipelines.staging.checks import RefusedError
from pipelines.staging.pieces import Piece
from pipelines.staging.prepared import PreparedSamples, SampleIndex
from pipelines.training import failures, progress
from pipelines.training.checkpoints import (
    ATTEMPT,
    CHECKPOINT_VALIDATION,
    Metrics,
    best_first,
    history,
    is_newest,
    mend_snapshot,
)
from pipelines.training.loop import train_worker
from pipelines.training.model_card import model_card
from pipelines.training.preparation import initial_artifact, prepare
from pipelines.training.runs import (
    STATE,
    Shards,
    Trained,
    TrainJob,
    TrainTask,
    claim,
    has_trained,
    plain,
    read_state,
    release,
    state_of,
)

log = logging.getLogger(__name__)
MAX_OUTAGES = 5
OUTAGE_SECONDS = 600.0
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS)))
"""What a disk says that no waiting helps."""
STORES = re.compile(r"^(?:OSError|PermissionError|TimeoutError|\S*StorageError): .*", re.MULTILINE)
"""How a traceback ends where a store failed."""
MISTAKES = (UsageError, RefusedError, ArithmeticError, KeyboardInterrupt)
"""What ends a start that is to be made otherwise."""
REMOVE_SECONDS = 60.0
T = TypeVar("T")


def train(job: TrainJob, shards: Shards) -> Trained:
    """Trains to the end and registers the best model; goes on where an earlier start of the same name stopped.

    Raises:
        UsageError: the cluster has GPUs, but fewer than the least workers, or none where they are asked for and no node
            will come, or no node that computes; or a run of this name was started meanwhile, with other options or once
            more; or there is not the memory for a step.
        FloatingPointError: the gradients are not finite; like whatever else would come again, at the first try.
        RuntimeError: infrastructure failed more often than the recipe allows; start again, it goes on.
    """
    scaling, threads = _scaling(job.workers, job.gpu, job.resources.threads)
    claim(job, shards)
    attempt, tracker = uuid.uuid4().hex, None
    try:
        storage.write_bytes(storage.join(job.run, ATTEMPT), attempt.encode(), job.is_own)
        tracker = _open_run(job, shards)
        initial = initial_artifact(job, shards[0])
        prepared = [prepare(job, initial, part) for part in shards]
        _fit(job, tracker, initial, prepared, scaling, threads, attempt)
        bad = {split: dict(errors) for split, (_, errors) in zip(("train", "val"), prepared, strict=True) if errors}
        trained = _finish(job, shards, tracker, initial, bad)
    except BaseException as error:
        _give_up(job, tracker, attempt, error)
        raise
    summary = json.dumps(asdict(trained), indent=2).encode()
    storage.write_bytes(storage.join(job.run, "summary.json"), summary, job.is_own)
    return trained


def _give_up(job: TrainJob, tracker: Tracker | None, attempt: str, error: BaseException) -> None:
    """Says so in MLflow, and lets the run go if it was a mistake; unless the run is another start's by now. A store
    that does not answer hides nothing of the error."""
    try:
        ours = is_newest(job.run, attempt)
        if ours and isinstance(error, MISTAKES):
            release(job)
    except storage.StorageError as trouble:
        log.warning("%s: %s", job.name, trouble)
        ours = True
    if ours and tracker is not None:
        tracker.finish(succeeded=False)


def _open_run(job: TrainJob, shards: Shards) -> Tracker:
    """The MLflow run of this name: the earlier one if there is one at this MLflow."""
    state = read_state(job)
    tracker = Tracker(job.tracking_uri, state.mlflow_run_id if state else None)
    if tracker.resume():
        return tracker
    fewest, most = job.workers
    workers = fewest if fewest == most else f"{fewest}..{most}"
    tags = {"hybrid.recipe": job.recipe_name, "hybrid.run": job.run, "hybrid.data": job.data}
    params = {"recipe": job.recipe_name, "data": job.data, "num_workers": workers, **plain(job.recipe)}
    tracker.start(job.name, params, tags, job.experiment)
    storage.write_bytes(storage.join(job.run, STATE), state_of(job, shards, tracker.run_id), job.is_own)
    return tracker


def _fit(
    job: TrainJob,
    tracker: Tracker,
    initial: Artifact,
    prepared: list[tuple[list[Piece], Counter[str]]],
    scaling: ScalingConfig,
    threads: int,
    attempt: str,
) -> None:
    config = job.recipe.train
    train, val = (_through_outages(partial(SampleIndex.of, pieces), job) for pieces, _ in prepared)
    _check_enough(job, train)
    with progress.followed(job.name, config.epochs) as reporter:
        task = TrainTask(
            recipe=job.recipe,
            initial=ray.put(initial),
            train=ray.put(train),
            val=ray.put(val),
            run=job.run,
            tracking_uri=job.tracking_uri,
            mlflow_run_id=tracker.run_id,
            threads=threads,
            checkpoint_minutes=job.checkpoint_minutes,
            progress=reporter,
            attempt=attempt,
        )
        checkpoints = CheckpointConfig(
            num_to_keep=config.keep_checkpoints + 1, checkpoint_score_attribute="score", checkpoint_score_order="max"
        )
        settings = RunConfig(
            name=job.name,
            storage_path=job.runs,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=checkpoints,
        )

        def fit() -> Result:
            mend_snapshot(job.run)
            with _interruptible():
                return TorchTrainer(lambda: train_worker(task), scaling_config=scaling, run_config=settings).fit()

        try:
            _through_outages(fit, job)
        except TrainingFailedError as error:
            if is_newest(job.run, attempt):
                _remove_copies(task)
            if (failure := failures.kept(job.run, attempt)) is not None:
                raise failure.error() from None
            if (shortage := _shortage(error)) and not has_trained(job):
                raise UsageError(
                    f"{job.name} has not enough memory to train ({shortage}): lower `train.batch_size`; with "
                    "`train.accumulate` as many times as high it learns from as many samples a step"
                ) from None
            raise


def _shortage(error: TrainingFailedError) -> str | None:
    """What a worker said that had too little memory, of the host or a GPU; None if none did."""
    workers = getattr(error, "worker_failures", {}).values()
    failed = (getattr(cause, "health_check_failure", cause) for cause in workers)  # of one that Ray has killed
    said = (str(cause) or type(cause).__name__ for cause in failed if is_memory_error(cause))
    return next((text.splitlines()[0] for text in said), None)


def _remove_copies(task: TrainTask) -> None:
    """The nodes' copies of the samples of a training that has ended: who was to go on with them does not come."""

    @ray.remote(num_cpus=0)
    def remove(train: SampleIndex, val: SampleIndex) -> None:
        for index in (train, val):
            PreparedSamples(index, task.run).remove()

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    done = [remove.options(scheduling_strategy=place).remote(task.train, task.val) for place in places]
    ray.wait(done, num_returns=len(done), timeout=REMOVE_SECONDS)


def _check_enough(job: TrainJob, samples: SampleIndex) -> None:
    """Refuses more workers than samples: each takes some of every batch."""
    _, most = job.workers
    least = most * job.recipe.model.least_share
    if len(samples) < least:
        raise UsageError(
            f"{job.data} has {len(samples)} samples to train on, too few for `num_workers` {most}: "
            f"it must have at least {least}"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train takes Ctrl-C for itself, for good, and ends the program as if all were well."""
    try:
        with own_signals():
            yield
    except SystemExit as ended:
        if ended.code:  # of SIGTERM
            raise
        raise KeyboardInterrupt from None


def _through_outages(work: Callable[[], T], job: TrainJob) -> T:
    """Works; when the store is away, waits for it, and works again. A training goes on from its last checkpoint.

    Raises:
        TrainingFailedError: it was no outage, or one too many.
        StorageError: the store stayed away.
    """
    for left in range(MAX_OUTAGES, 0, -1):
        try:
            return work()
        except (TrainingFailedError, storage.StorageError, RayActorError) as error:
            cause = _outage(error)
            if cause is None:
                raise
            log.warning("%s: the store failed, waiting until it answers (%d more times): %s", job.name, left - 1, cause)
            storage.wait_for(job.storage, OUTAGE_SECONDS)
    return work()


def _outage(error: TrainingFailedError | storage.StorageError | RayActorError) -> str | None:
    """What the store did to the driver, a worker or Ray's controller; None if something else failed, or it is full."""
    causes = [error, getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    store = [str(cause) for cause in causes if isinstance(cause, OSError | storage.StorageError)]
    if isinstance(error, RayActorError):  # of Ray's controller, as it was made: its traceback is all that is told
        store = STORES.findall(str(error))
    full = any(text in said for said in store for text in FULL)
    return store[0].splitlines()[0] if store and not full else None


def _scaling(workers: tuple[int, int], gpu: str, wanted: int) -> tuple[ScalingConfig, int]:
    """What each worker asks of Ray, and its CPU threads: as many as wanted, or its share of a node's CPUs, with some
    left for Ray. The share is that of the least workers: more of them come with more nodes."""
    fewest, most = workers
    cpus = cpus_of_nodes(gpu)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < fewest and (gpu == "auto" or (gpu == "yes" and is_started_here())):
        advice = "use at most one for each, or `gpu` yes where the cluster grows"
        raise UsageError(f"`num_workers` is {fewest}, but the cluster has {gpus} GPUs: {advice}")
    if gpu == "yes" and not gpus:
        check_grows("`gpu` is yes")
    use_gpu = gpu == "yes" or (gpu == "auto" and gpus > 0)
    share = min(cpus) / -(-fewest // len(cpus))
    share = min(share, wanted) if wanted else share
    resources = {"CPU": 1.0, "GPU": 1.0} if use_gpu else {"CPU": max(0.01, 0.9 * share)}
    threads = max(1, int(share))
    num_workers: Any = most if fewest == most else workers  # Ray's own types are those of its older version
    return ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources), threads


def _finish(
    job: TrainJob,
    shards: Shards,
    tracker: Tracker,
    initial: Artifact,
    bad_samples: dict[str, dict[str, int]],
) -> Trained:
    """The best checkpoint as an artifact, in the run's folder and in the registry."""
    hybrid, metrics, judged = _best(job, initial)
    logged = history(job.run)
    if tracker.run_id is None:  # MLflow was away when the run began
        tracker.run_id = _open_run(job, shards).run_id
    values = {name: value for name, value in metrics.items() if name.startswith("val_")}
    training = {
        "recipe": job.recipe_name,
        "data": job.data,
        "run": job.run,
        "mlflow_run_id": tracker.run_id,
        "epoch": metrics["epoch"],
        "metrics": values,
        "baseline": judged.get("baseline", {}),
    }
    drawn = _pictures(job, shards, hybrid, logged, judged)
    card = model_card(job.name, job.recipe, hybrid, training, list(drawn))
    files = {**artifacts.make(hybrid, job.recipe.decoding, training, card), **drawn}
    place = storage.join(job.run, "artifact")
    artifacts.write(files, place, job.is_own)
    tracker.catch_up(logged)
    for name, content in drawn.items():
        tracker.log_file(content, f"pictures/{name}")
    version = tracker.register(job.model_name, files)
    tracker.finish()
    return Trained(
        run=job.run,
        hybrid=hybrid.name,
        artifact=place,
        model=f"models:/{job.model_name}/{version}" if version else place,
        model_version=version,
        metric=f"val_{job.recipe.train.metric}",
        value=values[f"val_{job.recipe.train.metric}"],
        metrics=values,
        best_epoch=int(metrics["epoch"]),
        epochs=int(max(entry.get("epoch", 0) for entry in logged)),
        steps=int(logged[-1]["step"]),
        parameters=sum(p.numel() for p in hybrid.parameters()),
        mlflow=shown(job.tracking_uri),
        mlflow_run_id=tracker.run_id,
        bad_samples=bad_samples,
    )


def _pictures(
    job: TrainJob, shards: Shards, hybrid: Hybrid, logged: Sequence[Mapping[str, float]], judged: Mapping[str, Any]
) -> dict[str, bytes]:
    """Learning curves, curves of the best epoch's validation, and examples from the validation shards, unless these
    cannot be read any more: what was learned in hours is not lost for want of a picture."""
    if not job.pictures:
        return {}
    from pipelines.models import curves, pictures  # drawing takes half a second to import

    session = Session(hybrid, job.recipe.decoding, job.recipe.limits, job.recipe.cut)
    examples: dict[str, bytes] = {}
    try:
        examples = pictures.examples(session, shards[1], job.pictures)
    except (storage.StorageError, OSError) as error:
        log.warning("%s: the model card has no examples: %s", job.name, error)
    found = curves.evaluation_curves(judged.get("details", {}))
    return {"learning-curves.png": curves.learning_curves(logged), **found, **examples}


def _best(job: TrainJob, initial: Artifact) -> tuple[Hybrid, Metrics, dict[str, Any]]:
    """The model of the best checkpoint that is whole, what was reported with it, and how its validation came out.

    Raises:
        UsageError: none is.
    """
    hybrid = initial.load()
    damage = UsageError(
        f"no checkpoint tells a `{job.recipe.train.metric}` that is a number: lower `train.learning_rate`, under "
        "another `name`"
    )
    for name, metrics in best_first(job.run, job.recipe):
        place = storage.join(job.run, name)
        try:
            content = storage.read_bytes(storage.join(place, weights.WEIGHTS))
            judged = _judged(storage.join(place, CHECKPOINT_VALIDATION))
            weights.load_state(hybrid, content, place)
        except (UsageError, FileNotFoundError) as error:
            log.warning("the best checkpoint is passed over: %s", error)
            damage = UsageError(str(error))
        else:
            return hybrid, metrics, judged
    raise damage


def _judged(uri: str) -> dict[str, Any]:
    """How an epoch's validation came out; without it the model card has fewer curves."""
    try:
        return dict(json.loads(storage.read_text(uri)))
    except (FileNotFoundError, ValueError) as error:
        log.warning("the curves of the best epoch's validation are left out: %s: %s", uri, error)
        return {}
