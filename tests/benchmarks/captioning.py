"""Batch captioning end to end against a bare loop of decode + model, and memory as data grows.

    python -m tests.benchmarks.captioning [--input FOLDER_OF_TARS] [--model ARTIFACT] [--images 4000]

The pipeline runs on the images and on eight copies of them; the slope between the two is its throughput, so start-up
(actors, imports, weights) is excluded, and what is left at zero images is reported as start-up. The bare loop uses the
same decoding, model, batch size and allocator in one process with a thread for each core. Before and after the pipeline
it runs once each; the mean of the two is compared, so that a drifting machine shows. Prints one JSON object.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
import tyro

from hybrid_models.captioner.captioner import Captioner, CaptionerConfig, CaptionerDecoding
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.connection import ALLOCATOR
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

GROWTH = 8
SHARD_IMAGES = 250
BATCH = 32


@dataclass(frozen=True)
class Options:
    """What to measure."""

    input: str = ""
    """Folder of tar shards of photographs; made up ones (224 x 224 JPEG) by default."""
    model: str = ""
    """A captioner's artifact; an untrained EfficientNet-Lite0 + LSTM with attention by default."""
    images: int = 4000
    """How many images."""
    only_loop: str = ""
    """Internal: run the bare loop over the shards of this folder and print its images per second."""


def make_model(uri: str) -> None:
    """The shape of `captioner-flickr8k`, untrained; captions of at most 12 tokens, as a trained one writes them."""
    config = CaptionerConfig(freeze_encoder=True)
    assets = Captioner.learn_assets(config, tiny.sentences(2000))
    torch.manual_seed(0)
    hybrid = Captioner(config, assets).eval()
    artifacts.write(artifacts.make(hybrid, CaptionerDecoding(max_length=12), {}, "A benchmark's model.\n"), uri)


def make_photos(folder: Path, count: int) -> None:
    """Shards of made-up photographs."""
    for number in range(0, count, SHARD_IMAGES):
        rows = range(number, min(count, number + SHARD_IMAGES))
        members = [(f"{i:06d}.jpg", tiny.jpeg(i, size=224)) for i in rows]
        storage.write_bytes(str(folder / f"photos-{number:06d}.tar"), tiny.tar(members))


def copies(folder: Path, target: Path) -> None:
    """`GROWTH` copies of each shard of a folder."""
    for shard in folder.iterdir():
        for number in range(GROWTH):
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
def bare_loop(shards: list[Shard], artifact: artifacts.Artifact) -> float:
    """Images per second of read → decode → predict, one after the other, after one batch of warm-up."""
    inference = Inference.of(artifact)
    decode = inference.decode()
    lineage = Lineage("", "", "", "")
    predictor = Predictor(inference, Compute(BATCH, os.cpu_count() or 1, False), lineage)
    warm = next(read_blocks(shards[0], ReadOptions())).slice(0, BATCH)
    predictor(decode(warm))
    started, count = time.perf_counter(), 0
    for shard in shards:
        for block in read_blocks(shard, ReadOptions()):
            for start in range(0, len(block), BATCH):
                rows: pa.Table = predictor(decode(block.slice(start, BATCH)))
                count += len(rows)
    return count / (time.perf_counter() - started)


def loop_process(folder: str, model: str) -> float:
    """The bare loop in a process of its own, with the allocator's settings."""
    command = [sys.executable, "-m", "tests.benchmarks.captioning", "--only-loop", folder, "--model", model]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


# ---- the pipeline ------------------------------------------------------------------------------------------------
@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Highest proportional set size of this process and all its descendants, in MiB, sampled every second."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(1):
            peak[0] = max(peak[0], tree_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def tree_memory() -> float:
    """MiB of this process and its descendants; shared pages count once."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


def night(shards: list[Shard], artifact: artifacts.Artifact, tables: str) -> dict[str, Any]:
    """One night; its wall seconds and peak memory."""
    job = Night(shards, Partition.of(tables, artifact.table, "2026-01-01"), Inference.of(artifact))
    with peak_memory() as peak:
        started = time.perf_counter()
        summary = infer.infer(job, Resources(batch_size=BATCH), Tracker(f"sqlite:///{tables}/none.db"))
        seconds = time.perf_counter() - started
    return {"rows": summary.rows, "seconds": seconds, "peak_mib": peak[0], "stages": summary.seconds}


def measure(folder: str, grown: str, model: str) -> dict[str, Any]:
    """All figures."""
    artifact = artifacts.read(model)
    before = loop_process(folder, model)
    with connection.connect(), tempfile.TemporaryDirectory() as scratch:
        small = night(list_shards(folder), artifact, f"{scratch}/small")
        large = night(list_shards(grown), artifact, f"{scratch}/large")
    after = loop_process(folder, model)
    slope = (large["rows"] - small["rows"]) / (large["seconds"] - small["seconds"])
    loop = float(np.mean([before, after]))
    return {
        "images": [small["rows"], large["rows"]],
        "bare_loop_images_per_second": [round(before, 1), round(after, 1)],
        "pipeline_images_per_second": round(slope, 1),
        "pipeline_to_bare_loop": round(slope / loop, 3),
        "start_up_seconds": round(small["seconds"] - small["rows"] / slope, 1),
        "end_to_end_images_per_second": round(small["rows"] / small["seconds"], 1),
        "peak_mib": [round(small["peak_mib"]), round(large["peak_mib"])],
        "peak_memory_growth": round(large["peak_mib"] / small["peak_mib"], 3),
        "stages": [small["stages"], large["stages"]],
        "cpu": f"{os.cpu_count()} cores, torch {torch.__version__}",
    }


def main() -> None:
    """The command."""
    options = tyro.cli(Options, description=__doc__)
    if options.only_loop:
        print(bare_loop(list_shards(options.only_loop), artifacts.read(options.model)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        photos, grown, model = Path(scratch) / "photos", Path(scratch) / "grown", options.model or f"{scratch}/model"
        if options.input:
            take(options.input, photos, options.images)
        else:
            make_photos(photos, options.images)
        if not options.model:
            make_model(model)
        copies(photos, grown)
        print(json.dumps(measure(str(photos), str(grown), model), indent=2))


if __name__ == "__main__":
    main()
