from itertools import pairwise

import numpy as np
import pytest

from pipelines.training.batches import CHUNK_BATCHES, plan_epoch, share

LENGTHS = np.random.default_rng(0).integers(1, 200, 1003)


@pytest.mark.parametrize(("rows", "batch_size"), [(1003, 16), (64, 64), (65, 64), (127, 64), (3, 64), (1, 1), (7, 1)])
def test_every_sample_is_in_exactly_one_batch(rows: int, batch_size: int) -> None:
    plan = plan_epoch(LENGTHS[:rows], batch_size, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(rows))
    sizes = [len(batch) for batch in plan]
    assert max(sizes) - min(sizes) <= 1
    if rows >= batch_size:
        assert batch_size <= min(sizes)
        assert len(plan) == rows // batch_size
    else:
        assert len(plan) == 1


def test_the_plan_is_the_same_for_the_same_seed_and_epoch_only() -> None:
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_epoch(LENGTHS, 16, seed, epoch)]

    assert plan(1, 3) == plan(1, 3)
    assert plan(1, 3) != plan(1, 4)
    assert plan(1, 3) != plan(2, 3)


def test_samples_of_similar_length_come_together_and_batches_in_any_order() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, CHUNK_BATCHES * 16)  # one chunk: sorted as a whole
    plan = plan_epoch(lengths, 16, seed=0, epoch=0)
    by_mean = sorted(plan, key=lambda batch: float(lengths[batch].mean()))
    assert np.concatenate([lengths[batch] for batch in by_mean]).tolist() == sorted(lengths.tolist())
    longest = [int(lengths[batch].max()) for batch in plan]
    assert longest != sorted(longest)


@pytest.mark.parametrize(("rows", "workers"), [(64, 1), (64, 2), (67, 3), (2, 5)])
def test_workers_share_a_batch_by_where_its_samples_lie(rows: int, workers: int) -> None:
    rng = np.random.default_rng(rows)
    places = rng.permutation(1003)
    batch = rng.choice(1003, rows, replace=False)
    shares = [share(batch, places, worker, workers) for worker in range(workers)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist()), "each sample once"
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    ends = [(places[own].min(), places[own].max()) for own in shares if len(own)]
    assert all(last < first for (_, last), (first, _) in pairwise(ends)), "neighbours in the files"
    for own in shares:
        numbers = {number: n for n, number in enumerate(batch.tolist())}
        assert [numbers[number] for number in own.tolist()] == sorted(numbers[number] for number in own.tolist())
    if workers == 1:
        assert shares[0].tolist() == batch.tolist()


@pytest.mark.parametrize("workers", [2, 8, 16])
def test_a_worker_reads_a_part_of_the_files_epoch_after_epoch(workers: int) -> None:
    """Its part of n, and as far as the middle of a batch's order statistics strays: five deviations on each side."""
    rows, batch = 100_000, 64 * workers
    rng = np.random.default_rng(0)
    places, lengths = rng.permutation(rows), rng.integers(1, 200, rows)
    read: list[np.ndarray] = [np.empty(0, int)] * workers
    for epoch in range(3):
        for numbers in plan_epoch(lengths, batch, 1, epoch):
            for worker in range(workers):
                own = places[share(numbers, places, worker, workers)]
                read[worker] = np.append(read[worker], [own.min(), own.max()])
    for worker, found in enumerate(read):
        for bound, end in ((worker / workers, found.min()), ((worker + 1) / workers, found.max() + 1)):
            strays = 5 * np.sqrt(bound * (1 - bound) / batch) + 2 / batch
            assert abs(end / rows - bound) <= strays
