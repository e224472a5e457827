"""Shards as a Ray Data source: read tasks, each of one shard or of some small ones, read and decoded under guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import BLOCK_BYTES
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.sandbox.protocol import Step
from pipelines.reading.shards import Shard

TASK_BYTES = 1 << 20
"""Of small shards so many are read in one task, ten thousand sentences: what is done again if its process dies."""
OPEN_BYTES = 4 << 10
"""Takes as long to read as it takes to open a shard, or one object of a group."""
TASKS_A_PROCESS = 16
"""At least, where there are so many shards: the last process is done a sixteenth later than the first, at most."""
TABLE_ROWS = 256
"""Smaller tables are put together: a model takes a batch from one of them."""


class ShardDatasource(Datasource):
    """Ray Data source with one read task for each bundle of shards.

    Made on a cluster: what tasks have in common lies in its object store.

    Args:
        bundles: what to read, see `bundled`.
        options: how.
        step: what becomes of the raw rows where they are read.
    """

    def __init__(self, bundles: Sequence[Sequence[Shard]], options: ReadOptions, step: Step) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bundles, self._schema = bundles, step.schema
        self._given = ray.put((options, step))

    def get_name(self) -> str:
        """The name that Ray's progress bars show."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.size for bundle in self._bundles for shard in bundle)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each bundle, whatever parallelism Ray would like."""
        return [self._task(bundle, per_task_row_limit) for bundle in self._bundles]

    def _task(self, bundle: Sequence[Shard], row_limit: int | None) -> ReadTask:
        size = sum(shard.size for shard in bundle)
        metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
        shards, given = tuple(bundle), self._given
        return ReadTask(
            lambda: _read(shards, given), metadata, schema=self._schema, per_task_row_limit=row_limit
        )  # not a `partial`: of large tasks Ray prints the function's name


def bundled(shards: Sequence[Shard], processes: int) -> list[list[Shard]]:
    """Neighbours that one task reads. Each task costs the driver 12 ms, and the model a batch that is not full.

    Args:
        shards: in the order of the listing, which stays.
        processes: how many there are for these tasks.
    """
    costs = [shard.size + OPEN_BYTES * max(1, len(shard.members)) for shard in shards]
    most = min(TASK_BYTES, sum(costs) / (TASKS_A_PROCESS * processes))
    bundles: list[list[Shard]] = []
    held = most
    for shard, cost in zip(shards, costs, strict=True):
        if held + cost > most:
            bundles.append([])
            held = 0
        bundles[-1].append(shard)
        held += cost
    return bundles


def _read(bundle: Sequence[Shard], given: ray.ObjectRef[tuple[ReadOptions, Step]]) -> Iterator[pa.Table]:
    """A task. What all have in common, a vocabulary for one, is a hundred times as large as a task of its own."""
    options, step = ray.get(given)
    return _together(table for shard in bundle for table in guarded(shard, options, step))


def _together(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables that are not too small."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        held.append(table)
        rows, size = rows + len(table), size + table.nbytes
        if rows >= TABLE_ROWS or size >= BLOCK_BYTES:
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)
