"""Captions of photographs in tars on S3 by Ray Data alone, as its guides write batch inference: `read_webdataset`, a
class of `map_batches`, `write_parquet`. Asked by `tests.benchmarks.captioning`.

Tried on two cores, with tars on a disk, two actors of one thread that reserve half a CPU each so that reading has the
other, the sum of all processes' CPU in ms for a photograph, start-up excluded, other work beside it:

- photographs decoded by `read_webdataset`, its default: 14.4 ms; the one that is taken
- decoded by the actors as a night decodes them (`decoder` None): 15.4 ms
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import numpy as np
import ray
import torch

from tests.benchmarks.scripts.our_captioner import Captioner, Photographs

BEST: dict[str, Any] = {"actors": 2, "threads": 1, "cpus": 0.5, "decoded": "read"}


class Captions:
    """Batches of keys and photographs → keys and captions."""

    def __init__(self, model: str, threads: int) -> None:
        self._photographs, self._captioner = Photographs(model), Captioner(model, threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        read = self._photographs.of_bytes if isinstance(batch["jpg"][0], bytes) else self._photographs.of_pixels
        return {"sample_id": batch["__key__"], "caption": self._captioner(list(map(read, batch["jpg"])))}


def main(question: dict[str, Any]) -> dict[str, Any]:
    """The settings that it had."""
    settings = BEST | question.get("settings", {})
    ray.init("local", include_dashboard=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    decoder = {"decoder": True if settings["decoded"] == "read" else None}
    photographs = ray.data.read_webdataset(question["photographs"], **decoder)
    captions = photographs.map_batches(
        Captions,
        fn_constructor_args=(question["model"], settings["threads"]),
        batch_size=question["batch"],
        compute=ray.data.ActorPoolStrategy(size=settings["actors"]),
        num_cpus=settings["cpus"],
        num_gpus=torch.cuda.is_available() / settings["actors"],
    )
    captions.write_parquet(question["written"])
    return settings


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.stdin.read()))))
