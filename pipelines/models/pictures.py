"""Pictures for MLflow and model cards: what models look at, nowcasts beside what came."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image, ImageColor, ImageDraw

from hybrid_models.explanations import Alignment, Forecast, Gaze
from hybrid_models.inputs import Sample
from pipelines.models.curves import Files, png
from pipelines.models.session import Session
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.samples import Decode, unpack
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Shard

LOOKED_AT = 40
"""Rows of a shard among which samples for pictures are chosen."""
LEADS_SHOWN = 4
FRAME_MS = 400
RAIN_MM_H = (0.1, 0.5, 1, 2, 5, 10, 20, 50)
RAIN_COLOURS = ("#c6dbef", "#6baed6", "#2171b5", "#41ab5d", "#fee34d", "#fd8d3c", "#e31a1c", "#7a0177")
DRY, NO_COVERAGE = "#ffffff", "#bdbdbd"
DIFFERENCE, DISTANCE, CHANCE = "nowcast − observed", "|nowcast − observed|", "at least 1 mm/h"


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


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` positions, evenly spread, or all of them."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)] if count < total else list(range(total))


def _good_samples(shard: Shard, options: ReadOptions, decode: Decode) -> list[Sample]:
    """Those among the first rows; reading ends there."""
    good: list[Sample] = []
    seen = 0
    for block in guarded(shard, options, decode):
        good += [unpack(packed) for packed in block["sample"].to_pylist() if packed is not None]
        seen += len(block)
        if seen >= LOOKED_AT:
            break
    return good[:LOOKED_AT]


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
    weights = np.zeros((len(shown.target), len(shown.source))) if shown.weights is None else shown.weights
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    source, target = (list(map(printable, pieces)) for pieces in (shown.source, shown.target))
    axes.set_xticks(range(len(source)), source, rotation=60, ha="left", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(target)), target, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=9)
    return {"png": png(figure)}


@draw.register
def _gaze(shown: Gaze) -> Files:
    """A photograph, or a strip of a clip's frames; then once for each word, lit where the model looked."""
    count = len(shown.frames)
    if shown.frame_weights is not None and count > 1:
        words = list(zip(shown.words, shown.frame_weights, strict=True))
        tiles = [*shown.frames, *(tile for _, weights in words for tile in _dimmed(shown.frames, weights))]
        titles = [*_times(shown), *(text for word, _ in words for text in (word, *[""] * (count - 1)))]
        return _wall(tiles, titles, count, 1.1)
    if shown.weights is None:
        span = f" ({_times(shown)[0]} … {_times(shown)[-1]})" if shown.times is not None and count > 1 else ""
        return _wall([strip(shown.frames)], [textwrap.fill(shown.said + span, 40 * count)], 1, 3.2 * count)
    middle = shown.frames[count // 2]
    tiles = [lit(middle, weights) for weights in shown.weights]
    title = _times(shown)[count // 2] if count > 1 else ""
    return _wall([middle, *tiles], [title, *shown.words[: len(tiles)]], 6, 1.6)


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
    return {"png": _panels(shown), "gif": _animation(shown)}


def _panels(shown: Forecast) -> bytes:
    """Some leads of what came, of the nowcast, of their difference, and of how likely rain is."""
    leads = evenly(len(shown.nowcast), LEADS_SHOWN)
    rows = [("nowcast", shown.nowcast)]
    if shown.observed is not None:
        count = min(len(shown.observed), len(shown.nowcast))
        leads = evenly(count, LEADS_SHOWN)
        rows = [("observed", shown.observed), *rows, _difference(shown.nowcast[:count], shown.observed[:count])]
    if shown.chance is not None:
        rows.append((CHANCE, shown.chance))
    figure = Figure((1.75 * (len(leads) + 1) + 1.1, 1.75 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), len(leads) + 1, squeeze=False)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
    colours, norm = _scale(shown.unit)
    _show(panels[0, 0], shown.past[-1], colours, norm).axes.set_title("now", fontsize=9)
    for panel in panels[1:, 0]:
        panel.axis("off")
    for row, (name, frames) in zip(panels, rows, strict=True):
        row[1].set_ylabel(name, fontsize=9)
        scale, label = (colours, norm), shown.unit
        if name == DIFFERENCE:
            scale = _error_scale(shown.unit)
        elif name == DISTANCE:
            scale = _with_gaps("Reds"), Normalize(0, 1)
        elif name == CHANCE:
            scale, label = (_with_gaps("Purples"), Normalize(0, 1)), "probability"
        for panel, lead in zip(row[1:], leads, strict=True):
            _show(panel, frames[lead], *scale)
        if frames.ndim == 3:
            _key(figure, row, *scale, label)
    for panel, lead in zip(panels[0, 1:], leads, strict=True):
        panel.set_title(f"+{shown.lead_minutes[lead]:g} min", fontsize=9)
    return png(figure)


def _difference(nowcast: np.ndarray, observed: np.ndarray) -> tuple[str, np.ndarray]:
    """What is wrong, `[L, H, W]`, and its name: in colour how far, over the channels, so that they do not cancel."""
    difference = nowcast - observed
    return (DIFFERENCE, difference) if difference.ndim == 3 else (DISTANCE, np.abs(difference).mean(axis=-1))


def _animation(shown: Forecast) -> bytes:
    """The past, then the nowcast beside what came."""
    colours, norm = _scale(shown.unit)
    known = [] if shown.observed is None else [("observed", shown.observed)]
    columns = [*known, ("nowcast", shown.nowcast)]
    steps = len(shown.past) + min(len(frames) for _, frames in columns)
    figure = Figure((3.0 * len(columns) + 0.9, 3.3), dpi=80, layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    step_minutes = shown.lead_minutes[0]
    images = []
    for panel, (name, frames) in zip(panels, columns, strict=True):
        panel.set(xticks=[], yticks=[])
        panel.set_title(name, fontsize=10)
        images.append((_show(panel, shown.past[0], colours, norm), np.concatenate([shown.past, frames[:steps]])))
    if shown.past.ndim == 3:
        _key(figure, panels, colours, norm, shown.unit)
    pages = []
    for step in range(steps):
        for image, frames in images:
            image.set_data(_painted(frames[step], colours, norm))
        minutes = (step + 1 - len(shown.past)) * step_minutes
        figure.suptitle("now" if minutes == 0 else f"{minutes:+g} min", fontsize=10)
        pages.append(Image.open(io.BytesIO(png(figure))).convert("RGB"))
        figure.set_layout_engine("none")  # the first page's layout is that of all
    return _gif(pages)


def side_by_side(shown: Forecast, width: int = 260) -> bytes:
    """An endless GIF: the last observed frames, which end with now, beside the nowcast. Scales are not in it.

    Args:
        shown: what is drawn.
        width: of each of the two, in pixels; frames keep their shape.
    """
    colours, norm = _scale(shown.unit)
    height = round(width * shown.past.shape[1] / shown.past.shape[2])
    gap, title = 8, 18
    pages = []
    for step in range(max(len(shown.past), len(shown.nowcast))):
        seen, lead = min(step, len(shown.past) - 1), min(step, len(shown.nowcast) - 1)
        ago = (len(shown.past) - 1 - seen) * shown.lead_minutes[0]
        page = Image.new("RGB", (2 * width + gap, title + height), "white")
        text = ImageDraw.Draw(page)
        for left, frame, label in (
            (0, shown.past[seen], f"observed, {-ago:g} min" if ago else "observed, now"),
            (width + gap, shown.nowcast[lead], f"nowcast, +{shown.lead_minutes[lead]:g} min"),
        ):
            drawn = Image.fromarray(_painted(frame, colours, norm))
            page.paste(drawn.resize((width, height), Image.Resampling.NEAREST), (left, title))
            text.text((left + 2, 2), label, fill="black", font_size=12)
        pages.append(page)
    return _gif(pages)


def _gif(pages: Sequence[Image.Image]) -> bytes:
    """An endless animation; all pages share one palette, so that colours do not flicker."""
    strip = Image.fromarray(np.concatenate([np.asarray(page) for page in pages]))
    palette = strip.quantize(200)
    first, *rest = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def _show(panel: Axes, frame: np.ndarray, colours: Colormap, norm: Normalize) -> AxesImage:
    return panel.imshow(_painted(frame, colours, norm), interpolation="nearest")


def _painted(frame: np.ndarray, colours: Colormap, norm: Normalize) -> np.ndarray:
    """uint8 `[H, W, 3]` of a frame `[H, W]` on its scale, or `[H, W, 3]` in colour, grey where a channel is missing."""
    if frame.ndim == 2:
        return np.asarray(colours(norm(np.ma.masked_invalid(frame)), bytes=True)[..., :3])
    known = np.isfinite(frame).all(axis=-1, keepdims=True)
    return np.where(known, (255 * frame).round(), ImageColor.getrgb(NO_COVERAGE)).astype(np.uint8)


def _key(figure: Figure, panels: Sequence[Axes], colours: Colormap, norm: Normalize, label: str) -> None:
    """The scale of these panels, beside them."""
    figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), label=label, format="%g", extend=_extend(norm))


def _scale(unit: str) -> tuple[Colormap, Normalize]:
    """Rain rates have the steps of weather services' maps; grey is where no radar looks."""
    if unit != "mm/h":
        return _with_gaps("gray"), Normalize(0, 1)
    steps = ListedColormap(list(RAIN_COLOURS))
    colours = steps.with_extremes(under=DRY, over=RAIN_COLOURS[-1], bad=NO_COVERAGE)
    return colours, BoundaryNorm([*RAIN_MM_H, 2 * RAIN_MM_H[-1]], len(RAIN_COLOURS))


def _error_scale(unit: str) -> tuple[Colormap, Normalize]:
    most = 5.0 if unit == "mm/h" else 1.0
    return _with_gaps("RdBu_r"), Normalize(-most, most)


def _with_gaps(name: str) -> Colormap:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=NO_COVERAGE)


def _extend(norm: Normalize) -> str:
    return "min" if isinstance(norm, BoundaryNorm) else "neither"
