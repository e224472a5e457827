"""Batch captioning end to end: photographs in tars → a committed table, and memory as data grows.

    python -m tests.benchmarks captioning [--full]
    python -m tests.benchmarks.captioning --input FOLDER_OF_TARS --model ARTIFACT

The pipeline runs on some shards and on `GROWTH` copies of them; the slope between the two is its throughput, so that
start-up (actors, imports, weights) is excluded; a night of one shard goes before both, so that neither waits for what
is loaded once. It is compared with the best of two bare loops of decode + model with the same batches and allocator:
one process with a thread for each core, and a process of one thread for each core. These run before and after the
pipeline, and their mean counts, so that a drifting machine shows in both.

With `--full` the `hybrid infer` of the commit that goals were set against is timed in turn with ours, on the same
shards and the same model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import torch
import tyro

from hybrid_models.captioner.captioner import Captioner, CaptionerConfig, CaptionerDecoding
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.connection import worker_env
from pipelines.cluster.resources import Compute, Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import infer
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import Shard, list_shards
from pipelines.staging.actors import Predictor
from pipelines.staging.pieces import Lineage
from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, in_turn

IMAGES = 1000
GROWTH = 16
BATCH = 32
CORES = os.cpu_count() or 1
SHARD_IMAGES = IMAGES // max(4, CORES)
"""So that each core has a shard."""
DS = "2026-01-01"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    input: str = ""
    """Folder of tar shards of photographs; made up ones (224 x 224 JPEG) by default."""
    model: str = ""
    """A captioner's artifact; an untrained EfficientNet-Lite0 + LSTM with attention by default."""
    full: bool = False
    """The commit that goals were set against, too."""
    part: tuple[int, int] | None = None
    """Internal: run the bare loop over this one of so many parts of the shards, and print its images per second."""


def make_model(uri: str) -> None:
    """The shape of `captioner-flickr8k`, untrained; captions of at most 12 tokens, as a trained one writes them."""
    config = CaptionerConfig(freeze_encoder=True)
    assets = Captioner.learn_assets(config, tiny.sentences(2000))
    torch.manual_seed(0)
    hybrid = Captioner(config, assets).eval()
    files = artifacts.make(hybrid, CaptionerDecoding(max_length=12), {}, "A benchmark's model.\n")
    artifacts.write(peers.for_both(files), uri)


def make_photos(folder: Path, count: int) -> None:
    """Shards of made-up photographs."""
    for number in range(0, count, SHARD_IMAGES):
        rows = range(number, min(count, number + SHARD_IMAGES))
        members = [(f"{i:06d}.jpg", tiny.jpeg(i, size=224)) for i in rows]
        storage.write_bytes(str(folder / f"photos-{number:06d}.tar"), tiny.tar(members))


def copies(folder: Path, target: Path, count: int) -> None:
    """So many copies of each shard of a folder."""
    for shard in folder.iterdir():
        for number in range(count):
            storage.write_bytes(str(target / f"{number}-{shard.name}"), shard.read_bytes())


def take(source: str, folder: Path, count: int) -> None:
    """Repacks the first `count` photographs of some tar shards into shards of one size."""
    members: list[tuple[str, bytes]] = []
    for shard in list_shards(source):
        for block in read_blocks(shard, ReadOptions()):
            rows = block.to_pylist()
            members += [(f"{row['sample_id']}.jpg", row["media"]) for row in rows if row["media"]]
    for number in range(0, min(count, len(members)), SHARD_IMAGES):
        storage.write_bytes(
            str(folder / f"photos-{number:06d}.tar"), tiny.tar(members[number : min(count, number + SHARD_IMAGES)])
        )


# ---- the bare loop -----------------------------------------------------------------------------------------------
def bare_loop(shards: list[Shard], artifact: artifacts.Artifact, threads: int) -> float:
    """Images per second of read → decode → predict, one after the other, after one batch of warm-up."""
    inference = Inference.of(artifact)
    decode = inference.decode()
    predictor = Predictor(inference, Compute(BATCH, threads, False), Lineage("", "", "", ""))
    warm = next(read_blocks(shards[0], ReadOptions())).slice(0, BATCH)
    predictor(decode(warm))
    started, count = time.perf_counter(), 0
    for shard in shards:
        for block in read_blocks(shard, ReadOptions()):
            for start in range(0, len(block), BATCH):
                rows: pa.Table = predictor(decode(block.slice(start, BATCH)))
                count += len(rows)
    return count / (time.perf_counter() - started)


