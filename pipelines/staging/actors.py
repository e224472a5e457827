"""The actors of the pipeline: weights are loaded once, then samples stream through. Who only sends them, the driver,
needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import ray

from hybrid_models.inputs import Sample
from pipelines.cluster import counters
from pipelines.cluster.counters import Busy
from pipelines.cluster.resources import Compute
from pipelines.models.session import Inference, by_row, outcomes
from pipelines.models.suspects import Note, Rows
from pipelines.reading.samples import SAMPLE_SCHEMA, pack, unpack
from pipelines.staging.pieces import PASSING, Lineage, table_schema

if TYPE_CHECKING:
    from hybrid_models.contract import Batch

log = logging.getLogger(__name__)
T = TypeVar("T")
Row = dict[str, Any]
MOST_ROOM = 8
"""On GPUs, batches are so many times as large as on CPUs at most: photographs of 224 x 224 come 850 at a time."""
RECORD_SCHEMA = pa.schema([pa.field("record", pa.string())])  # what evaluation keeps of a prediction, JSON


class _Worker:
    """What the actors share: a loaded model on its device, and a note of what they work on. Several threads may call
    one: the model works on the samples of one call after those of another.

    Args:
        inference: the model and how it predicts, or a reference to that in Ray's object store.
        compute: batch size, threads, device.
        name: how Ray's metrics call it; without one they are not told how busy it is.
    """

    def __init__(self, inference: Inference | ray.ObjectRef[Inference], compute: Compute, name: str = "") -> None:
        import torch

        torch.set_num_threads(compute.threads)
        if compute.gpu and compute.gpu_share < 1:  # or it would take what is another process's
            torch.cuda.set_per_process_memory_fraction(compute.gpu_share)
        chosen: Inference = ray.get(inference) if isinstance(inference, ray.ObjectRef) else inference
        self.session = chosen.load("cuda" if compute.gpu else "cpu")
        self.hybrid = self.session.hybrid
        self.compute = compute
        self._busy = Busy(name)
        self._turn = threading.RLock()
        self._weights = self._allocated()
        self._room: int | None = None  # found with the first full batch

    def outcomes(
        self, samples: pa.Table, work: Callable[[Made], list[T]], purpose: str
    ) -> Iterator[tuple[Rows, list[Any] | str]]:
        """Positions of good rows with an output each, or why the model cannot work on one, also where that ends the
        process.

        Args:
            samples: rows of `SAMPLE_SCHEMA`.
            work: some of these, and the batch of them → one output for each.
            purpose: what it is for; other work on the same samples fails for other reasons.
        """
        short = threading.Event()

        def computed(made: Made) -> list[T]:
            with self._busy.computing(), _noting(short, len(made.samples)):
                return work(made)

        lengths = samples["length"].to_numpy()  # NaN where a row is bad
        first, others = self._measured_first(lengths)
        for chosen in filter(len, (first, others)):
            room = self._room
            yield from self._outcomes(samples, chosen, computed, purpose, short)
            if len(first) and room is None:
                self._room = room_of(*self._memory())
            elif short.is_set() and room is not None and room == self._room:  # others take some of the memory by now
                self._room = max(1, room // 2)

    def _measured_first(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of a batch of the longest rows, by which it is found how many a GPU has room for, if that is not
        known; and all others."""
        size, good = self.compute.batch_size, np.count_nonzero(~np.isnan(lengths))
        if not self.compute.gpu or self._room is not None or good < size:
            return np.empty(0, np.int64), np.arange(len(lengths))
        longest = np.argsort(-np.nan_to_num(lengths, nan=-1.0), kind="stable")
        return np.sort(longest[:size]), np.sort(longest[size:])

    def _outcomes(
        self,
        samples: pa.Table,
        chosen: np.ndarray,
        work: Callable[[Made], list[T]],
        purpose: str,
        short: threading.Event,
    ) -> Iterator[tuple[Rows, list[Any] | str]]:
        """Those of some rows, all or a few; sets `short` where a batch had not enough memory."""
        some = samples if len(chosen) == len(samples) else samples.take(chosen)
        note, ahead = Note(self._note_path(some, purpose)), int(self.compute.gpu)  # a GPU would wait for a batch
        packed = samples["sample"]

        def places(rows: Rows) -> Rows:
            return tuple(int(chosen[row]) for row in rows)

        def made(rows: Rows) -> Made:
            unpacked = [unpack(packed[row].as_py()) for row in places(rows)]
            with _noting(short, len(rows)):
                return Made(unpacked, self.session.collate(unpacked))

        size, room = self.compute.batch_size, self._room or 1
        for part, outputs in outcomes(some, size, made, work, note, self._check_device, ahead, room, self._turn):
            yield places(part), outputs
        counters.count_retries("model", note.retried)

    def _memory(self) -> tuple[int, int]:
        """Bytes of the GPU that predicting took so far, at most, and those that it has for it."""
        import torch

        free, total = torch.cuda.mem_get_info()
        there = min(free + torch.cuda.memory_reserved(), int(total * self.compute.gpu_share)) - self._weights
        return torch.cuda.max_memory_allocated() - self._weights, there

    def _allocated(self) -> int:
        import torch

        return torch.cuda.memory_allocated() if self.compute.gpu else 0

    @contextmanager
    def call(self, samples: pa.Table, purpose: str) -> Iterator[None]:
        """All work on some samples, until they are handed on. Where a process has died of it, no others are computed
        beside it now: what their rows take would be blamed on these, or theirs on others."""
        path = self._note_path(samples, f"call {purpose}") if self.compute.gpu else None  # without one nothing ever is
        with Note(path) as note, self._turn if note.inherited else nullcontext():
            yield

    def _note_path(self, samples: pa.Table, purpose: str) -> Path | None:
        """The same for the process that gets these samples when this one has died."""
        folder = node_folder()
        if folder is None or not len(samples):
            return None
        ends = samples.select(["shard", "index"]).take([0, len(samples) - 1]).to_pylist()
        of = [type(self).__name__, purpose, ends, len(samples)]
        return folder / hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def _check_device(self) -> None:
        """A GPU that has failed fails all that comes after: then this process ends, and another one takes its place."""
        if self.compute.gpu:
            import torch

            try:
                torch.cuda.synchronize()
            except RuntimeError:
                log.exception("the GPU does not answer any more")
                os._exit(1)


