"""Batch captioning end to end: photographs in tars on S3 → a committed table, and memory as data grows.

    python -m tests.benchmarks captioning [--full]
    python -m tests.benchmarks.captioning --input FOLDER_OF_TARS --model ARTIFACT
    python -m tests.benchmarks.captioning --others

The pipeline runs on some shards and on `GROWTH` copies of them, in turn; the slope between the two is its throughput,
so that start-up (actors, imports, weights) is excluded; a night of one shard goes before both, so that neither waits
for what is loaded once. Medians of `NIGHTS` of each count: a peak of memory is the most that was seen in a second. It
is compared with the best of two bare loops of decode + model with the same batches and allocator: one process with a
thread for each core, and a process of one thread for each core; on a GPU with the first. These run
before and after the pipeline, and their mean counts, so that a drifting machine shows in both. They read a disk: nobody
is faster than they are, and the pipeline's store, a local S3 server, takes its share of the same cores.

With `--full` the whole `hybrid infer` is timed, in turn with that of the commit that goals were set against and with
other people's programs that caption the same objects by the same model into Parquet: webdataset and torch's
DataLoader, Ray Data alone, Daft, which reads no tars and has lone objects. Each is a script in `scripts/`, which says
what settings were tried, and has the best of them. All have the same batches and allocator, and the slope between two
sizes counts. A program must have written a row for each photograph, and most of its captions must be those of our
table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import torch
import tyro

from hybrid_models.captioner.captioner import Captioner, CaptionerDecoding
from hybrid_models.captioner.config import CaptionerConfig
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.connection import worker_env
from pipelines.cluster.resources import Compute, Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import infer, query
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import Shard, list_shards
from pipelines.staging.actors import Predictor
from pipelines.staging.pieces import Lineage
from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import STEADY, Row, device, in_turn, sizes, turn
from tests.servers import BUCKET, S3Server

GROWTH = 16
NIGHTS = {True: 3, False: 2}
"""`full` → how many of each count; 16,000 photographs take two slow cores three minutes."""
BATCH = sizes().captioning
ROUNDS = 2
CORES = os.cpu_count() or 1
IMAGES = max(1000, CORES * BATCH)
SHARD_IMAGES = IMAGES // max(4, CORES)
"""So that each core has a shard, of a batch at the least where there are four cores or more."""
DECODING = CaptionerDecoding(max_length=12)
"""Captions have at most as many tokens as a trained captioner's."""
DS = "2026-01-01"
SERVER = "weed"
"""How the S3 server's process is called."""
SCRIPTS = Path(__file__).parent / "scripts"
OTHERS: dict[str, tuple[str, str | None]] = {
    "torch's DataLoader, webdataset": ("captioning_dataloader.py", "webdataset"),
    "Ray Data alone": ("captioning_ray_data.py", None),
    "Daft, of lone objects": ("captioning_daft.py", "daft"),
}
"""Other people's programs → the script that has them caption, and the environment that it needs."""
EARLIER = f"commit {peers.BASELINE}"
Check = Callable[[int, Path], None]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    input: str = ""
    """Folder of tar shards of photographs; made up ones (224 x 224 JPEG) by default."""
    model: str = ""
    """A captioner's artifact; an untrained EfficientNet-Lite0 + LSTM with attention by default."""
    full: bool = False
    """Other programs and the commit that goals were set against, too."""
    others: bool = False
    """These alone, beside the whole command."""
    rounds: int = ROUNDS
    """How often each of these runs at both sizes."""
    part: tuple[int, int] | None = None
    """Internal: run the bare loop over this one of so many parts of the shards, and print its images per second."""


def untrained() -> Captioner:
    """The shape of `captioner-flickr8k`."""
    config = CaptionerConfig(freeze_encoder=True)
    assets = Captioner.learn_assets(config, tiny.sentences(2000))
    torch.manual_seed(0)
    hybrid = Captioner(config, assets).eval()
    with torch.no_grad():  # words are as likely as each other at first: rounding would choose among them
        hybrid.decoder.embedding.weight.mul_(8)
    return hybrid


def make_model(uri: str) -> None:
    """An untrained captioner, as an artifact."""
    files = artifacts.make(untrained(), DECODING, {}, "A benchmark's model.\n")
    artifacts.write(peers.for_both(files), uri)


def make_photos(folder: Path, count: int) -> None:
    """Shards of made-up photographs."""
    for number in range(0, count, SHARD_IMAGES):
        rows = range(number, min(count, number + SHARD_IMAGES))
        members = [(f"{i:06d}.jpg", tiny.jpeg(i, size=224)) for i in rows]
        storage.write_bytes(str(folder / f"photos-{number:06d}.tar"), tiny.tar(members), storage.anything)


def copies(folder: Path, target: str, count: int) -> str:
    """So many copies of each shard of a folder, at an address; returns that."""
    for shard in folder.iterdir():
        for number in range(count):
            storage.write_bytes(storage.join(target, f"{number}-{shard.name}"), shard.read_bytes(), storage.anything)
    return target


