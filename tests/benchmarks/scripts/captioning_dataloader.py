"""Captions of photographs in tars on S3 by webdataset and torch's DataLoader, as a script has them that somebody has
tuned: asked by `tests.benchmarks.captioning`.

Each of `processes` has the model and takes its share of the shards as torchrun's processes do (`RANK`, `WORLD_SIZE`);
`workers` of each decode and collate for it. webdataset knows no S3: s3fs opens the tars.

Tried on two cores, with tars on a disk, the sum of its processes' CPU in ms for a photograph, start-up excluded, or
seconds of all for 1,500 photographs, start-up included, other work beside it:

- two processes of one thread without workers, which decode themselves: 13.6 ms, 26 s; the one that is taken
- the same with a worker each: 31 s, and 20 instead of 11 s of CPU to start
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import torch
import webdataset as wds
from webdataset.gopen import gopen_schemes

from tests.benchmarks.scripts.our_captioner import Captioner, Photographs

BEST = {"processes": 2, "workers": 0, "threads": 1}


def open_object(url: str, mode: str = "rb", bufsize: int = 8192) -> Any:
    """As webdataset asks for it."""
    return s3fs.S3FileSystem().open(url, mode)


class Collate:
    """Samples of webdataset → their keys, and our model's batch."""

    def __init__(self, captioner: Captioner) -> None:
        self._collate = captioner.session.collate

    def __call__(self, rows: list[dict[str, Any]]) -> tuple[list[str], Any]:
        return [row["__key__"] for row in rows], self._collate([row["jpg"] for row in rows])


def caption(rank: int, question: dict[str, Any], settings: dict[str, int]) -> None:
    """Captions a process's share into a file of its own."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(settings["processes"]))
    captioner, photographs = Captioner(question["model"], settings["threads"]), Photographs(question["model"])
    gopen_schemes["s3"] = open_object
    shards = [f"s3://{path}" for path in sorted(s3fs.S3FileSystem().glob(f"{question['photographs']}/*.tar"))]
    dataset = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node, empty_check=False)
    dataset = dataset.map_dict(jpg=photographs.of_bytes).batched(question["batch"], Collate(captioner))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=settings["workers"])
    written: dict[str, list[str]] = {"sample_id": [], "caption": []}
    for keys, batch in loader:
        written["sample_id"] += keys
        written["caption"] += [row["caption"] for row in captioner.session.infer(batch)]
    pq.write_table(pa.table(written), Path(question["written"]) / f"{rank}.parquet")


def main(question: dict[str, Any]) -> dict[str, Any]:
    """The settings that it had."""
    settings = BEST | question.get("settings", {})
    Path(question["written"]).mkdir(parents=True, exist_ok=True)
    spawned = multiprocessing.get_context("spawn")
    processes = [
        spawned.Process(target=caption, args=(rank, question, settings)) for rank in range(settings["processes"])
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process failed: see above")
    return settings


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
