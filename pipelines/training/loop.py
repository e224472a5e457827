"""THE training loop: what each Ray Train worker runs, for every hybrid alike."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch
from ray import train as ray_train
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from hybrid_models.contract import Batch, Hybrid, compute_exactly, half_type, to_device
from hybrid_models.inputs import Sample
from hybrid_models.muon import Muon, matrices_of
from pipelines.models.ahead import made_ahead
from pipelines.models.artifacts import Artifact
from pipelines.models.tracking import Tracker
from pipelines.staging.prepared import PreparedSamples
from pipelines.training import failures, workers
from pipelines.training.batches import plan_epoch, share
from pipelines.training.checkpoints import Interval, Metrics, Progress, restore, save, save_within
from pipelines.training.recipe import Recipe, TrainConfig
from pipelines.training.runs import TrainTask

LOG_EVERY = 10
AHEAD = 2  # batches
LEAST_SCALE = 1.0
"""Gradients that are too large for float16 even so are too large."""
FINAL_RATE = 0.02
SCALE = {"scale": "_scale", "_growth_tracker": "_growth_tracker"}
"""What a scaler's state dict has on the device, and where the scaler has it."""


@dataclass(frozen=True)
class Within:
    """Checkpoints in the middle of an epoch, each after a step that is finished and logged."""

    is_due: Callable[[], bool]
    """Asked of the first worker."""
    make: Callable[[], None]
    """Done by all."""


def train_worker(task: TrainTask) -> None:
    """Trains from the newest checkpoint, or from the initial weights, to the end.

    A failure that would come again is kept for the driver, and met again by a worker that is started once more; but
    none of a worker that has lost the others.
    """
    if (failure := failures.kept(task.run, task.attempt)) is not None:
        raise failure.error()
    try:
        _train(task)
    except Exception as error:
        if workers.are_together():
            failures.keep(task.run, task.attempt, error)
        raise


