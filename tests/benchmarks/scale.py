"""What the driver of a night does for N shards, without their payload: seconds, requests and memory by step.

    python -m tests.benchmarks.scale [--shards 1000 10000] [--store s3|disk] [--processes 2 400] [--shard-bytes 900]
        [--ray] [--compute] [--compact] [--nights 0]

A night of N text shards is listed, its read tasks and its sink are packed as Ray Data sends them, its pieces (one for
each unit, which are put there as copies of one) are looked at, counted, committed and looked for, then the same night
comes again, and two other nights are committed. Of the first one writers have told what is in the pieces. Every step is
the driver's own function, on a local S3 server or a disk; a translator of 6,000 words travels with the tasks. Requests
are those that the server has answered. Memory is the process's highest within a step, and how much of it the step
added. With several numbers of shards, the growth of each step is fitted: the exponent of a power law by least squares
of the logarithms, where a step takes 0.05 s or more.

Read tasks are made for each number of `--processes`, as if a cluster had so many: besides their bytes it is told how
many there are, the largest one's bytes of shards, and how many units several of them read, to be joined or packed.
With `--shard-bytes` shards are so large: on a disk, files with a hole after their rows, which nothing reads.

With `--ray` Ray Data goes through as many read tasks that read nothing, a model that does nothing and a writer of
nothing, on a cluster of one CPU: what the driver computes then is Ray's own part of its work.

With `--compute` a whole night of as many shards of ten sentences comes first, by a tiny translator on a cluster of two
nodes of one CPU. With `--compact` the night is also put there with an object for each shard, and packed, as before its
commit by the cluster and as after it by the driver alone. With `--nights` a table of so many nights is opened, of
which there is the log alone. Prints one JSON object.
"""

from __future__ import annotations

import gc
import io
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import tyro
from deltalake import DeltaTable
from ray.data import Datasink, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import Translator, TranslatorDecoding
from jobs.command import cli
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import commit, compaction, infer, query, tables, upkeep
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.reading.bundles import bundled
from pipelines.reading.datasource import ShardDatasource
from pipelines.reading.shards import list_shards
from pipelines.reading.units import SPAN, Part, Unit, units
from pipelines.staging import checks, contents, joining
from pipelines.staging.engine import DECODE_CPUS, WRITE_CPUS, write_packs
from pipelines.staging.pieces import Lineage, Piece, piece_name, table_schema
from pipelines.staging.sink import StageSink
from tests import tiny
from tests.servers import BUCKET, RayNode, S3Server

WORDS, ROWS = 6_000, 100
SENTENCES = b"ein Hund\n" * ROWS
DS, LATER = "2026-01-01", ("2026-01-02", "2026-01-03")
LEAST_SECONDS = 0.05
"""Of CPU; below, a step's growth is not fitted."""
AT_ONCE = 100
"""Nights of a table of years that one commit brings."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    shards: tuple[int, ...] = (1000,)
    """How many; of several numbers, one after another."""
    store: Literal["s3", "disk"] = "s3"
    """Where they lie: on a local S3 server, or on a disk."""
    processes: tuple[int, ...] = (2,)
    """For how many of them read tasks are made, one number after another."""
    shard_bytes: int = len(SENTENCES)
    """How large a shard is; more than its rows on a disk only."""
    ray: bool = False
    """Ray Data's own part, too: as many read tasks that do nothing."""
    compute: bool = False
    """A whole night, too."""
    compact: bool = False
    """A night with an object for each shard, too, which is packed and compacted."""
    nights: int = 0
    """A table of so many nights, too."""
    night_files: int = 100
    """How many files each of them has."""


@dataclass
class Steps:
    """What each step took."""

    requests: Callable[[], int]
    """How many the store has answered so far."""
    found: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, float]]:
        """Times what is done inside, which may add figures of its own."""
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory, see proc_pid_clear_refs(5)
        before, requests, wall, cpu = memory("VmRSS"), self.requests(), time.perf_counter(), time.process_time()
        more: dict[str, float] = {}
        yield more
        self.found[name] = {
            "seconds": round(time.perf_counter() - wall, 3),
            "cpu": round(time.process_time() - cpu, 3),
            "requests": self.requests() - requests,
            "peak_mib": round(memory("VmHWM")),
            "more_mib": round(memory("VmHWM") - before),
            **more,
        }


