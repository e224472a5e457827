"""How fast photographs and clips are read from an S3 store and decoded, without a model.

    python -m tests.benchmarks.reading [--photos FOLDER_OF_TARS] [--clips FOLDER_OF_CLIPS] [--count 3000] [--copies 20]

Photographs: the same ones in tars and as lone objects. Clips: lone objects, and the same in tars, beside a bare PyAV
loop over the same bytes in memory, which decodes from the start to the last frame that is wanted. A process for each
core does each; all are started, and have read something, before the clock is. Each is measured `--rounds` times in
turn, and medians are compared. Prints one JSON object.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from PIL import Image

from hybrid_models.captioner.captioner import Captioner, CaptionerConfig
from hybrid_models.inputs import Visual
from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.rows import read_blocks
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Shard, list_shards
from tests import tiny
from tests.pipelines.reading.media.test_video import film, steady
from tests.servers import BUCKET, S3Server

VISUAL = Visual(224, 224, 8)
SHARD_PHOTOS, SHARD_CLIPS = 250, 55


@dataclass(frozen=True)
class Options:
    """What to measure."""

    photos: str = ""
    """Folder of tar shards of photographs; made up ones (224 x 224 JPEG) by default."""
    clips: str = ""
    """Folder of mp4 clips; a made up one of six seconds by default."""
    count: int = 3000
    """How many photographs."""
    side: int = 0
    """Enlarges photographs to so many pixels; 0 takes them as they are."""
    copies: int = 20
    """How many of each clip."""
    rounds: int = 3
    """How often each is measured."""


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


def rate(pool: ProcessPoolExecutor, work: Callable[[Any], int], parts: Sequence[Any]) -> float:
    """Samples a second."""
    started = time.perf_counter()
    done = sum(pool.map(work, parts))
    return done / (time.perf_counter() - started)


# ---- data ----------------------------------------------------------------------------------------------------------
def photographs(options: Options) -> list[tuple[str, bytes]]:
    """Names and bytes."""
    if not options.photos:
        return [(f"{number:06d}.jpg", tiny.jpeg(number, size=224)) for number in range(options.count)]
    members: list[tuple[str, bytes]] = []
    for shard in list_shards(options.photos):
        for block in read_blocks(shard, ReadOptions()):
            members += [(f"{row['sample_id']}.jpg", row["media"]) for row in block.to_pylist() if row["media"]]
            if len(members) >= options.count:
                return members[: options.count]
    return members


def enlarged(jpeg: bytes, side: int) -> bytes:
    """A photograph as a camera or a web shop has it."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def clips(options: Options) -> list[tuple[str, bytes]]:
    """Names and bytes."""
    made = [film("mp4", steady(150), gop=250)]
    if options.clips:
        made = [file.read_bytes() for file in sorted(Path(options.clips).glob("*.mp4"))]
    return [
        (f"{copy:03d}-{number:03d}.mp4", clip) for copy in range(options.copies) for number, clip in enumerate(made)
    ]


def put(members: Sequence[tuple[str, bytes]], folder: str, of_a_shard: int) -> dict[str, list[Shard]]:
    """The same as lone objects and in tars."""
    for name, data in members:
        storage.write_bytes(f"{folder}/alone/{name}", data)
    for start in range(0, len(members), of_a_shard):
        storage.write_bytes(f"{folder}/tars/{start:06d}.tar", tiny.tar(members[start : start + of_a_shard]))
    return {kind: list_shards(f"{folder}/{kind}") for kind in ("alone", "tars")}


def main() -> None:
    """The command."""
    options, cores = tyro.cli(Options, description=__doc__), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        server = S3Server(Path(scratch) / "s3").start()
        os.environ.update(server.env())
        try:
            moving, pictures = clips(options), photographs(options)
            if options.side:
                pictures = [(name, enlarged(data, options.side)) for name, data in pictures]
            photos, films = (
                put(pictures, f"s3://{BUCKET}/photos", SHARD_PHOTOS),
                put(moving, f"s3://{BUCKET}/clips", SHARD_CLIPS),
            )
            bare = [[data for _, data in moving[start :: 4 * cores]] for start in range(4 * cores)]
            rates: dict[str, list[float]] = {}
            with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
                list(pool.map(read_shard, [films["tars"][0]] * 2 * cores))
                for _ in range(options.rounds):
                    for kind, shards in photos.items():
                        rates.setdefault(f"photographs_{kind}", []).append(rate(pool, read_shard, shards))
                    for kind, shards in films.items():
                        rates.setdefault(f"clips_{kind}", []).append(rate(pool, read_shard, shards))
                    rates.setdefault("clips_bare", []).append(rate(pool, bare_loop, bare))
        finally:
            server.kill()
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(json.dumps({
        "samples_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "mean_bytes_of_a_photograph": round(statistics.fmean(len(data) for _, data in pictures)),
        "frames_per_second_of_clips": round(VISUAL.frames * middle["clips_alone"], 1),
        "photographs_alone_to_tars": round(middle["photographs_alone"] / middle["photographs_tars"], 3),
        "clips_alone_to_bare": round(middle["clips_alone"] / middle["clips_bare"], 3),
        "clips_tars_to_bare": round(middle["clips_tars"] / middle["clips_bare"], 3),
        "groups": {"photographs": len(photos["alone"]), "clips": len(films["alone"])},
        "cpu": f"{cores} cores",
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