def _train(task: TrainTask) -> None:
    config = task.recipe.train
    torch.set_num_threads(task.threads)
    compute_exactly(get_device())
    artifact: Artifact = ray.get(task.initial)
    hybrid = artifact.load().to(get_device())
    optimizer = make_optimizer(hybrid, config)
    progress = restore(hybrid, optimizer, task)
    hybrid.train()  # before DDP asks which weights learn
    model = prepare_model(hybrid, parallel_strategy="ddp" if workers.world_size() > 1 else None)
    train_set = PreparedSamples(ray.get(task.train), task.run)
    val_set = PreparedSamples(ray.get(task.val), task.run)
    ended = True
    try:
        train_epochs(model, optimizer, train_set, val_set, progress, task)
    except Exception as error:
        # else who is started in this one's place needs the same copies; if they do not fit, nobody does
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        ended = full or (workers.are_together() and failures.comes_again(error))
        raise
    finally:
        if ended and ray_train.get_context().get_local_rank() == 0:
            train_set.remove()
            val_set.remove()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The recipe's, for all weights that learn."""
    learning = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(learning, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    matrices = matrices_of(model)
    chosen = {id(p) for p in matrices}
    return Muon(matrices, [p for p in learning if id(p) not in chosen], config.learning_rate, config.weight_decay)


def train_epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train_set: PreparedSamples,
    val_set: PreparedSamples,
    progress: Progress,
    task: TrainTask,
) -> None:
    """Epoch after epoch: train, validate, checkpoint, log; until the last one or `patience` epochs without a better.

    An epoch that takes long has checkpoints of its own on the way."""
    config, hybrid = task.recipe.train, workers.unwrap(model)
    tracker = Tracker(task.tracking_uri, task.mlflow_run_id)
    interval = Interval(task.checkpoint_minutes)

    def keep() -> None:
        save_within(hybrid, optimizer, progress, task)
        if workers.is_chief():
            tracker.catch_up(progress.history)
        interval.begin()

    while progress.epoch < config.epochs and progress.stale < config.patience:
        train_epoch(model, optimizer, train_set, config, progress, task.progress, Within(interval.is_over, keep))
        workers.share_state(hybrid)
        values, judged = validate(hybrid, val_set, task.recipe)
        progress.epoch += 1
        progress.judge(values[f"val_{config.metric}"], task.recipe.higher_is_better)
        progress.note({**values, "epoch": progress.epoch})
        save(hybrid, optimizer, progress, values, judged, task)
        interval.begin()
        if workers.is_chief():
            tracker.catch_up(progress.history)
            workers.tell(task.progress, "epoch", progress, values)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    samples: PreparedSamples,
    config: TrainConfig,
    progress: Progress,
    reporter: Any,
    within: Within,
) -> None:
    """One pass over the training samples, or what is left of it. Random numbers depend on seed, epoch, batch and rank
    only, so a resumed run draws the same ones as an uninterrupted run.
    """
    hybrid = workers.unwrap(model)
    plan = plan_epoch(samples.index.lengths, config.batch_size, config.seed, progress.epoch)
    steps = math.ceil(len(plan) / config.accumulate)
    hybrid.start_epoch(progress.epoch, config.epochs)
    model.train()
    started, seen = time.perf_counter(), 0
    shares: list[Tensor] = []
    norms: list[Tensor] = []
    scaled = workers.any_of(half_type(get_device()) is torch.float16)  # by all, as their gradients are added up
    scaler = scaler_of(get_device(), progress.scale, scaled)
    workers.tell(reporter, "start", progress, {"steps": steps, "done": progress.batches // config.accumulate})
    for number, batch in training_batches(hybrid, samples, plan, config.seed, progress):
        last = (number + 1) % config.accumulate == 0 or number + 1 == len(plan)
        group = min(config.accumulate, len(plan) - number // config.accumulate * config.accumulate)
        seed_draws(config.seed, progress.epoch, number, workers.rank())
        shares.append(backward(model, batch, group, scaler, synchronise=last))
        seen += len(plan[number])
        if not last:
            continue
        rate = learning_rate(progress.step, config.epochs * steps, config)
        norms.append(step(model, optimizer, rate, config.clip_norm, scaler))
        progress.step += 1
        progress.batches = (number + 1) % len(plan)
        if progress.step % LOG_EVERY == 0 or not progress.batches:
            due = workers.how_many(workers.is_chief() and within.is_due())
            values, progress.scale, is_due = look(shares, norms, scaler, due)
            values["learning_rate"] = rate
            values["samples_per_second"] = seen / (time.perf_counter() - started)
            progress.note(values)
            workers.tell(reporter, "step", progress, values)
            shares.clear()
            norms.clear()
            if is_due and progress.batches:
                within.make()


def seed_draws(*numbers: int) -> None:
    """Lets what is drawn next, for dropout or texts, depend on these numbers alone."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` looks for every kind of device, which takes longer
    if get_device().type == "cuda":
        torch.cuda.manual_seed(seed)


def training_batches(
    hybrid: Hybrid, samples: PreparedSamples, plan: Sequence[np.ndarray], seed: int, progress: Progress
) -> Iterator[tuple[int, Batch]]:
    """This worker's share of every batch of the plan that is left, with the batch's number, collated and copied to its
    device ahead by a thread.

    The plan has no workers in it: when their number changes, each takes more or less of the same batches.
    """
    epoch, device, worker = progress.epoch, get_device(), workers.rank()
    left = range(progress.batches, len(plan))
    shares = {number: share(plan[number], samples.index.places, worker, workers.world_size()) for number in left}
    samples.fetch(np.concatenate([np.empty(0, np.int64), *shares.values()]))

    def make(number: int) -> Batch:
        rng = np.random.default_rng((seed, epoch, number, worker))
        return to_device(hybrid.collate([samples[i] for i in shares[number]], rng), device)

    for number, batch in made_ahead(make, left, AHEAD):
        yield number, batch()


def scaler_of(device: torch.device, state: Mapping[str, float], enabled: bool) -> torch.amp.GradScaler:
    """What keeps gradients of float16 from vanishing (Micikevicius et al. 2018, arXiv:1710.03740).

    Args:
        device: that computes.
        state: where it was, as `look` says it; empty at the beginning.
        enabled: whether anybody computes in these; otherwise it does nothing.
    """
    scaler = torch.amp.GradScaler(device.type, enabled=enabled)
    if state:
        scaler.load_state_dict({**scaler.state_dict(), **state})
    return scaler


def backward(
    model: nn.Module, batch: Batch, accumulate: int, scaler: torch.amp.GradScaler, synchronise: bool
) -> Tensor:
    """Adds the gradients of the batch's mean loss, exact over workers of unequal shares; returns that mean."""
    hold = contextlib.nullcontext() if synchronise or workers.world_size() == 1 else model.no_sync()  # type: ignore[operator]
    with hold:
        loss = model(batch)
        count = workers.all_sum(loss.terms.detach().float())
        # DDP averages gradients over workers, so the sum over workers needs their number.
        scaler.scale(loss.total * (workers.world_size() / (count * accumulate))).backward()
    return workers.all_sum(loss.total.detach().float()) / count / accumulate


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip_norm: float, scaler: torch.amp.GradScaler
) -> Tensor:
    """One step of a fused optimizer at this learning rate; returns the gradients' norm before clipping.

    Where that is not finite, nothing changes. To know so here, a GPU would have to be waited for: `look` tells.

    Raises:
        AssertionError: the optimizer is not fused.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm).detach()
    if not scaler.is_enabled():
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # as a scaler says it
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def look(
    shares: Sequence[Tensor], norms: Sequence[Tensor], scaler: torch.amp.GradScaler, due: Tensor
) -> tuple[dict[str, float], dict[str, float], bool]:
    """Waits, once, for some steps to be done; returns their mean `loss` and the last finite `gradient_norm`; where the
    scaler is, empty if it does nothing; and whether a checkpoint is due.

    Args:
        shares: what `backward` gave.
        norms: what `step` gave.
        scaler: of the gradients. If it does something, steps are left out until its scale fits.
        due: for how many workers a checkpoint is.

    Raises:
        FloatingPointError: the loss or the gradients of one were not finite, and no scale is to blame.
    """
    # its `state_dict` would wait for each of these
    state = [getattr(scaler, name) for name in SCALE.values()] if scaler.is_enabled() else []
    values = iter(torch.stack([due, *shares, *norms, *state]).tolist())
    is_due = next(values) > 0
    losses, found = list(islice(values, len(shares))), list(islice(values, len(norms)))
    scale: dict[str, float] = dict(zip(SCALE, values, strict=False))
    finite = [norm for norm in found if math.isfinite(norm)]
    fits = len(finite) == len(found) or scale.get("scale", 0.0) >= LEAST_SCALE
    if not (fits and all(map(math.isfinite, losses))):
        raise FloatingPointError("the gradients are not finite: lower `train.learning_rate`")
    mean = {"loss": sum(losses) / len(norms)}
    return ({**mean, "gradient_norm": finite[-1]} if finite else mean), scale, is_due


def learning_rate(done: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up to the peak, then cosine to 2 % of it at the last step, or constant.

    A pure function of the finished steps, of `total` if no epoch is left out.
    """
    warm_up = max(1, config.warmup_steps)
    if done < warm_up:
        return config.learning_rate * (done + 1) / warm_up
    if config.schedule == "constant":
        return config.learning_rate
    phase = min(1.0, (done + 1 - warm_up) / max(1, total - warm_up))
    return config.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * phase)))