@dataclass(frozen=True)
class Made:
    """What a prediction takes: samples, and the batch of them on the model's device."""

    samples: list[Sample]
    batch: Batch


class Predictor(_Worker):
    """Samples → rows of a table (a Ray Data map actor from `SAMPLE_SCHEMA`).

    Args:
        inference: the model and how it predicts, or a reference to that in Ray's object store.
        compute: batch size, threads, device.
        lineage: recorded in every row.
        judge: keep what evaluation needs of each prediction instead of the prediction itself.
        name: how Ray's metrics call it; without one they are not told how busy it is.
    """

    def __init__(
        self,
        inference: Inference | ray.ObjectRef[Inference],
        compute: Compute,
        lineage: Lineage,
        judge: bool = False,
        name: str = "",
    ) -> None:
        super().__init__(inference, compute, name)
        self.lineage = asdict(lineage)
        self.judge = judge
        payload = RECORD_SCHEMA if judge else self.hybrid.payload_schema
        self.schema = pa.schema([*table_schema(payload), *PASSING])

    def __call__(self, samples: pa.Table) -> pa.Table:
        """One output row for each input row, in the same order."""
        rows = samples.drop_columns(["sample", "length", "output_bytes"]).to_pylist()
        created = datetime.now(UTC)
        for row in rows:
            status = "ok" if row["error"] is None else "error"
            row.update(self.lineage, status=status, created_at=created, predict_seconds=0.0)
        bad = tuple(i for i, row in enumerate(rows) if row["status"] == "error")
        parts: list[tuple[Rows, Future[pa.Table]]] = []
        # a GPU does not wait for the tables of what it computed
        with self.call(samples, self.lineage["fingerprint"]), ThreadPoolExecutor(1) as thread:
            parts.append((bad, thread.submit(self._table, rows, bad, [])))
            for part, outputs in self.outcomes(samples, self._predict, self.lineage["fingerprint"]):
                parts.append((part, thread.submit(self._table, rows, part, outputs)))
        return _in_order([(part, table.result()) for part, table in parts])

    def _table(self, rows: Sequence[Row], part: Sequence[int], outputs: list[Row] | str) -> pa.Table:
        """Rows at some positions, with what was predicted of them."""
        found = dict(by_row(part, outputs)) if outputs else {}
        return pa.Table.from_pylist([rows[i] | found.get(i, {}) for i in part], schema=self.schema)

    def _predict(self, made: Made) -> list[Row]:
        started = time.perf_counter()
        outputs = self.session.infer(made.batch)
        if self.judge:
            outputs = [self._record(sample, output) for sample, output in zip(made.samples, outputs, strict=True)]
        seconds = (time.perf_counter() - started) / len(outputs)
        return [{**output, "predict_seconds": seconds} for output in outputs]

    def _record(self, sample: Sample, output: Row) -> Row:
        truth = digest(sample, self.hybrid.truth)
        return {"record": json.dumps({**self.hybrid.record(sample, output), "truth": truth})}


