"""Photographs and clips as they lie in an S3 store: lone objects beside tars, clips beside a bare PyAV loop.

    python -m tests.benchmarks reading [--full]
    python -m tests.benchmarks.reading [--photos TARS] [--clips FOLDER_OF_CLIPS]

Read and decoded, without a model: the same photographs (as they are, and enlarged) in tars and as lone objects; clips
as lone objects, and in tars, beside a bare PyAV loop over the same bytes in memory, which decodes from the start to the
last frame that is wanted. A process for each core does each; all are started, and have read something, before the clock
is, and clips have as many parts in tars as in the loop. The server takes its share of the same cores.

A video of ten minutes, and of an hour, in windows, one after the other: its child decodes, as the bare loop does, which
has the video in memory.

With the model: `hybrid infer captions`' own loop over the same photographs as lone objects and in tars, and over clips,
as the slope between two sizes, so that start-up is excluded.

All of these are measured `ROUNDS` times in turn with `--full`, and medians are compared; once without.

A manifest of addresses, a tenth of which names nothing, becomes groups of objects in a process of its own, whose CPU
and memory are told: a hundred thousand, with `--full` a million.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import tyro
from PIL import Image

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.inputs import Cut, Visual
from pipelines import storage
from pipelines.cluster import connection
from pipelines.models import artifacts
from pipelines.models.artifacts import Artifact
from pipelines.places import InputOptions
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.manifests import list_input
from pipelines.reading.rows import read_blocks
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Shard, list_shards
from tests import tiny
from tests.benchmarks import captioning, peers
from tests.benchmarks.figures import STEADY, Row, in_turn
from tests.servers import BUCKET

VISUAL = Visual(224, 224, 8)
CORES = os.cpu_count() or 1
SHARD_PHOTOS = 250
PARTS = 4 * CORES
"""Of the clips, in tars and in the bare loop."""
WINDOW_SECONDS = 10.0

ROUNDS = 3
PHOTOS, COPIES = 1000, 10
"""How many photographs are read, how often each of the enlarged ones and each clip."""
CLIP_SECONDS, RATE = 7, 30
GRAIN = 3.8
"""Of a camera's sensor, anew in each frame, in steps of 255."""
SIDE = 1280
"""Pixels that photographs are enlarged to, as a web shop has them."""
FEW, MANY = 512, 4096
"""Photographs of the nights."""
FEW_CLIPS, MANY_CLIPS = 64, 256
"""Clips of theirs, of eight frames each."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    photos: str = ""
    """Tar shards of photographs; made up ones (224 x 224 JPEG) by default."""
    clips: str = ""
    """Folder of mp4 clips; a made up one of seven seconds by default."""
    manifest: str = ""
    """Internal: read this manifest, and print what it costs."""


@cache
def decoding() -> Decode:
    """As a captioner's nights decode."""
    config = CaptionerConfig(image_size=VISUAL.height, frames=VISUAL.frames)
    return Decode(Captioner.preprocess(config, Captioner.learn_assets(config, tiny.sentences(200))), Limits())


# ---- what is measured, each in a process of its own ----------------------------------------------------------------
def read_shard(shard: Shard) -> int:
    """Samples of one shard, through the decoding child, as a task of a night gets them."""
    decode = decoding()
    blocks = [block["error"] for block in guarded(shard, decode.options(), decode)]
    errors = [error for block in blocks for error in block.to_pylist()]
    assert errors.count(None) == len(errors), errors
    return len(errors)


def bare_loop(clips: Sequence[bytes]) -> int:
    """The wanted frames of some clips, as a script would get them."""
    for clip in clips:
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            wanted = list(VISUAL.positions(stream.frames))
            frames: list[np.ndarray] = []
            for index, frame in enumerate(container.decode(stream)):
                while len(frames) < len(wanted) and wanted[len(frames)] <= index:
                    small = frame.reformat(VISUAL.width, VISUAL.height, "rgb24", interpolation="BICUBIC")
                    frames.append(small.to_ndarray())
                if len(frames) == len(wanted):
                    break
            np.stack(frames)
    return len(clips)


