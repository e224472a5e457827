"""Checkpoints of a training: what it goes on from, and which of them are whole."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray import train as ray_train
from ray.train.torch import get_device

from hybrid_models.contract import Hybrid
from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.models import weights
from pipelines.reading.limits import is_memory_error
from pipelines.training import workers
from pipelines.training.recipe import Recipe
from pipelines.training.runs import CHECKPOINT, HISTORY, TrainTask, files_of

CHECKPOINT_PROGRESS, CHECKPOINT_OPTIMIZER = "progress.json", "optimizer.pt"
CHECKPOINT_VALIDATION = "validation.json"
ATTEMPT = "attempt"
"""A file in the run's folder that names the newest start of its driver."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's list of a run's checkpoints, in the run's folder."""
WORST = -sys.float_info.max
"""The score of what is no number, and of an epoch's middle. Not -inf: Ray keeps scores as JSON, which has none."""
Metrics = dict[str, float]
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a checkpoint knows besides weights and optimizer state."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished optimizer steps."""
    batches: int = 0
    """Batches of the epoch's plan that its finished steps have seen; 0 between two epochs."""
    scale: dict[str, float] = field(default_factory=dict)
    """Of gradients in float16, as `torch.amp.GradScaler` keeps it; empty where they are in other numbers."""
    best: float | None = None
    """Best validation metric so far."""
    stale: int = 0
    """Epochs since the best one."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every logged entry: `step`, `time` in ms, metrics."""
    fallbacks: int = 0
    """How often a damaged checkpoint was passed over."""

    @property
    def checkpoint(self) -> str:
        """Folder of the newest checkpoint. Ray Train removes old ones by name, so no name is used twice."""
        within = f"_step_{self.step:08d}" if self.batches else ""
        return f"checkpoint_epoch_{self.epoch:04d}{within}" + (f"_{self.fallbacks}" if self.fallbacks else "")

    def note(self, metrics: Mapping[str, float]) -> None:
        """Adds an entry at the current step."""
        self.history.append({"step": self.step, "time": int(time.time() * 1000), **metrics})

    def judge(self, value: float, higher_is_better: bool) -> None:
        """Updates best and stale by an epoch's metric; NaN and infinity never count as better."""
        better = self.best is None or (value > self.best if higher_is_better else value < self.best)
        if better and math.isfinite(value):
            self.best, self.stale = value, 0
        else:
            self.stale += 1


