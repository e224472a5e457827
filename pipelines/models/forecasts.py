"""Pictures of nowcasts: beside what came, what is wrong, how likely rain is, and as they move."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image, ImageColor, ImageDraw

from hybrid_models.explanations import Forecast
from pipelines.models.curves import png

LEADS_SHOWN = 4
FRAME_MS = 400
RAIN_MM_H = (0.1, 0.5, 1, 2, 5, 10, 20, 50)
RAIN_COLOURS = ("#c6dbef", "#6baed6", "#2171b5", "#41ab5d", "#fee34d", "#fd8d3c", "#e31a1c", "#7a0177")
DRY, NO_COVERAGE = "#ffffff", "#bdbdbd"
DIFFERENCE, DISTANCE, CHANCE = "nowcast − observed", "|nowcast − observed|", "at least 1 mm/h"


def evenly(total: int, count: int) -> list[int]:
    """`count` of `total` positions, evenly spread, or all of them."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)] if count < total else list(range(total))


def panels(shown: Forecast) -> bytes:
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
    axes = figure.subplots(len(rows), len(leads) + 1, squeeze=False)
    for panel in axes.ravel():
        panel.set(xticks=[], yticks=[])
    colours, norm = _scale(shown.unit)
    _show(axes[0, 0], shown.past[-1], colours, norm).axes.set_title("now", fontsize=9)
    for panel in axes[1:, 0]:
        panel.axis("off")
    for row, (name, frames) in zip(axes, rows, strict=True):
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
    for panel, lead in zip(axes[0, 1:], leads, strict=True):
        panel.set_title(f"+{shown.lead_minutes[lead]:g} min", fontsize=9)
    return png(figure)


def _difference(nowcast: np.ndarray, observed: np.ndarray) -> tuple[str, np.ndarray]:
    """What is wrong, `[L, H, W]`, and its name: in colour how far, over the channels, so that they do not cancel."""
    difference = nowcast - observed
    return (DIFFERENCE, difference) if difference.ndim == 3 else (DISTANCE, np.abs(difference).mean(axis=-1))


def animation(shown: Forecast) -> bytes:
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