def memory(name: str) -> float:
    """MiB that this process holds now (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def main(options: Options) -> None:
    """Measures and prints.

    Raises:
        UsageError: shards are to be larger than what is put on an S3 server, or smaller than their rows.
    """
    if options.shard_bytes < len(SENTENCES) or (options.store == "s3" and options.shard_bytes > len(SENTENCES)):
        raise UsageError(f"`shard_bytes` is {options.shard_bytes}: at least {len(SENTENCES)}, and no more on S3")
    found: dict[int, Steps] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        store(options, scratch) as (root, requests),
        cluster(options, scratch),
    ):
        connection.start(quiet=True, cpus=1)
        for shards in options.shards:
            steps = found[shards] = Steps(requests)
            place = storage.join(root, str(shards))
            if options.compute:
                computed(shards, storage.join(place, "computed"), steps)
            night_of(shards, options, place, str(Path(scratch) / "model"), steps)
        if options.nights:
            years(options, storage.join(root, "years"), steps)
    told = [table(f"{shards} shards", steps.found) for shards, steps in found.items()]
    told += [table("growth", growth(found))] if len(found) > 1 else []
    print(f'{{"store": "{options.store}",\n' + ",\n".join(told) + "}")


def table(title: str, lines: Mapping[str, Mapping[str, float]]) -> str:
    """A member of the JSON object, a line for each step."""
    each = ",\n".join(f" {json.dumps(name)}: {json.dumps(figures)}" for name, figures in lines.items())
    return f"{json.dumps(title)}: {{\n{each}\n}}"


def growth(found: Mapping[int, Steps]) -> dict[str, dict[str, float]]:
    """By step, with which power of the number of shards its CPU and its requests grow; and of all steps together."""
    first, *_ = found.values()
    steps = {name: {shards: each.found[name] for shards, each in found.items()} for name in first.found}
    steps["all steps together"] = {
        shards: {what: sum(step[what] for step in each.found.values()) for what in ("cpu", "requests")}
        for shards, each in found.items()
    }
    return {name: fitted for name, figures in steps.items() if (fitted := _fitted(figures))}


def _fitted(figures: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    exponents = {}
    for what, least in (("cpu", LEAST_SECONDS), ("requests", 1)):
        points = [(shards, each[what]) for shards, each in figures.items() if each[what] >= least]
        if len(points) > 1:
            exponents[what] = round(float(np.polyfit(*np.log(points).T, 1)[0]), 2)
    return exponents


@contextmanager
def store(options: Options, scratch: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """An address to put things at, and how many requests it has answered: none of a disk."""
    if options.store == "disk":
        yield scratch, lambda: 0
        return
    server = S3Server(Path(scratch) / "s3").start()
    os.environ.update(server.env())
    try:
        yield f"s3://{BUCKET}", server.requests
    finally:
        server.kill()


@contextmanager
def cluster(options: Options, scratch: str) -> Iterator[None]:
    """Two nodes and a head without CPUs, or, where there is nothing to compute, none: one process is a cluster, too."""
    if not options.compute:
        yield
        return
    os.environ.update({**connection.LOCAL_CLUSTER, "RAY_AUTH_MODE": "disabled"})
    head = RayNode(Path(scratch) / "head", 0).start()
    nodes = [RayNode(Path(scratch) / f"node-{number}", 1, head.address) for number in range(2)]
    try:
        for node in nodes:
            node.start()
        os.environ["RAY_ADDRESS"] = head.address
        yield
    finally:
        ray.shutdown()
        for node in (*nodes, head):
            node.kill()


def computed(count: int, root: str, steps: Steps) -> None:
    """A night from its listing to its commit."""
    source = storage.join(root, "in")
    put(count, lambda number: storage.join(source, f"part-{number:07d}.txt"), b"ein Hund schl\xc3\xa4ft\n" * 10)
    inference = Inference.of(artifacts.read(tiny.write_translator(storage.join(root, "model"))))
    with steps.step("a night, computed") as figures:
        night = Night(list_shards(source), Partition.of(storage.join(root, "tables"), "translations", DS), inference)
        summary = infer.infer(night, Resources(), Tracker(""))
        assert (summary.ok, summary.shards_computed) == (10 * count, count)
        figures |= {"model_busy": summary.model_busy, "pieces": len(storage.list_files(night.folder))}


def night_of(count: int, options: Options, root: str, model: str, steps: Steps) -> None:
    """All steps, one after the other."""
    source = storage.join(root, "in")
    put(count, lambda number: storage.join(source, f"part-{number:07d}.txt"), SENTENCES)
    if options.shard_bytes > len(SENTENCES):
        for file in storage.list_files(source):
            os.truncate(file.uri, options.shard_bytes)
    with steps.step("list shards"):
        shards = list_shards(source)
    inference = Inference.of(artifacts.read(translator(model)))
    night = Night(shards, Partition.of(storage.join(root, "tables"), "translations", DS), inference)
    with steps.step("look for pieces, none there"):
        todo = checks.incomplete(shards, night.folder)
    assert len(todo) == count
    tasks = packed(night, options.processes, steps)
    if options.ray:
        with steps.step("Ray Data's own part") as figures:
            figures["tasks"] = nothing_done(tasks)
    with steps.step("group shards") as figures:
        grouped = units(shards)
        figures["units"] = len(grouped)
    content = one_piece(night, grouped[0])
    put(len(grouped), lambda number: storage.join(night.folder, whole_piece(grouped[number])), content)
    for again in ("", ", again"):
        with steps.step(f"look for pieces{again}"):
            assert not checks.incomplete(shards, night.folder)
        with steps.step(f"refuse shards that are gone{again}"):
            infer.check(night)
        if not again:
            with steps.step("look for what is to be joined"):
                assert not joining.join(joining.small_units(todo), night.folder)
        with steps.step(f"verify pieces{again}"):
            pieces = upkeep.renew(night.partition, checks.verify(shards, night.folder))
        told = {} if again else {(piece.file.name, piece.file.size): contents.Contents() for piece in pieces}
        with steps.step(f"count errors{again}"):
            assert not contents.told_of(pieces, told).errors
            assert not contents.total(pieces, told).errors
        with steps.step(f"commit{again}") as figures:
            version = commit.commit_night(night.partition, pieces, night.schema, {"run_id": "run"})
            figures["log_bytes"] = log_bytes(night.partition.table)
        assert (version is None) == bool(again)
        with steps.step(f"look for its files{again}"):
            checks.check_there(pieces, night.folder)
        with steps.step(f"open the table{again}"):
            DeltaTable(storage.absolute(night.partition.table))
        with steps.step(f"tidy{again}"):
            upkeep.tidy(night.partition.table, 168, ds=night.partition.ds)
    for ds in LATER:
        later = replace(night.partition, ds=ds)
        commit.commit_night(later, staged(later, len(grouped)), night.schema, {"run_id": "run"})
    with steps.step("open the table with three nights") as figures:
        DeltaTable(storage.absolute(night.partition.table))
        figures["log_bytes"] = log_bytes(night.partition.table)
    if options.compact:
        apart = replace(night, partition=Partition.of(storage.join(root, "apart"), "translations", DS))
        compacted(apart, steps)


def compacted(night: Night, steps: Steps) -> None:
    """A night with an object for each shard, put there as copies of one."""
    alone = [Unit.of([shard]) for shard in night.shards]
    content = one_piece(night, alone[0])
    put(len(alone), lambda number: storage.join(night.folder, whole_piece(alone[number])), content)
    pieces = checks.verify(night.shards, night.folder)
    with steps.step("pack before a commit") as figures:
        files, made = joining.files(pieces, write_packs, put_together=True)
        figures["files"] = len(files)
    for name, _ in made:
        storage.delete(storage.join(night.folder, name), storage.anything)
    commit.commit_night(night.partition, pieces, night.schema, {"run_id": "run"})
    with steps.step("compact") as figures:
        (done,) = compaction.compact(night.partition.table, DS).nights
        figures |= {"files": done.files, "files_after": done.files_after, "rows": done.rows}
    with steps.step("the same night, compacted"):
        assert not checks.incomplete(night.shards, night.folder)
        infer.check(night)
        files, _ = joining.files(checks.verify(night.shards, night.folder), joining.write)
        assert not contents.total(files).errors
        assert commit.commit_night(night.partition, files, night.schema, {}) is None


def log_bytes(uri: str) -> int:
    """Of a table's log, its checkpoints and all."""
    return sum(file.size for file in storage.list_files(storage.join(uri, tables.LOG)))