class Interval:
    """The time between two checkpoints in the middle of an epoch.

    Args:
        minutes: how long it is; one of 0 is never over.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.begin()

    def begin(self) -> None:
        """Begins anew."""
        self._begun = time.monotonic()

    def is_over(self) -> bool:
        """Whether so much time has passed since it began."""
        return 0 < self._seconds <= time.monotonic() - self._begun


def save(
    hybrid: Hybrid,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    values: Metrics,
    judged: Mapping[str, Any],
    task: TrainTask,
) -> None:
    """Reports the epoch to Ray Train, with a checkpoint of the first worker (a barrier for all workers)."""
    score = score_of(values[f"val_{task.recipe.train.metric}"], task.recipe)
    files = {CHECKPOINT_VALIDATION: json.dumps(judged)}
    _report({**values, "score": score, "epoch": progress.epoch}, files, hybrid, optimizer, progress, task)


def save_within(hybrid: Hybrid, optimizer: torch.optim.Optimizer, progress: Progress, task: TrainTask) -> None:
    """The same in the middle of an epoch: no model to choose, the next checkpoint takes its place."""
    _report({"score": WORST, "epoch": progress.epoch}, {}, hybrid, optimizer, progress, task)


def _report(
    report: Metrics,
    files: Mapping[str, str],
    hybrid: Hybrid,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    task: TrainTask,
) -> None:
    """A report of all workers, with a checkpoint of the first one: what training needs, and these files.

    Raises:
        UsageError: the same run was started once more meanwhile: of two, the newer one goes on.
    """
    if not workers.is_chief():
        ray_train.report(report)
        return
    if not is_newest(task.run, task.attempt):
        name = task.run.rpartition("/")[2]
        raise UsageError(f"run '{name}' was started once more meanwhile: that start goes on, this one ends")
    history = "".join(json.dumps(e) + "\n" for e in progress.history).encode()
    storage.write_bytes(storage.join(task.run, HISTORY), history, files_of(task.run))
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch), hybrid, optimizer, progress)
        for name, content in files.items():
            (Path(scratch) / name).write_text(content)
        ray_train.report(
            report,
            checkpoint=ray_train.Checkpoint.from_directory(scratch),
            checkpoint_dir_name=progress.checkpoint,
        )


def is_newest(run: str, attempt: str) -> bool:
    """Whether no other start of the driver came after this one."""
    try:
        return storage.read_text(storage.join(run, ATTEMPT)) == attempt
    except FileNotFoundError:
        return True


def score_of(value: float, recipe: Recipe) -> float:
    """What Ray chooses checkpoints by, the higher the better: a metric that is no number, or has no end, is
    worse than any: Ray keeps these scores as JSON, which knows no infinity."""
    if not math.isfinite(value):
        return WORST
    return value if recipe.higher_is_better else -value


def write_checkpoint(folder: Path, hybrid: Hybrid, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """All that training needs to go on from here, on a local disk."""
    (folder / weights.WEIGHTS).write_bytes(weights.pack_state(hybrid))
    torch.save(optimizer.state_dict(), folder / CHECKPOINT_OPTIMIZER)
    (folder / CHECKPOINT_PROGRESS).write_text(json.dumps(asdict(progress)))


class DamagedError(RuntimeError):
    """A checkpoint is not whole."""


def restore(hybrid: Hybrid, optimizer: torch.optim.Optimizer, task: TrainTask) -> Progress:
    """Loads the newest checkpoint that is whole into model and optimizer, if there is any; says which ones are not.

    The first worker chooses, and all load that one: a listing, or what a store gives, may differ from worker to worker.

    Raises:
        DamagedError: none of them is whole.
    """
    newest = ray_train.get_checkpoint()  # none, too, where Ray's list of them was damaged

    def choose() -> tuple[str, str, int]:
        damage, fallbacks = "", 0
        for name in checkpoints(task.run, Path(newest.path).name if newest else ""):
            try:
                load_checkpoint(hybrid, optimizer, storage.join(task.run, name))
            except DamagedError as error:
                damage, fallbacks = str(error), max(fallbacks, (_place(name) or (0, 0, 0))[2] + 1)
                workers.tell(task.progress, "damage", Progress(), {}, damage)
            else:
                return name, damage, fallbacks
        return "", damage, fallbacks

    name, damage, fallbacks = workers.from_chief(choose)
    if not name:
        if newest is None:
            return Progress(fallbacks=fallbacks)
        raise DamagedError(f"{damage}, and there is none before it: train under another `name`")
    progress = load_checkpoint(hybrid, optimizer, storage.join(task.run, name))
    progress.fallbacks = max(fallbacks, progress.fallbacks + bool(damage))
    return progress


def mend_snapshot(run: str) -> None:
    """Removes Ray's list of a run's checkpoints where Ray would refuse it: it is damaged, or names one that is gone.
    The newest checkpoint that is there is found without it, and so is the best.

    Raises:
        StorageError: the store kept failing.
    """
    place = storage.join(run, SNAPSHOT)
    try:
        known = json.loads(storage.read_text(place))
        latest = known["latest_checkpoint_result"]
        told = [*known["checkpoint_results"], *known["pending_training_results"], *([latest] if latest else [])]
        gone = {each["checkpoint_dir_name"] for each in told} - set(checkpoints(run))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged: what checkpoints there are is looked for", place)
    else:
        if not gone:
            return
        log.warning("%s names %s, which is gone: what checkpoints there are is looked for", place, min(gone))
    storage.delete(place, files_of(run))


def best_first(run: str, recipe: Recipe) -> list[tuple[str, Metrics]]:
    """Names of a run's checkpoints at the ends of epochs, with `epoch` and the validation's metrics as `val_…`: the
    best first, of equal ones the earliest. Those whose metric is no number are left out, and those that do not tell it.
    """
    found: list[tuple[float, int, str, Metrics]] = []
    for name in checkpoints(run):
        epoch, step, _ = _place(name) or (0, 0, 0)
        entry = {} if step else next((e for e in reversed(_history(run, name)) if e.get("epoch") == epoch), {})
        score = score_of(entry.get(f"val_{recipe.train.metric}", math.nan), recipe)
        if score != WORST:
            values = {key: value for key, value in entry.items() if key.startswith("val_") or key == "epoch"}
            found.append((-score, epoch, name, values))
    return [(name, values) for _, _, name, values in sorted(found, key=lambda each: each[:3])]


def history(run: str) -> list[dict[str, float]]:
    """Every entry that was logged, as the run's folder tells, or, where that is damaged, its newest checkpoint."""
    try:
        entries = [json.loads(line) for line in storage.read_text(storage.join(run, HISTORY)).splitlines()]
    except (FileNotFoundError, ValueError):
        entries = []
    if entries and all(isinstance(entry, dict) for entry in entries):
        return entries
    return next((told for name in checkpoints(run) if (told := _history(run, name))), [])


