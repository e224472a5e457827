"""Shards as a Ray Data source: one read task per shard, which reads and decodes it under guard."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.sandbox.protocol import Step
from pipelines.reading.shards import Shard


class ShardDatasource(Datasource):
    """Ray Data source with one read task per shard, so that a shard is the unit of reading, retrying and reuse.

    Args:
        shards: what to read.
        options: how.
        step: what becomes of the raw rows where they are read.
        schema: columns of what `step` gives.
    """

    def __init__(self, shards: list[Shard], options: ReadOptions, step: Step, schema: pa.Schema) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shards, self._options, self._step, self._schema = shards, options, step, schema

    def get_name(self) -> str:
        """The name that Ray's progress bars show."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.size for shard in self._shards)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per shard, whatever parallelism Ray would like."""
        return [self._task(shard, per_task_row_limit) for shard in self._shards]

    def _task(self, shard: Shard, row_limit: int | None) -> ReadTask:
        options, step = self._options, self._step
        metadata = BlockMetadata(num_rows=None, size_bytes=shard.size, input_files=(shard.uri,), exec_stats=None)
        return ReadTask(
            lambda: guarded(shard, options, step), metadata, schema=self._schema, per_task_row_limit=row_limit
        )
