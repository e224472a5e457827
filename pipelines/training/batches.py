"""A plan of every epoch that all workers share: which samples each batch has, and which of them each worker takes.

Why not `ray.train.get_dataset_shard`: it splits equally and may drop rows, does not keep the order from run to run, and
cannot group samples by length. Ray Data decodes and featurizes once (see `infer.stage`); the result is read by
`staging.prepared`.
"""

from __future__ import annotations

import numpy as np

CHUNK_BATCHES = 50


def plan_epoch(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The epoch's batches as arrays of sample numbers: every sample once, none dropped, similar lengths together.

    Samples are shuffled, sorted by length within chunks of 50 batches, cut into batches of at least `batch_size`
    (sizes differ by at most one), and the batches shuffled. A pure function: every worker makes the same plan, however
    many there are. The n-th batch is that of all workers together; where their number changes within an epoch, the
    next ones share out the next batch, so that each sample is still seen once.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    chunk = CHUNK_BATCHES * batch_size
    chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    by_length = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in chunks])
    batches = np.array_split(by_length, max(1, len(by_length) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def share(batch: np.ndarray, places: np.ndarray, worker: int, workers: int) -> np.ndarray:
    """The samples of a batch that a worker takes, in the batch's order: equally many for each, and neighbours in the
    files.

    A batch is drawn of all files alike, so those of a worker's shares are nearly the same ones in every batch: about
    the n-th part of n, and what chance adds (see docs/scale.md). That is what its node has to copy.

    Args:
        batch: sample numbers.
        places: [samples] where each one lies in the files.
        worker: its number; those of a node are neighbours.
        workers: how many there are.
    """
    by_place = np.argsort(places[batch], kind="stable")
    return batch[np.sort(np.array_split(by_place, workers)[worker])]
