"""What the workers of a training do together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from ray import train as ray_train
from ray.train.torch import get_device
from torch import Tensor, nn

from hybrid_models.contract import Hybrid

if TYPE_CHECKING:
    from pipelines.training.checkpoints import Progress

T = TypeVar("T")


def rank() -> int:
    """This worker's number."""
    return int(ray_train.get_context().get_world_rank())


def world_size() -> int:
    """How many workers train together."""
    return int(ray_train.get_context().get_world_size())


def are_together() -> bool:
    """Whether this worker still reaches the others: when their number is to change, Ray parts them, then ends them."""
    return world_size() == 1 or dist.is_initialized()


def is_chief() -> bool:
    """Whether this is the worker that writes."""
    return rank() == 0


def all_sum(value: Tensor) -> Tensor:
    """The sum over all workers of what is on their devices."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def how_many(mine: bool) -> Tensor:
    """For how many workers something is so; nobody waits until it is asked which number that is."""
    return all_sum(torch.full((), float(mine), device=get_device()))


def any_of(mine: bool) -> bool:
    """Whether something is so for any worker."""
    return mine if world_size() == 1 else bool(how_many(mine) > 0)


def share_state(hybrid: nn.Module) -> None:
    """Gives every worker the first one's weights and buffers, which are saved: each has batch statistics of its own
    samples, and on CPUs of another kind products are rounded in another way, so that steps of Muon differ a little."""
    if world_size() > 1:
        for tensor in (*hybrid.parameters(), *hybrid.buffers()):
            dist.broadcast(tensor.detach(), 0)


def gather(records: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """All workers' records, in the order of the samples."""
    if world_size() > 1:
        parts: list[Any] = [None] * world_size()
        dist.all_gather_object(parts, records)
        records = [record for part in parts for record in part]
    return sorted(records, key=lambda pair: pair[0])


def from_chief(work: Callable[[], T]) -> T:
    """What the first worker makes of some work, given to all."""
    made = [work() if is_chief() else None]
    if world_size() > 1:
        dist.broadcast_object_list(made, 0, device=get_device())
    return cast("T", made[0])


def unwrap(model: nn.Module) -> Hybrid:
    """The hybrid inside DDP."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model  # type: ignore[return-value]


def tell(reporter: Any, event: str, progress: Progress, values: Mapping[str, float], text: str = "") -> None:
    """Shows the driver how far the first worker is; nobody waits for it."""
    if is_chief():
        reporter.update.remote(event, progress.epoch, progress.step, dict(values), text)
