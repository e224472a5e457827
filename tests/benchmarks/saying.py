"""What it takes a captioner to say what it sees, in float32, in half precision, and in that with its matrices cast anew
for each word, as autocast does by itself; and whether it says the same.

    python -m tests.benchmarks.saying --model lake/runs/captioner-flickr8k/artifact --input lake/flickr8k/val

One process with a worker's settings, one thread. Captions of all photographs, some at a time, in turn: CIDEr-D,
captions that are those of the first way, and how far their scores are from its; milliseconds of CPU a photograph, the
encoder's and all of it, the least of some rounds. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import tyro

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.inputs import Sample
from hybrid_models.layers.word_decoder import WordDecoder
from hybrid_models.scores.texts import cider_d
from pipelines.cluster.connection import worker_env
from pipelines.models.artifacts import load_hybrid
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.media.decode import decode_image
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards
from tests.benchmarks.seeing import cpu

AT_A_TIME = (32, 17, 1)
WAYS = ("float32", "half", "half, cast for each word")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str
    """A captioner's artifact."""
    input: str
    """Shards of photographs with captions."""
    rounds: int = 3
    """Of each."""


def main(options: Options) -> None:
    """Measures and prints."""
    settings = worker_env()
    if not settings.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})
    torch.set_num_threads(1)
    captioner: Captioner = load_hybrid(options.model)
    samples, references = photographs(captioner, options.input)
    ways = [(way, count) for way in WAYS for count in AT_A_TIME]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(options.rounds):
        for way in ways:
            found[way] = []
            took = cpu(lambda way=way: found[way].extend(said(captioner, samples, *way)))
            least[way] = min(least[way], round(1000 * took / len(samples), 2))
    seeing = [cpu(lambda: seen(captioner, samples)) for _ in range(options.rounds)]
    report = {
        f"{way}, {count} at a time": {
            "cider_d": round(cider_d([row["caption"] for row in found[way, count]], references).total, 4),
            "ms": least[way, count],
            **likeness(found[ways[0]], found[way, count]),
        }
        for way, count in ways
    }
    print(json.dumps({"encoder ms": round(1000 * min(seeing) / len(samples), 2), **report}, indent=1))


def photographs(captioner: Captioner, uri: str) -> tuple[list[Sample], list[list[str]]]:
    """As a night decodes them, and their captions."""
    rows = [
        row for shard in list_shards(uri) for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()
    ]
    frames = [decode_image(row["media"], captioner.config.visual) for row in rows]
    captions = [json.loads(row["fields"])[captioner.config.captions] for row in rows]
    return [{"frames": each, "frame_count": np.int64(1)} for each in frames], captions


def said(captioner: Captioner, samples: list[Sample], way: str, count: int) -> list[dict[str, Any]]:
    """Rows of a table, so many photographs at a time. The encoder sees in half precision in all ways."""
    rows = []
    chosen = torch.autocast("cpu", enabled=way != WAYS[0])
    cast = WordDecoder.cast_once if way == WAYS[1] else lambda decoder: decoder
    with (
        mock.patch("hybrid_models.captioner.captioner.autocast", return_value=chosen),
        mock.patch.object(WordDecoder, "cast_once", cast),
    ):
        for first in range(0, len(samples), count):
            rows += captioner.predict(captioner.collate(samples[first : first + count]), captioner.decoding)
    return rows


def seen(captioner: Captioner, samples: list[Sample]) -> None:
    """What the encoder alone does."""
    with torch.inference_mode():
        for first in range(0, len(samples), AT_A_TIME[0]):
            captioner.encoder(captioner.collate(samples[first : first + AT_A_TIME[0]])["frames"].flatten(0, 1))


def likeness(first: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Captions that are the same, and how far the scores of these are apart at most."""
    same = [(a["score"], b["score"]) for a, b in zip(first, other, strict=True) if a["caption"] == b["caption"]]
    return {"same": len(same), "scores off": max((abs(a - b) for a, b in same), default=0.0)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