def read_windows(first: Shard, shard: Shard) -> tuple[float, float]:
    """Windows a second of a video, and the most MiB of the child that decodes it, which has read another one before;
    called in a process of its own."""
    read_shard(first)
    decode = replace(decoding(), cut=Cut(WINDOW_SECONDS, WINDOW_SECONDS))
    started, count = time.perf_counter(), 0
    for block in guarded(shard, decode.options(), decode):
        assert block["error"].null_count == len(block), block["error"]
        count += len(block)
    seconds = time.perf_counter() - started
    (child,) = psutil.Process().children()
    kept = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
    return count / seconds, int(kept["VmHWM"].split()[0]) / 1024


def bare_windows(video: bytes) -> float:
    """Windows a second, as a script would get them that decodes on and on."""
    started, window, windows = time.perf_counter(), list[np.ndarray](), 0
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        every = int(RATE * WINDOW_SECONDS)
        wanted = set(VISUAL.positions(every))
        for index, frame in enumerate(container.decode(stream)):
            if index % every in wanted:
                small = frame.reformat(VISUAL.width, VISUAL.height, "rgb24", interpolation="BICUBIC")
                window.append(small.to_ndarray())
            if len(window) == len(wanted):
                windows += len(np.stack(window)) > 0
                window = []
    return windows / (time.perf_counter() - started)


def rate(pool: ProcessPoolExecutor, work: Callable[[Any], int], parts: Sequence[Any]) -> float:
    """Samples a second."""
    started = time.perf_counter()
    done = sum(pool.map(work, parts))
    return done / (time.perf_counter() - started)


def night_rate(folders: Mapping[int, str], artifact: Artifact, scratch: Path) -> float:
    """Photographs or clips a second of a night with a model, the slope between two sizes."""
    seconds = {}
    for count, folder in folders.items():
        with tempfile.TemporaryDirectory(dir=scratch) as tables:
            _, seconds[count], _ = captioning.night(list_shards(folder), artifact, tables)
    few, many = sorted(folders)
    return (many - few) / (seconds[many] - seconds[few])


def manifest_cost(uri: str) -> tuple[float, float]:
    """CPU seconds and peak MiB of grouping what a manifest names; called in a process of its own."""
    shards = list_input([uri], InputOptions(uri_column="photo")).shards
    assert shards
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


# ---- data ----------------------------------------------------------------------------------------------------------
def photographs(source: str, count: int) -> list[bytes]:
    """JPEGs."""
    if not source:
        return [photograph(number) for number in range(count)]
    found: list[bytes] = []
    for shard in list_shards(source):
        for block in read_blocks(shard, ReadOptions()):
            found += [media for media in block["media"].to_pylist() if media]
            if len(found) >= count:
                return found[:count]
    return found


def textured(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """An image [height,width,3] with edges and grain, which compresses as photographs do."""
    coarse = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
    grain = rng.normal(0, 7, (height, width, 1))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + grain, 0, 255).astype(
        np.uint8
    )