def years(options: Options, root: str, steps: Steps) -> None:
    """A table of many nights, opened, listed, asked for one night until a file would be read, and tidied of one."""
    days = [(date(2024, 1, 1) + timedelta(number)).isoformat() for number in range(options.nights)]
    partition = Partition.of(root, "translations", days[0])
    schema = table_schema(HYBRIDS["translator"].payload_schema)
    files = options.night_files
    commit.commit_night(partition, staged(partition, files), schema, {"run_id": "run"})
    for first in range(1, len(days), AT_ONCE):
        nights = [replace(partition, ds=ds) for ds in days[first : first + AT_ONCE]]
        actions = [action for night in nights for action in commit._add_actions(night, staged(night, files), 0)]
        log = DeltaTable(partition.table)
        log.create_write_transaction(actions, "append", log.schema(), ["ds"])
    DeltaTable(partition.table).create_checkpoint()
    with steps.step("open a table of years") as figures:
        whole = tables.open_table(partition.table)
        assert whole is not None
        figures |= {"files": files * len(days), "log_bytes": log_bytes(partition.table)}
    with steps.step("list its nights"):
        assert len(tables.nights(whole)) == len(days)
    del whole
    with (
        steps.step("open it for a query of one night"),
        query.open_views(root, ["translations"], dates=(days[-1], days[-1])),
    ):
        pass
    with steps.step("tidy one night of it"):
        upkeep.tidy(partition.table, 168, ds=days[-1])


