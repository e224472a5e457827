"""Prepared samples → training batches: a local memory-mapped copy, and a plan of every epoch that all workers share.

Why not `ray.train.get_dataset_shard`: it splits equally and may drop rows, does not keep the order from run to run, and
cannot group samples by length. Ray Data decodes and featurizes once (see `infer.stage`); the result is read from here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from hybrid_models.inputs import Sample
from pipelines import storage
from pipelines.reading.samples import unpack
from pipelines.staging.pieces import Piece

COLUMNS = ["sample", "length"]
ORDER = "order.npy"
"""Beside the samples: their numbers in the order of their shards."""
CHUNK_BATCHES = 50
READERS, READ_BYTES = 16, 256 << 20
"""So many pieces, and about so many bytes of them, a node reads at once."""


class PreparedSamples:
    """The good samples of some staged pieces, memory-mapped from one Arrow file that all workers of a node share.

    They are in the order of their shards' addresses, however these were staged: the same data elsewhere train alike.

    Args:
        pieces: the staged files.
        owner: whose copy it is; `remove` takes nothing from another owner.
    """

    def __init__(self, pieces: Sequence[Piece], owner: str) -> None:
        self.folder = Path(tempfile.gettempdir()) / f"hybrid-samples-{os.getuid()}" / _copy_name(pieces, owner)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "samples.arrow"
        with FileLock(self.folder / "lock"):
            if not path.exists():
                _copy(pieces, path)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._samples = table["sample"]
        self._order: np.ndarray = np.load(path.with_name(ORDER), mmap_mode="r")
        self.lengths: np.ndarray = table["length"].to_numpy()[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:
        return unpack(self._samples[int(self._order[index])].as_buffer().to_pybytes())

    def remove(self) -> None:
        """Deletes the local copy; open maps stay valid until they are closed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _copy_name(pieces: Sequence[Piece], owner: str) -> str:
    """Different for different files, or files of another state, so that a copy left by a killed run is never stale."""
    states = [owner, ORDER, *(f"{piece.file.uri} {piece.file.etag}" for piece in pieces)]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]


def _copy(pieces: Sequence[Piece], path: Path) -> None:
    """Writes the pieces' good rows as an uncompressed Arrow file, some pieces in memory at a time; and their order."""
    unfinished = path.with_suffix(".unfinished")
    schema = pa.schema([pa.field("sample", pa.large_binary()), pa.field("length", pa.int64())])
    runs: list[tuple[str, int, np.ndarray]] = []
    copied = 0
    with pa.ipc.new_file(str(unfinished), schema) as writer:
        for good in _read_ahead(pieces):
            runs += _runs(good, copied)
            copied += len(good)
            writer.write_table(good.select(COLUMNS).cast(schema))
    rows = [own for _, _, own in sorted(runs, key=lambda run: run[:2])]
    np.save(path.with_name(ORDER), np.concatenate([np.empty(0, np.int64), *rows]))
    unfinished.rename(path)


def _read_ahead(pieces: Sequence[Piece]) -> Iterator[pa.Table]:
    """The pieces' good rows, in order; the next pieces are read meanwhile, side by side."""
    with ThreadPoolExecutor(READERS) as pool:
        pending: deque[tuple[int, Future[pa.Table]]] = deque()
        for piece in pieces:
            while pending and (len(pending) == READERS or _bytes(pending) + piece.file.size > READ_BYTES):
                yield pending.popleft()[1].result()
            pending.append((piece.file.size, pool.submit(_good_rows, piece)))
        while pending:
            yield pending.popleft()[1].result()


def _bytes(pending: Iterable[tuple[int, Future[pa.Table]]]) -> int:
    return sum(size for size, _ in pending)


def _good_rows(piece: Piece) -> pa.Table:
    with storage.open_input(piece.file.uri) as stream:
        table = pq.read_table(stream, columns=[*COLUMNS, "shard", "index"], use_threads=False)
    return table.filter(table["length"].is_valid())


def _runs(rows: pa.Table, start: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Of each shard in a piece's rows, in which its own stand together: its address, its first index there, and the
    numbers of its rows, where the first one of all has the number `start`."""
    shards = rows["shard"].combine_chunks().dictionary_encode()
    codes, index = shards.indices.to_numpy(), rows["index"].to_numpy()
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    for first, stop in pairwise([*begins, len(codes)]):
        yield shards.dictionary[codes[first]].as_py(), int(index[first]), np.arange(start + first, start + stop)


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