@torch.inference_mode()
def validate(hybrid: Hybrid, samples: PreparedSamples, recipe: Recipe) -> tuple[Metrics, dict[str, Any]]:
    """Exact validation over all workers: the mean loss of all samples, the hybrid's metrics of the first ones.

    Returns:
        `val_loss` and the metrics as `val_…`; and what the hybrid's `summarise` gives of the first samples, empty where
        none was to be decoded.
    """
    hybrid.eval()
    size, decoded = recipe.train.batch_size, recipe.train.validate_samples
    mine = _validated(samples, decoded)
    samples.fetch(mine)
    sums = torch.zeros(2, dtype=torch.float64, device=get_device())  # looked at once
    for _, _, batch in _batches(hybrid, samples, mine, size):
        loss = hybrid(batch)
        sums += torch.stack([loss.total.double(), loss.terms.double()])
    records: list[tuple[int, dict[str, Any]]] = []
    for numbers, members, batch in _batches(hybrid, samples, mine[mine < decoded], size):
        outputs = hybrid.predict(batch, recipe.decoding)
        records += [(int(i), hybrid.record(m, o)) for i, m, o in zip(numbers, members, outputs, strict=True)]
    total, count = workers.all_sum(sums).tolist()
    everyone = [record for _, record in workers.gather(records)]
    judged = hybrid.summarise(everyone) if everyone else {}
    metrics = {f"val_{name}": value for name, value in judged.get("metrics", {}).items()}
    return {"val_loss": total / count, **metrics}, judged


def _batches(
    hybrid: Hybrid, samples: PreparedSamples, chosen: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, list[Sample], Batch]]:
    """The numbers, samples and batch of some samples, so many at a time; made ahead, as for training."""
    device = get_device()

    def make(numbers: np.ndarray) -> tuple[list[Sample], Batch]:
        members = [samples[i] for i in numbers]
        return members, to_device(hybrid.collate(members), device)

    groups = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    for numbers, made in made_ahead(make, groups, AHEAD):
        yield numbers, *made()


def _validated(samples: PreparedSamples, decoded: int) -> np.ndarray:
    """The numbers of the samples that this worker validates, similar lengths together: of the first ones, which take
    long as they are decoded, every n-th one, and its share of the others."""
    index, worker, together = samples.index, workers.rank(), workers.world_size()
    first = np.arange(worker, min(decoded, len(samples)), together)
    others = share(np.arange(min(decoded, len(samples)), len(samples)), index.places, worker, together)
    mine = np.concatenate([first, others])
    return mine[np.argsort(index.lengths[mine], kind="stable")]