def loops(folder: Path, model: str, processes: int) -> float:
    """Images per second of so many bare loops side by side, each with its share of shards and cores."""
    command = [sys.executable, "-m", "tests.benchmarks.captioning", "--input", str(folder), "--model", model]
    started = [
        subprocess.Popen(
            [*command, "--part", str(part), str(processes)], env=peers.clean(**worker_env()), stdout=subprocess.PIPE,
            text=True, cwd=tiny.ROOT,
        )
        for part in range(processes)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a bare loop failed: see above")
    return sum(float(text.strip().splitlines()[-1]) for text in said)


# ---- the pipeline ------------------------------------------------------------------------------------------------
@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Most MiB that this process and all its descendants have for themselves, and in shared memory, by the second."""
    peak, done, shared = [0.0], threading.Event(), shared_memory()

    def watch() -> None:
        while not done.wait(1):
            peak[0] = max(peak[0], own_memory() + shared_memory() - shared)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def own_memory() -> float:
    """MiB of this process and its descendants, without shared memory and mapped files. The kernel counts them as they
    come and go; for a proportional set size it walks all pages, which takes a tenth of two cores if asked each second.
    """
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            info = process.memory_info()
        except psutil.Error:
            continue
        total += info.rss - info.shared
    return total / 2**20


def shared_memory() -> float:
    """MiB of the machine's shared memory, where Ray's object store lies."""
    return float(psutil.disk_usage("/dev/shm").used / 2**20)


def night(shards: list[Shard], artifact: artifacts.Artifact, tables: str) -> tuple[int, float, float]:
    """One night: its rows, wall seconds and peak MiB."""
    job = Night(shards, Partition.of(tables, artifact.table, DS), Inference.of(artifact))
    with peak_memory() as peak:
        started = time.perf_counter()
        summary = infer.infer(job, Resources(batch_size=BATCH), Tracker(f"sqlite:///{tables}/none.db"))
        seconds = time.perf_counter() - started
    return summary.rows, seconds, peak[0]


def command_rate(tree: Path, folders: dict[int, Path], model: str, scratch: Path) -> float:
    """Images per second of this checkout's `hybrid infer`: the slope between two sizes."""
    seconds = {}
    for images, folder in folders.items():
        with tempfile.TemporaryDirectory(dir=scratch) as tables:
            argv = ["captions", "--input", str(folder), "--tables", tables, "--ds", DS, "--model", model]
            argv += ["--mlflow", f"sqlite:///{tables}/mlflow.db", "--resources.batch-size", str(BATCH)]
            env = peers.clean(PYTHONPATH=str(tree))
            started = time.perf_counter()
            peers.finish([sys.executable, "-m", "jobs.infer", *argv], tree, env)
            seconds[images] = time.perf_counter() - started
    (few, many) = sorted(folders)
    return (many - few) / (seconds[many] - seconds[few])


# ---- the line ----------------------------------------------------------------------------------------------------
def rows(full: bool, scratch: Path, source: str = "", model: str = "") -> list[Row]:
    """Throughput and memory."""
    photos, grown = scratch / "photos", scratch / "grown"
    if source:
        take(source, photos, IMAGES)
    else:
        make_photos(photos, IMAGES)
    if not model:
        model = str(scratch / "model")
        make_model(model)
    copies(photos, grown, GROWTH)
    counts = sorted({1, CORES})
    before = {processes: loops(photos, model, processes) for processes in counts}
    artifact = artifacts.read(model)
    with connection.connect():
        night(list_shards(str(photos))[:1], artifact, str(scratch / "first"))
        few, short, low = night(list_shards(str(photos)), artifact, str(scratch / "small"))
        many, long, high = night(list_shards(str(grown)), artifact, str(scratch / "large"))
    after = {processes: loops(photos, model, processes) for processes in counts}
    best = max((before[processes] + after[processes]) / 2 for processes in counts)
    rate = (many - few) / (long - short)
    made = [
        Row("pipeline beside the best bare loop", rate, "images/s", best, "loop of decode + model", goal_times=0.97),
        Row(f"{few:,} images on a cluster that runs, actors' start included", few / short, "images/s"),
        Row(f"peak memory of a night of {many:,} images", high, "MiB", low, f"of {few:,}", goal_times=0.95),
    ]
    if full:
        middle = scratch / "middle"
        copies(photos, middle, 4)
        folders = {few: photos, 4 * few: middle}
        with peers.checkout(peers.BASELINE) as before_us:
            found = in_turn(
                2,
                {
                    "ours": lambda: command_rate(tiny.ROOT, folders, model, scratch),
                    "reference": lambda: command_rate(before_us, folders, model, scratch),
                },
            )
        against = f"commit {peers.BASELINE}"
        made.append(
            Row("`hybrid infer captions`", found["ours"], "images/s", found["reference"], against, goal_times=1.5)
        )
    return made


def main(options: Options) -> None:
    """The command."""
    if options.part:
        part, parts = options.part
        shards = list_shards(options.input)[part::parts]
        print(bare_loop(shards, artifacts.read(options.model), CORES // parts))
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = rows(options.full, Path(scratch), options.input, options.model)
        print(json.dumps([asdict(row) for row in found], indent=2))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