def take(source: str, folder: Path, count: int) -> None:
    """Repacks the first `count` photographs of some tar shards into shards of one size."""
    members: list[tuple[str, bytes]] = []
    for shard in list_shards(source):
        for block in read_blocks(shard, ReadOptions()):
            rows = block.to_pylist()
            members += [(f"{row['sample_id']}.jpg", row["media"]) for row in rows if row["media"]]
    for number in range(0, min(count, len(members)), SHARD_IMAGES):
        storage.write_bytes(
            str(folder / f"photos-{number:06d}.tar"),
            tiny.tar(members[number : min(count, number + SHARD_IMAGES)]),
            storage.anything,
        )


@contextmanager
def store(folder: Path) -> Iterator[str]:
    """A local S3 server, which this process and those that it starts reach; yields the address of its bucket."""
    server = S3Server(folder).start()
    os.environ.update(server.env())
    try:
        yield f"s3://{BUCKET}"
    finally:
        server.kill()


# ---- the bare loop -----------------------------------------------------------------------------------------------
def bare_loop(shards: list[Shard], artifact: artifacts.Artifact, threads: int) -> float:
    """Images per second of read → decode → predict, one after the other, after one batch of warm-up."""
    inference = Inference.of(artifact)
    decode = inference.decode()
    predictor = Predictor(inference, Compute(BATCH, threads, gpu=device().type == "cuda"), Lineage("", "", "", ""))
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
    peak, shared = [0.0], shared_memory()

    def look() -> None:
        peak[0] = max(peak[0], own_memory() + shared_memory() - shared)

    with each_second(look):
        yield peak


@contextmanager
def each_second(look: Callable[[], None]) -> Iterator[None]:
    """Looks by a thread of its own until the end of the block."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def own_memory() -> float:
    """MiB of this process and its descendants but the S3 server, without shared memory and mapped files. The kernel
    counts them as they come and go; for a proportional set size it walks all pages, which takes a tenth of two cores if
    asked each second.
    """
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            info = process.memory_info()
            total += 0 if process.name() == SERVER else info.rss - info.shared
        except psutil.Error:
            continue
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


# ---- whole commands, beside others -------------------------------------------------------------------------------
def slope(folders: dict[int, str], scratch: Path, run: Callable[[str, Path], None], check: Check) -> float:
    """Images per second between two sizes, start-up excluded.

    Args:
        folders: addresses of so many images each.
        scratch: for what is written.
        run: what is timed; reads a folder, writes into an empty one.
        check: of so many images, what was written; not timed.
    """
    seconds = {}
    for images, folder in folders.items():
        with tempfile.TemporaryDirectory(dir=scratch) as written:
            started = time.perf_counter()
            run(folder, Path(written))
            seconds[images] = time.perf_counter() - started
            check(images, Path(written))
    (few, many) = sorted(folders)
    return (many - few) / (seconds[many] - seconds[few])


def command(tree: Path, model: str, folder: str, tables: Path) -> None:
    """A night by this checkout's `hybrid infer`."""
    argv = ["captions", "--input", folder, "--tables", str(tables), "--ds", DS, "--model", model]
    argv += ["--mlflow", f"sqlite:///{tables}/mlflow.db", "--resources.batch-size", str(BATCH)]
    peers.finish([sys.executable, "-m", "jobs.infer", *argv], tree, peers.clean(PYTHONPATH=str(tree)))


def other(script: str, peer: str | None, model: str, folder: str, written: Path) -> None:
    """The same captions by somebody else's program."""
    question = {"photographs": folder, "model": model, "batch": BATCH, "written": str(written)}
    peers.answer(SCRIPTS / script, question, peer)


def table(tables: Path) -> dict[str, str]:
    """A night's captions by their photographs' ids."""
    found = query.query("SELECT sample_id, caption FROM captions", str(tables), ["captions"])
    return dict(zip(*found.to_pydict().values(), strict=True))


def check_captions(ours: Mapping[str, str], images: int, written: Path) -> None:
    """Of what another program has written.

    Raises:
        AssertionError: there is not one row for each photograph and copy of it, or most captions are not ours.
    """
    rows = pa.dataset.dataset(written, format="parquet").to_table().to_pylist()
    copied, left = divmod(images, len(ours))
    assert not left
    assert Counter(row["sample_id"] for row in rows) == dict.fromkeys(ours, copied), f"{len(rows)} rows"
    same = sum(row["caption"] == ours[row["sample_id"]] for row in rows)
    assert same > images / 2, f"of {images} captions {same} are ours"