def staged(partition: Partition, files: int) -> list[Piece]:
    """Files of a night that are not there."""
    names = [piece_name(f"unit-of-38-{number:016x}", 0, SPAN, 380, end=True) for number in range(files)]
    return [
        Piece(storage.FileInfo(storage.join(partition.folder, "0" * 12, name), 40_000, ""), 0, SPAN, True, 0, 380, 1)
        for name in names
    ]


def put(count: int, name: Callable[[int], str], content: bytes) -> None:
    """Many objects of one content."""
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(lambda number: storage.write_bytes(name(number), content, storage.anything), range(count)):
            pass


def translator(place: str) -> str:
    """An artifact with the recipe's vocabulary."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(WORDS)]
    config = TranslatorConfig(vocab_size=WORDS, embedding_size=16, hidden_size=32, attention_size=16)
    assets = Translator.learn_assets(config, [f"de\t{' '.join(draw.choices(words, k=12))}" for _ in range(WORDS)])
    artifacts.write(
        artifacts.make(Translator(config, assets), TranslatorDecoding(), {}, "A benchmark's.\n"),
        place,
        storage.anything,
    )
    return place


def packed(night: Night, processes: Sequence[int], steps: Steps) -> int:
    """What Ray Data sends: read tasks, each once, what they refer to, and the sink, with each write task. Returns how
    many read tasks there are for the last number of processes."""
    decode = night.inference.decode()
    parts = checks.incomplete(night.shards, night.folder)
    for count in processes:
        with steps.step(f"read tasks for {count} processes") as figures:
            bundles = bundled(parts, count)
            tasks = ShardDatasource(bundles, decode.options(1), decode).get_read_tasks(1)
            figures |= {"bytes": sum(len(ray.cloudpickle.dumps(task)) for task in tasks), "tasks": len(tasks)}
        with steps.step(f"what read tasks for {count} processes refer to") as figures:
            figures["bytes"] = sum(len(ray.cloudpickle.dumps(tuple(bundle))) for bundle in bundles)
            figures["units_cut"] = cut_units(bundles)
            figures["largest"] = max(sum(part.shard.size for part in bundle) for bundle in bundles)
    with steps.step("sink") as figures:
        sink = ray.cloudpickle.dumps(StageSink(night.folder, night.schema, "scale"))
        figures["bytes"] = len(sink)
    with steps.step("sink, unpacked in each task"):
        ray.cloudpickle.loads(sink)
    return len(tasks)


class Nothing(Datasource):
    """So many read tasks of a row each."""

    def __init__(self, tasks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int:
        """Bytes."""
        return 8 * self._tasks

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """All of them."""
        metadata = BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
        return [ReadTask(_a_row, metadata) for _ in range(self._tasks)]


def _a_row() -> Iterator[pa.Table]:
    yield pa.table({"row": [0]})


class Same:
    """A model that does nothing."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        """These rows."""
        return rows


class Nowhere(Datasink[None]):
    """Writes nothing."""

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        """Takes them."""
        for _ in blocks:
            pass


def nothing_done(tasks: int) -> int:
    """Ray Data goes through so many of them, as through a night's."""
    read = ray.data.read_datasource(Nothing(tasks), override_num_blocks=tasks, num_cpus=DECODE_CPUS)
    same = read.map_batches(Same, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS, concurrency=1)
    same.write_datasink(Nowhere(), ray_remote_args={"num_cpus": WRITE_CPUS}, concurrency=1)
    return tasks


def cut_units(bundles: Sequence[Sequence[Part]]) -> int:
    """Units that several tasks read."""
    readers = Counter(unit for bundle in bundles for unit in {part.unit for part in bundle})
    return sum(tasks > 1 for tasks in readers.values())


def whole_piece(unit: Unit) -> str:
    """The name of a piece with all rows of a unit."""
    shards = len(unit.shards)
    return piece_name(unit.key, 0, SPAN * (shards - 1) + ROWS, ROWS * shards, end=True)


def one_piece(night: Night, unit: Unit) -> bytes:
    """A piece with all rows of a unit, as the sink writes it."""
    lineage = Lineage(night.inference.artifact.model, "1", night.fingerprint, "run")
    row = {"status": "ok", "translation": "a dog", **vars(lineage)}
    rows = [
        {**row, "shard": shard.uri, "index": i, "sample_id": f"{shard.name}:{i}", "last": i == ROWS - 1}
        for shard in unit.shards
        for i in range(ROWS)
    ]
    buffer = io.BytesIO()
    written = pa.Table.from_pylist(rows, schema=night.schema)
    pq.write_table(contents.Contents.of(written).noted(written), buffer, compression="zstd")
    return buffer.getvalue()


if __name__ == "__main__":
    gc.set_threshold(cli.SELDOM)  # as of a night's driver
    main(tyro.cli(Options, description=__doc__))