def photograph(number: int) -> bytes:
    """A JPEG of 224 x 224."""
    buffer = io.BytesIO()
    Image.fromarray(textured(np.random.default_rng(number), 224, 224)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def clip() -> bytes:
    """Seven seconds of 320 x 240, in which a camera pans. It has as many bytes as MSVD's clips (160 KB), and takes as
    long to decode."""
    count = CLIP_SECONDS * RATE
    draw = np.random.default_rng(0)
    scene = textured(draw, 320 + count, 240)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for left in range(count):
            view = scene[:, left : left + 320] + draw.normal(0, GRAIN, (240, 320, 1))
            view = np.clip(view, 0, 255).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def repeated(clip: bytes, seconds: int) -> bytes:
    """A longer video, of the same packets over and over."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(clip)) as one, av.open(buffer, "w", format="mp4") as output:
        source = one.streams.video[0]
        stream = output.add_stream_from_template(source)
        stored = [packet for packet in one.demux(source) if packet.size]
        length = sum(packet.duration or 0 for packet in stored)
        times = [(packet.pts or 0, packet.dts or 0) for packet in stored]
        for number in range(max(1, seconds // CLIP_SECONDS)):
            for packet, (pts, dts) in zip(stored, times, strict=True):
                packet.pts, packet.dts, packet.stream = pts + number * length, dts + number * length, stream
                packet.time_base = source.time_base
                output.mux(packet)
    return buffer.getvalue()


def enlarged(jpeg: bytes) -> bytes:
    """A photograph as a camera or a web shop has it."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def clips(source: str) -> list[tuple[str, bytes]]:
    """Names and bytes."""
    made = [clip()]
    if source:
        made = [file.read_bytes() for file in sorted(Path(source).glob("*.mp4"))]
    copies = max(COPIES, -(-MANY_CLIPS // len(made)))
    return [(f"{copy:03d}-{number:03d}.mp4", clip) for copy in range(copies) for number, clip in enumerate(made)]


def named(pictures: Sequence[bytes], count: int) -> list[tuple[str, bytes]]:
    """So many photographs with names, from the first on again where there are fewer."""
    return [(f"{number:06d}.jpg", pictures[number % len(pictures)]) for number in range(count)]


def put(members: Sequence[tuple[str, bytes]], folder: str, of_a_shard: int) -> dict[str, str]:
    """The same as lone objects and in tars; their folders."""
    with ThreadPoolExecutor(16) as threads:
        list(
            threads.map(
                lambda member: storage.write_bytes(f"{folder}/alone/{member[0]}", member[1], storage.anything), members
            )
        )
    for start in range(0, len(members), of_a_shard):
        storage.write_bytes(
            f"{folder}/tars/{start:06d}.tar", tiny.tar(members[start : start + of_a_shard]), storage.anything
        )
    return {kind: f"{folder}/{kind}" for kind in ("alone", "tars")}


def write_manifest(folder: Path, count: int) -> str:
    """So many addresses of objects on a disk; every tenth is of none."""
    for number in range(count):
        if number % 10:
            path = folder / f"{number // 1000:04d}" / f"{number:07d}.jpg"
            if number % 1000 == 1:
                path.parent.mkdir(parents=True)
            path.touch()
    lines = (f'{{"id": "{n}", "photo": "{n // 1000:04d}/{n:07d}.jpg"}}\n' for n in range(count))
    (folder / "manifest.jsonl").write_text("".join(lines))
    return str(folder / "manifest.jsonl")


# ---- the line ------------------------------------------------------------------------------------------------------
def rows(full: bool, scratch: Path, options: Options | None = None) -> list[Row]:
    """All of it."""
    options = options or Options()
    with captioning.store(scratch / "s3"):
        rounds = ROUNDS if full else 1
        made = [*without_a_model(options, rounds), *long_videos(rounds), *with_a_model(options, scratch, rounds)]
        return [*made, *manifests(full, scratch)]


def without_a_model(options: Options, rounds: int) -> list[Row]:
    """Read and decoded."""
    pictures = photographs(options.photos, PHOTOS)
    large = [enlarged(picture) for picture in pictures[: PHOTOS // COPIES]]
    moving = clips(options.clips)
    lake = f"s3://{BUCKET}"
    folders = {
        "small": put(named(pictures, PHOTOS), f"{lake}/small", SHARD_PHOTOS),
        "large": put(named(large, PHOTOS), f"{lake}/large", SHARD_PHOTOS),
        "clips": put(moving, f"{lake}/clips", -(-len(moving) // PARTS)),
    }
    shards = {f"{what} {kind}": list_shards(uri) for what, kinds in folders.items() for kind, uri in kinds.items()}
    parts = [[data for _, data in moving[start::PARTS]] for start in range(PARTS)]
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(read_shard, shards["clips tars"][:1] * 2 * CORES))
        measures: dict[str, Callable[[], float]] = {
            name: partial(rate, pool, read_shard, found) for name, found in shards.items()
        }
        found = in_turn(rounds, {**measures, "bare": partial(rate, pool, bare_loop, parts)})
    small, big = (round(statistics.fmean(map(len, some)) / 1000) for some in (pictures, large))
    alone, tars, bare = "as lone objects, read and decoded", "the same in tars", "a bare PyAV loop"
    return [
        Row(f"photographs of {small} KB {alone}", found["small alone"], "a second", found["small tars"], tars),
        Row(f"photographs of {big} KB {alone}", found["large alone"], "a second", found["large tars"], tars,
            goal_times=0.7),
        Row("clips as lone objects", found["clips alone"], "a second", found["bare"], bare, goal_times=0.9),
        Row("clips in tars", found["clips tars"], "a second", found["bare"], bare, goal_times=0.9),
        Row("frames of clips as lone objects", VISUAL.frames * found["clips alone"], "a second",
            VISUAL.frames * found["bare"], bare, goal_times=0.9),
    ]  # fmt: skip


def long_videos(rounds: int) -> list[Row]:
    """In windows."""
    videos = {minutes: repeated(clip(), 60 * minutes) for minutes in (0, 10, 60)}
    shards = {}
    for minutes, video in videos.items():
        storage.write_bytes(f"s3://{BUCKET}/long/{minutes}.mp4", video, storage.anything)
        (shards[minutes],) = list_shards(f"s3://{BUCKET}/long/{minutes}.mp4", cut=minutes > 0)
    peaks: dict[int, float] = {}

    def ours(minutes: int) -> float:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            windows, peaks[minutes] = pool.submit(read_windows, shards[0], shards[minutes]).result()
        return windows

    found = in_turn(rounds, {"ours": partial(ours, 60), "bare": partial(bare_windows, videos[60])})
    ours(10)
    what = "windows of ten seconds of a video of an hour"
    return [
        Row(what, found["ours"], "a second", found["bare"], "a bare PyAV loop", goal_times=0.9),
        Row(f"{what}: peak memory of the process that decodes", peaks[60], "MiB", peaks[10], "of ten minutes",
            goal_times=STEADY),
    ]  # fmt: skip


def with_a_model(options: Options, scratch: Path, rounds: int) -> list[Row]:
    """Captioned, as a night does it."""
    captioning.make_model(str(scratch / "model"))
    artifact = artifacts.read(str(scratch / "model"))
    lake, pictures, moving = f"s3://{BUCKET}", photographs(options.photos, PHOTOS), clips(options.clips)
    folders = {n: put(named(pictures, n), f"{lake}/night-{n}", SHARD_PHOTOS // 2) for n in (FEW, MANY)}
    short = {n: put(moving[:n], f"{lake}/clips-{n}", max(1, n // PARTS)) for n in (FEW_CLIPS, MANY_CLIPS)}
    with connection.connect():
        captioning.night(list_shards(folders[FEW]["tars"])[:1], artifact, str(scratch / "first"))
        found = in_turn(
            rounds,
            {
                kind: partial(night_rate, {n: kinds[kind] for n, kinds in folders.items()}, artifact, scratch)
                for kind in ("alone", "tars")
            }
            | {"clips": partial(night_rate, {n: kinds["alone"] for n, kinds in short.items()}, artifact, scratch)},
        )
    return [
        Row("photographs as lone objects, captioned", found["alone"], "a second", found["tars"], "the same in tars",
            goal_times=0.7),
        Row("clips as lone objects, captioned", found["clips"], "a second"),
    ]  # fmt: skip


def manifests(full: bool, scratch: Path) -> list[Row]:
    """What it costs to group what manifests name."""
    made = []
    for count in (100_000, 1_000_000) if full else (100_000,):
        uri = write_manifest(scratch / f"manifest-{count}", count)
        command = [sys.executable, "-m", "tests.benchmarks.reading", "--manifest", uri]
        said = subprocess.run(command, cwd=tiny.ROOT, env=peers.clean(), stdout=subprocess.PIPE, text=True, check=True)
        cpu, peak = json.loads(said.stdout)
        what = f"a manifest of {count:,} addresses, grouped"
        made += [Row(f"{what}: CPU", cpu, "s"), Row(f"{what}: peak memory", peak, "MiB")]
    return made


def main(options: Options) -> None:
    """The command."""
    if options.manifest:
        print(json.dumps(manifest_cost(options.manifest)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps([asdict(row) for row in rows(False, Path(scratch), options)], indent=2))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
