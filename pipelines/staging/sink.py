"""Where staged rows are written: a Ray Data sink that puts one Parquet object for each piece of a unit."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import BlockAccessor

from pipelines import storage
from pipelines.cluster import counters
from pipelines.reading.objects import OF_THE_MOMENT
from pipelines.reading.units import END, PLACED
from pipelines.staging.contents import Contents, Staged, kind_of
from pipelines.staging.pieces import PARQUET, PIECE, TIMINGS, piece_name

PUTS = 8
"""Objects that a task writes at the same time."""


class StageSink(Datasink[Staged]):
    """Ray Data sink that puts one Parquet object per contiguous piece of a unit.

    What is there by its name has the same rows, of a task that was taken for dead or of another job for the same night,
    which may have committed it: it stays.

    Rows have the columns of the files, and some of `PASSING`, of which those of `PLACED` are needed. After the write,
    `staged` sums up what all tasks report.

    Args:
        folder: URI of the staging folder.
        schema: columns of the files.
        name: how Ray's metrics call it; without one nothing is counted.
        since: the earliest second of a piece of a moment, whatever the clock says.
        jails: the decoding jails in force where the rows are decoded.
    """

    def __init__(
        self, folder: str, schema: pa.Schema, name: str = "", since: int = 0, jails: frozenset[str] = frozenset()
    ) -> None:
        self._folder, self._schema, self._name, self._since, self._jails = folder, schema, name, since, jails
        self.staged = Staged()

    def write(self, blocks: Iterable[Any], ctx: Any) -> Staged:
        """Writes the rows of these blocks; returns counts and seconds."""
        started = time.perf_counter()
        done = Staged()
        tables = [table for table in (BlockAccessor.for_block(block).to_arrow() for block in blocks) if len(table)]
        if not tables:
            return done
        table = pa.concat_tables(tables).sort_by([("unit_key", "ascending"), ("unit_place", "ascending")])
        with ThreadPoolExecutor(PUTS) as threads:
            for name, size, found in threads.map(
                self._put, (table.slice(first, stop - first) for first, stop in _runs(table))
            ):
                done.bytes += size
                done.contents[name, size] = found
        done.rows = len(table)
        for name in TIMINGS:
            if name in table.column_names:
                done.seconds[name.removesuffix("_seconds")] = pa.compute.sum(table[name]).as_py() or 0.0
        done.seconds["write"] = time.perf_counter() - started
        if self._name:
            errors = Counter(kind_of(error) for error in table["error"].drop_null().to_pylist())
            counters.count_staged(self._name, done.rows, errors, done.seconds, done.bytes)
        return done

    def _put(self, rows: pa.Table) -> tuple[str, int, Contents]:
        places, follows = rows["unit_place"], rows["unit_next"][-1].as_py()
        end = follows == END
        stop = places[-1].as_py() + 1 if end else follows
        found = replace(Contents.of(rows), jails=self._jails)
        moment = 0 if OF_THE_MOMENT.isdisjoint(found.errors) else max(int(time.time()), self._since)
        name = piece_name(rows["unit_key"][0].as_py(), places[0].as_py(), stop, len(rows), end, moment)
        if "/" in name or not PIECE.fullmatch(name):
            raise ValueError(f"'{name}' is no name of a piece")
        buffer = io.BytesIO()
        file = found.noted(rows.select(self._schema.names).cast(self._schema))
        pq.write_table(file, buffer, **PARQUET)
        storage.write_new(storage.join(self._folder, name), buffer.getvalue())
        return name, buffer.tell(), found

    def on_write_complete(self, write_result: Any) -> None:
        """Adds up what the tasks returned."""
        for done in write_result.write_returns:
            self.staged.add(done)


def _runs(table: pa.Table) -> list[tuple[int, int]]:
    """Slices of a sorted table in which the unit is one, and each row follows the one before it."""
    units, places, follows = (table[field.name].to_pylist() for field in PLACED)
    cuts = [i for i in range(1, len(units)) if units[i] != units[i - 1] or places[i] != follows[i - 1]]
    return list(zip([0, *cuts], [*cuts, len(units)], strict=True))
