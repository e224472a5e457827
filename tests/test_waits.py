import pytest
import torch

from tests.waits import Waits

NUMBERS, MASK, PLACES = torch.arange(6.0), torch.arange(6) > 2, torch.tensor([1, 4])


def put(numbers: torch.Tensor, index: torch.Tensor) -> None:
    numbers[index] = 0.0


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda: NUMBERS.sum().item(), 1),
        (lambda: NUMBERS.tolist(), 1),
        (lambda: bool(MASK.any()), 1),
        (lambda: int(MASK.sum()), 1),
        (lambda: MASK.nonzero(), 1),
        (lambda: NUMBERS[MASK], 1),
        (lambda: put(NUMBERS.clone(), MASK), 1),
        (lambda: torch.equal(NUMBERS, NUMBERS), 1),
        (lambda: NUMBERS.repeat_interleave(torch.full((6,), 2)), 1),
        (lambda: NUMBERS[PLACES], 0),
        (lambda: put(NUMBERS.clone(), PLACES), 0),
        (lambda: NUMBERS.masked_fill(MASK, 0.0).topk(2), 0),
        (lambda: NUMBERS.repeat_interleave(2).index_select(0, PLACES), 0),
    ],
)
def test_what_waits_is_counted(work, waits):
    with Waits() as counted:
        work()
    assert counted.count == waits
