"""Pictures for MLflow and model cards: what models look at while they write; nowcasts are drawn by `forecasts`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hybrid_models.explanations import Alignment, Forecast, Gaze
from hybrid_models.inputs import Sample
from pipelines.models import forecasts
from pipelines.models.curves import Files, png
from pipelines.models.forecasts import evenly
from pipelines.models.session import Session
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.samples import Decode, unpack
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Shard

LOOKED_AT = 40
"""Rows of a shard among which samples for pictures are chosen."""


def examples(session: Session, shards: Sequence[Shard], count: int, stride: int = 1) -> Files:
    """Pictures of a model at work on the first good rows of evenly chosen shards, by file name.

    Args:
        session: the model.
        shards: with references.
        count: how many samples.
        stride: every n-th issue time of a radar event is a sample.
    """
    decode = session.decode(with_target=True)
    chosen = [shards[i] for i in evenly(len(shards), count)]
    samples: list[Sample] = []
    for number, shard in enumerate(chosen):
        share = count * (number + 1) // len(chosen) - len(samples)
        good = _good_samples(shard, decode.options(stride), decode)
        samples += [good[i] for i in evenly(len(good), share)]
    files: Files = {}
    for number, explanation in enumerate(session.explain(samples)):
        files |= {f"example-{number + 1}.{suffix}": content for suffix, content in draw(explanation).items()}
    return files


def _good_samples(shard: Shard, options: ReadOptions, decode: Decode) -> list[Sample]:
    """Those among the first rows; reading ends there."""
    blocks = guarded(shard, options, decode, LOOKED_AT)
    return [unpack(packed) for block in blocks for packed in block["sample"].to_pylist() if packed is not None]


# ---- explanations ------------------------------------------------------------------------------------------------
@singledispatch
def draw(explanation: Any) -> Files:
    """A picture of an explanation, PNG, and an animation, GIF, where something moves; by suffix."""
    raise TypeError(f"cannot draw {type(explanation).__name__}")


def printable(text: str) -> str:
    """A text without what no font has a shape for: control characters, halves of surrogate pairs."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


@draw.register
def _alignment(shown: Alignment) -> Files:
    figure = Figure((1.5 + 0.32 * len(shown.source), 1.2 + 0.26 * len(shown.target)), layout="constrained")
    axes = figure.subplots()
    empty = np.zeros((max(1, len(shown.target)), len(shown.source)))
    weights = shown.weights if shown.target and shown.weights is not None else empty
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    source, target = (list(map(printable, pieces)) for pieces in (shown.source, shown.target))
    axes.set_xticks(range(len(source)), source, rotation=60, ha="left", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(target)), target, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    return {"png": png(figure)}


@draw.register
def _gaze(shown: Gaze) -> Files:
    """A photograph, or a clip's frames with their times; then once for each word, lit where the model looked: of a clip
    whose frames are averaged, on the middle one."""
    count = len(shown.frames)
    if shown.frame_weights is not None:
        words = list(zip(shown.words, shown.frame_weights, strict=True))
        tiles = [*shown.frames, *(tile for _, weights in words for tile in _dimmed(shown.frames, weights))]
        titles = [*_times(shown), *(text for word, _ in words for text in (word, *[""] * (count - 1)))]
        return _wall(tiles, titles, count, 1.1)
    if shown.weights is None:
        at = f" ({', '.join(_times(shown))})" if shown.times is not None and count > 1 else ""
        return _wall([strip(shown.frames)], [textwrap.fill(shown.said + at, 40 * count)], 1, 3.2 * count)
    tiles = [lit(shown.frames[count // 2], weights) for weights in shown.weights]
    titles = _times(shown) if count > 1 else [""]
    return _wall([*shown.frames, *tiles], [*titles, *shown.words[: len(tiles)]], count if count > 1 else 6, 1.6)


def _times(shown: Gaze) -> list[str]:
    """When each frame is shown; their numbers, where that is not known."""
    if shown.times is None:
        return [str(number) for number in range(1, len(shown.frames) + 1)]
    return [clock(time) for time in shown.times.tolist()]


def clock(seconds: float) -> str:
    """A time of a clip as people write it: `7.5 s`, `2:07.5`."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}" if minutes else f"{rest:.1f} s"


def strip(frames: np.ndarray) -> np.ndarray:
    """Frames [T,H,W,3] side by side, with white gaps, [H,·,3]."""
    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 20), 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)


def _dimmed(frames: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Frames [T,H,W,3], darker the less each weighs."""
    shares = weights / max(weights.max(), 1e-9)
    return [(frame * (0.15 + 0.85 * share)).astype(np.uint8) for frame, share in zip(frames, shares, strict=True)]


def _wall(tiles: Sequence[np.ndarray], titles: Sequence[str], most: int, inches: float) -> Files:
    """Tiles in rows of at most so many, each so many inches wide and with its title; one picture, as many axes draw
    slowly."""
    columns = min(most, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height, width = tiles[0].shape[:2]
    title, gap = max(1, height // 6), max(1, width // 20)
    wall = np.full((rows * (title + height), columns * (width + gap), 3), 255, np.uint8)
    figure = Figure((inches * columns, inches * columns * wall.shape[0] / wall.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (tile, text) in enumerate(zip(tiles, titles, strict=True)):
        top, left = number // columns * (title + height) + title, number % columns * (width + gap)
        wall[top : top + height, left : left + width] = tile
        axes.text(
            left + width / 2, top - gap / 2, printable(text), fontsize=9, ha="center", va="bottom", parse_math=False
        )
    axes.imshow(wall)
    return {"png": png(figure)}


def lit(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The image [H,W,3], darker the less a place weighs; `weights` [h,w] are of a coarser grid."""
    height, width = image.shape[:2]
    grid = Image.fromarray(weights / max(weights.max(), 1e-9)).resize((width, height), Image.Resampling.BICUBIC)
    seen = np.clip(np.asarray(grid), 0, 1)[:, :, None]
    return np.asarray(image * (0.25 + 0.75 * seen)).astype(np.uint8)


@draw.register
def _forecast(shown: Forecast) -> Files:
    return {"png": forecasts.panels(shown), "gif": forecasts.animation(shown)}
