"""Shards as a Ray Data source: read tasks, each of one shard or of some small ones, read and decoded under guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import BLOCK_BYTES
from pipelines.reading.sandbox import jail
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.sandbox.protocol import Step
from pipelines.reading.units import END, PLACED, Part, placed

TABLE_ROWS, UNIT_ROWS = 256, 4096
"""Smaller tables are put together: a model takes a batch from one of them. A unit of up to so many rows is not cut, as
each table of it becomes an object: of shards with a hundred sentences a unit has 3,800."""


class ShardDatasource(Datasource):
    """Ray Data source with one read task for each bundle of shards.

    Made on a cluster: what tasks have in common lies in its object store, and what each of them reads.

    Args:
        bundles: what to read, see `bundles.bundled`.
        options: how.
        step: what becomes of the raw rows where they are read; those that have an `index` then are given their places.
    """

    def __init__(self, bundles: Sequence[Sequence[Part]], options: ReadOptions, step: Step) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bundles = bundles
        self._schema = pa.schema([*step.schema, *PLACED]) if _numbered(step) else step.schema
        self._given = ray.put((options, step, jail.wanted_mode()))

    def get_name(self) -> str:
        """The name that Ray's progress bars show."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards together."""
        return sum(part.shard.size for bundle in self._bundles for part in bundle)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task for each bundle, whatever parallelism Ray would like."""
        return [self._task(bundle, per_task_row_limit) for bundle in self._bundles]

    def _task(self, bundle: Sequence[Part], row_limit: int | None) -> ReadTask:
        size = sum(part.shard.size for part in bundle)
        metadata = BlockMetadata(num_rows=None, size_bytes=size, input_files=None, exec_stats=None)
        read = partial(_read, ray.put(tuple(bundle)), self._given)
        return ReadTask(read, metadata, schema=self._schema, per_task_row_limit=row_limit)


def _numbered(step: Step) -> bool:
    return "index" in step.schema.names


def _read(
    bundle: ray.ObjectRef[tuple[Part, ...]], given: ray.ObjectRef[tuple[ReadOptions, Step, str]]
) -> Iterator[pa.Table]:
    """A task, which has references alone: a group's fields may be megabytes, what all have in common, such as a
    vocabulary, too."""
    parts = ray.get(bundle)
    options, step, mode = ray.get(given)
    return _together((part, table) for part in parts for table in _rows(part, options, step, mode))


def _rows(part: Part, options: ReadOptions, step: Step, mode: str) -> Iterator[pa.Table]:
    """A part's rows, with their places: whatever the child says, it cannot name a unit."""
    tables = guarded(part.shard, options, step, jail_mode=mode)
    return (placed(table, part) for table in tables) if _numbered(step) else tables


def _together(tables: Iterator[tuple[Part, pa.Table]]) -> Iterator[pa.Table]:
    """The same rows in tables that are not too small."""
    held: list[pa.Table] = []
    rows = own = size = 0
    unit = ""
    for part, table in tables:
        own, unit = (own if part.unit == unit else 0) + len(table), part.unit
        held.append(table)
        rows, size = rows + len(table), size + table.nbytes
        enough = own >= UNIT_ROWS if _goes_on(part, table) else rows >= TABLE_ROWS
        if enough or size >= BLOCK_BYTES:
            yield pa.concat_tables(held)
            held, rows, own, size = [], 0, 0, 0
    if held:
        yield pa.concat_tables(held)


def _goes_on(part: Part, table: pa.Table) -> bool:
    """Whether a table ends within a unit of several shards."""
    return not part.alone and "unit_next" in table.column_names and table["unit_next"][-1].as_py() != END
