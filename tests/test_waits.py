import threading

import pytest
import torch

from hybrid_models.contract import to_device
from tests.waits import Waits

NUMBERS, MASK, PLACES = torch.arange(6.0), torch.arange(6) > 2, torch.tensor([1, 4])
TWICE, CPU = torch.full((6,), 2), torch.device("cpu")


def put(numbers: torch.Tensor, index: torch.Tensor) -> None:
    numbers[index] = 0.0


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda: NUMBERS.sum().item(), 1),
        (lambda: NUMBERS.tolist(), 1),
        (lambda: NUMBERS.cpu(), 1),
        (lambda: NUMBERS.numpy(), 1),
        (lambda: bool(MASK.any()), 1),
        (lambda: int(MASK.sum()), 1),
        (lambda: MASK.nonzero(), 1),
        (lambda: torch.where(MASK), 1),
        (lambda: NUMBERS[MASK], 1),
        (lambda: put(NUMBERS.clone(), MASK), 1),
        (lambda: torch.equal(NUMBERS, NUMBERS), 1),
        (lambda: torch.allclose(NUMBERS, NUMBERS), 1),
        (lambda: NUMBERS.repeat_interleave(TWICE), 1),
        (lambda: NUMBERS[PLACES], 0),
        (lambda: put(NUMBERS.clone(), PLACES), 0),
        (lambda: NUMBERS.masked_fill(MASK, 0.0).topk(2), 0),
        (lambda: NUMBERS.repeat_interleave(2).index_select(0, PLACES), 0),
        (lambda: NUMBERS.repeat_interleave(2, dim=0, output_size=12), 0),
        (lambda: NUMBERS.repeat_interleave(TWICE, output_size=12), 0),
        (lambda: NUMBERS.cpu().numpy(), 1),
        (lambda: (NUMBERS.cpu(), NUMBERS.numpy()), 2),
    ],
)
def test_what_waits_is_counted(work, waits, inference):
    with torch.inference_mode(inference), Waits() as counted:
        work()
    assert counted.count == waits


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda: NUMBERS.to("cpu"), 1),
        (lambda: NUMBERS.to(CPU), 1),
        (lambda: NUMBERS.to(CPU, torch.float64), 1),
        (lambda: NUMBERS.to(device="cpu", dtype=torch.float64), 1),
        (lambda: NUMBERS.to(CPU, non_blocking=True), 0),
        (lambda: NUMBERS.to(CPU, torch.float64, True), 0),
        (lambda: NUMBERS.to(torch.float64), 0),
        (lambda: NUMBERS.to(PLACES), 0),
        (lambda: NUMBERS.double().copy_(NUMBERS), 0),
        (lambda: torch.tensor([1.0], device=CPU), 1),
        (lambda: torch.tensor([1.0]), 0),
        (lambda: NUMBERS.new_tensor(1.0), 1),
        (lambda: NUMBERS.new_full((), 1.0), 0),
        (lambda: to_device({"numbers": NUMBERS}, CPU), 0),
    ],
)
def test_copies_that_are_told_a_device_are_counted(work, waits):
    with Waits() as counted:
        work()
    assert counted.count == waits


@pytest.mark.parametrize(
    ("copy", "waits"),
    [
        (lambda far: torch.empty(6).copy_(far), 1),
        (lambda far: torch.empty(6).copy_(far, non_blocking=True), 0),
        (lambda far: torch.ops.aten._to_copy(far, device=CPU), 1),
    ],
)
def test_copies_from_another_device_are_counted(copy, waits):
    """Where there is one: here one without memory, from which nothing can be copied."""
    with Waits() as counted, pytest.raises(NotImplementedError, match="meta"):
        copy(torch.empty(6, device="meta"))
    assert counted.count == waits


def test_what_another_thread_waits_for_is_its_own():
    with Waits() as counted:
        thread = threading.Thread(target=NUMBERS.tolist)
        thread.start()
        thread.join()
        other = threading.Thread(target=lambda: NUMBERS.sum().tolist())
        other.start()
        other.join()
    assert counted.count == 0


def test_what_is_ignored_does_not_count():
    with Waits() as counted:
        with counted.ignored():
            NUMBERS.tolist()
        NUMBERS.tolist()
    assert counted.count == 1