@contextmanager
def _noting(short: threading.Event, rows: int) -> Iterator[None]:
    """Notes that a GPU has not enough memory for so many rows, unless it has not for one."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        if rows > 1:
            short.set()
        raise


def room_of(used: int, memory: int) -> int:
    """How many times as large a batch may be as those that used so many bytes, to use half of a GPU's memory."""
    return max(1, min(MOST_ROOM, memory // (2 * max(1, used))))


def _in_order(parts: Sequence[tuple[Rows, pa.Table]]) -> pa.Table:
    """Tables in one, each row at its place; `take` refuses columns of more than 2 GiB, such as frames may be.

    Raises:
        AssertionError: there is not one row for each place.
    """
    places = [place for part, _ in parts for place in part]
    assert sorted(places) == list(range(len(places))), "a place twice, or none"
    assert all(len(part) == len(table) for part, table in parts), "not as many rows as places"
    table = pa.concat_tables(table for _, table in parts)
    return pa.concat_tables(table.slice(int(i), 1) for i in np.argsort(places)).combine_chunks() if places else table


class Featurizer(_Worker):
    """Samples → samples in which the frozen part of the net has been applied (a Ray Data map actor)."""

    def __call__(self, samples: pa.Table) -> pa.Table:
        """One output row for each input row, in the same order."""
        import torch

        columns = {name: samples[name].to_pylist() for name in ("sample", "length", "output_bytes", "error")}

        def featurized(given: Made) -> list[Sample]:
            with torch.inference_mode():
                return self.hybrid.featurize(given.samples, given.batch)

        packed: list[tuple[Rows, Future[list[bytes]]]] = []
        with self.call(samples, ""), ThreadPoolExecutor(1) as thread:
            for part, features in self.outcomes(samples, featurized, ""):
                if isinstance(features, str):
                    (i,) = part
                    columns["sample"][i] = columns["length"][i] = columns["output_bytes"][i] = None
                    columns["error"][i] = features
                else:
                    packed.append((part, thread.submit(_packed, features)))
        for part, made in packed:
            for i, sample in zip(part, made.result(), strict=True):
                columns["sample"][i] = sample
        for name, values in columns.items():
            field = SAMPLE_SCHEMA.field(name)
            samples = samples.set_column(SAMPLE_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
        return samples


def _packed(samples: Sequence[Sample]) -> list[bytes]:
    return [pack(sample) for sample in samples]


def node_folder() -> Path | None:
    """Where notes lie on this node: in the folder of Ray's session. None in a process that is not Ray's."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "suspects")


def digest(sample: Sample, names: Sequence[str]) -> str:
    """Hash of a sample's arrays of these names."""
    return hashlib.sha256(pack({name: sample[name] for name in names})).hexdigest()[:16]