def unpack(folder: Path, target: str, count: int) -> str:
    """So many copies of a folder's photographs as lone objects at an address; returns that."""
    lone = {}
    for shard in folder.iterdir():
        with tarfile.open(shard) as archive:
            for member in archive:
                held = archive.extractfile(member)
                assert held is not None
                lone[f"{shard.stem}/{member.name}"] = held.read()
    named = [(storage.join(target, str(number), name), data) for number in range(count) for name, data in lone.items()]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda one: storage.write_bytes(*one), named))
    return target


def beside_others(photos: Path, model: str, scratch: Path, lake: str, rounds: int = ROUNDS) -> list[Row]:
    """`hybrid infer` beside other programs and that of an earlier commit, on the photographs and on four copies."""
    few = copies(photos, f"{lake}/few", 1)
    command(tiny.ROOT, model, few, scratch / "first-tables")
    ours = table(scratch / "first-tables")
    folders = {len(ours): few, 4 * len(ours): copies(photos, f"{lake}/many", 4)}
    lone = {count * len(ours): unpack(photos, f"{lake}/lone-{count}", count) for count in (1, 4)}
    checked, unchecked = partial(check_captions, ours), lambda *_: None
    measures = {"ours": partial(slope, folders, scratch, partial(command, tiny.ROOT, model), unchecked)}
    for name, (script, peer) in OTHERS.items():
        if peer:
            peers.environment(peer)  # is not what is timed
        given = lone if peer == "daft" else folders
        measures[name] = partial(slope, given, scratch, partial(other, script, peer, model), checked)
    with peers.checkout(peers.BASELINE) as before_us:
        run = partial(command, before_us, model)
        found = in_turn(rounds, measures | {EARLIER: partial(slope, folders, scratch, run, unchecked)})
    rate, goals = found.pop("ours"), {EARLIER: 1.5}
    return [
        Row("`hybrid infer captions`", rate, "images/s", reference, name, goal_times=goals.get(name, 1.15))
        for name, reference in found.items()
    ]


# ---- the line ----------------------------------------------------------------------------------------------------
def prepared(scratch: Path, source: str, model: str) -> tuple[Path, str]:
    """A folder of shards, and a model; made up where none is given."""
    photos = scratch / "photos"
    if source:
        take(source, photos, IMAGES)
    else:
        make_photos(photos, IMAGES)
    if not model:
        model = str(scratch / "model")
        make_model(model)
    return photos, model


def rows(full: bool, scratch: Path, source: str = "", model: str = "") -> list[Row]:
    """Throughput and memory."""
    photos, model = prepared(scratch, source, model)
    with store(scratch / "s3") as lake:
        made = beside_loops(photos, model, scratch, lake, NIGHTS[full])
        return [*made, *(beside_others(photos, model, scratch, lake) if full else [])]


def beside_loops(photos: Path, model: str, scratch: Path, lake: str, count: int) -> list[Row]:
    """The pipeline beside the best bare loop, and its memory, by so many nights of each size."""
    small, grown = copies(photos, f"{lake}/small", 1), copies(photos, f"{lake}/grown", GROWTH)
    counts = [1] if device().type == "cuda" else sorted({1, CORES})
    before = {processes: loops(photos, model, processes) for processes in counts}
    artifact = artifacts.read(model)
    with connection.connect():
        night(list_shards(small)[:1], artifact, str(scratch / "first"))
        (few, short, low), (many, long, high) = nights_of(small, grown, artifact, scratch, count)
    after = {processes: loops(photos, model, processes) for processes in counts}
    best = max((before[processes] + after[processes]) / 2 for processes in counts)
    rate = (many - few) / (long - short)
    return [
        Row("pipeline beside the best bare loop", rate, "images/s", best, "loop of decode + model", goal_times=0.97),
        Row(f"{few:,} images on a cluster that runs, actors' start included", few / short, "images/s"),
        Row(f"peak memory of a night of {many:,} images", high, "MiB", low, f"of {few:,}", goal_times=STEADY),
    ]


def nights_of(small: str, grown: str, artifact: artifacts.Artifact, scratch: Path, count: int) -> list[list[float]]:
    """What `night` tells of each of two sizes, medians of so many nights in turn."""
    places = {"small": small, "grown": grown}
    found: dict[str, list[list[float]]] = {size: [] for size in places}
    for number in range(count):
        for size in turn(number, list(places)):
            found[size].append(night(list_shards(places[size]), artifact, str(scratch / f"{size}-{number}")))
    return [[statistics.median(values) for values in zip(*nights, strict=True)] for nights in found.values()]


def main(options: Options) -> None:
    """The command."""
    if options.part:
        part, parts = options.part
        shards = list_shards(options.input)[part::parts]
        print(bare_loop(shards, artifacts.read(options.model), CORES // parts))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if options.others:
            given = prepared(Path(scratch), options.input, options.model)
            with store(Path(scratch) / "s3") as lake:
                found = beside_others(*given, Path(scratch), lake, options.rounds)
        else:
            found = rows(options.full, Path(scratch), options.input, options.model)
        print(json.dumps([asdict(row) for row in found], indent=2))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
