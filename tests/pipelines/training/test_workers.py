"""What workers do together."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipelines.training import workers


def _share_state(rank: int, meeting: str) -> None:
    """One of two processes, whose batch statistics differ, and whose weights do, by a little."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    workers.world_size = lambda: 2
    norm = nn.BatchNorm1d(3)
    norm(torch.full((2, 3), float(rank)))
    norm.num_batches_tracked += rank
    nn.init.constant_(norm.weight, 0.5 + rank / 1000)
    workers.share_state(norm)
    assert torch.equal(norm.weight, torch.full((3,), 0.5))
    assert norm.weight.requires_grad
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert int(norm.num_batches_tracked) == 1


def test_all_workers_validate_with_the_first_ones_weights_and_batch_statistics(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_share_state, (str(tmp_path / "meeting"),), nprocs=2)


def _from_chief(rank: int, meeting: str) -> None:
    """One of two processes, only the first of which does the work."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    workers.world_size, workers.rank = lambda: 2, lambda: rank
    workers.get_device = lambda: torch.device("cpu")
    made: list[int] = []

    def work() -> tuple[str, int]:
        made.append(rank)
        return "checkpoint", rank

    assert workers.from_chief(work) == ("checkpoint", 0)
    assert made == ([0] if rank == 0 else [])


def test_what_the_first_worker_makes_all_get(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_from_chief, (str(tmp_path / "meeting"),), nprocs=2)


@pytest.mark.usefixtures("alone")
def test_records_of_one_worker_come_in_the_order_of_the_samples() -> None:
    assert workers.gather([(2, {"x": 2}), (0, {"x": 0})]) == [(0, {"x": 0}), (2, {"x": 2})]
    assert workers.all_sum(torch.tensor(3.0)) == 3.0
    layer = nn.Linear(1, 1)
    assert workers.unwrap(layer) is layer