def _history(run: str, name: str) -> list[dict[str, float]]:
    """As a checkpoint tells it; empty if it does not."""
    try:
        return Progress(**json.loads(storage.read_text(storage.join(run, name, CHECKPOINT_PROGRESS)))).history
    except (FileNotFoundError, ValueError, TypeError) as error:
        log.warning("%s is damaged: %s", storage.join(run, name), error)
        return []


def checkpoints(run: str, newest: str = "") -> list[str]:
    """Names of a run's checkpoints, from this one, or the newest, backwards."""
    folders = (file.uri.rsplit("/", 2)[-2] for file in storage.list_files(run))
    places = {place: name for name in folders if (place := _place(name)) is not None}
    return [places[place] for place in sorted(places, reverse=True) if place <= (_place(newest) or place)]


def _place(checkpoint: str) -> tuple[int, int, int] | None:
    """Of a checkpoint's name the finished epochs, the step within the next one, and how many before were damaged: the
    greater, the newer. None if it is no name of a checkpoint."""
    match = CHECKPOINT.fullmatch(checkpoint)
    return (int(match["epoch"]), int(match["step"] or 0), int(match["fallbacks"] or 0)) if match else None


def load_checkpoint(hybrid: Hybrid, optimizer: torch.optim.Optimizer, uri: str) -> Progress:
    """Loads a checkpoint folder.

    Raises:
        DamagedError: a file is missing, cut off, or not what it should be.
    """
    try:
        content, state, progress = (
            storage.read_bytes(storage.join(uri, name))
            for name in (weights.WEIGHTS, CHECKPOINT_OPTIMIZER, CHECKPOINT_PROGRESS)
        )
    except FileNotFoundError as error:
        raise DamagedError(f"{uri} is damaged: there is no {error}") from None
    try:
        restored = Progress(**json.loads(progress))
        moments = torch.load(io.BytesIO(state), map_location=get_device(), weights_only=True)
        weights.load_state(hybrid, content, uri)
        for group, own in zip(moments["param_groups"], optimizer.param_groups, strict=True):
            group["fused"] = own["fused"]  # an earlier version's was not
        optimizer.load_state_dict(moments)
    except Exception as error:  # torch, safetensors and JSON each have their own
        if is_memory_error(error):  # of the host or a GPU: the files are not to blame
            raise
        raise DamagedError(f"{uri} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    return restored
