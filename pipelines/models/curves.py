"""Curves for MLflow and model cards: learning, scores by lead time, reliability, confusion."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Files = dict[str, bytes]
"""Contents by file name."""
NAMED = 40
"""Labels up to which a matrix has their names, and grows with them: it is drawn in memory."""
NUMBERED = 20
"""With more labels, a confusion matrix shows no numbers."""


def evaluation_curves(details: Mapping[str, Any]) -> Files:
    """What there is to draw of an evaluation's details, by file name."""
    files: Files = {}
    if "lead_minutes" in details:
        files["lead-times.png"] = lead_time_curves(details)
    if "reliability" in details:
        files["reliability.png"] = reliability_diagrams(details)
    if "confusion" in details:
        files["confusion.png"] = confusion_matrix(details["confusion"])
    return files


def learning_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """PNG of everything that training noted, by optimizer step: losses together, each validation metric beside them.

    Args:
        history: entries with `step` and any of `loss`, `val_loss`, `val_…`.
    """
    metrics = sorted({name for entry in history for name in entry if name.startswith("val_")} - {"val_loss"})
    figure = Figure((3.6 * (len(metrics) + 1), 2.8), layout="constrained")
    panels = figure.subplots(1, len(metrics) + 1, squeeze=False)[0]
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        _curve(panels[0], history, name, label)
    panels[0].set_title("loss", fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    for panel, name in zip(panels[1:], metrics, strict=True):
        _curve(panel, history, name, "validation")
        panel.set_title(name.removeprefix("val_"), fontsize=10)
    for panel in panels:
        _plain(panel, "step")
    return png(figure)


def _curve(panel: Axes, history: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    panel.plot(*np.array(points).reshape(-1, 2).T, marker="." if len(points) < 40 else "", label=label)


def lead_time_curves(details: Mapping[str, Any]) -> bytes:
    """PNG of CSI for each threshold, or of the MSE where there are no thresholds, by lead time beside the baselines."""
    scores = {f"CSI, {name} mm/h": ("csi", name) for name in details.get("csi", {})} or {"MSE": ("mse", None)}
    figure = Figure((2.9 * len(scores), 2.8), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for panel, (title, (score, threshold)) in zip(panels, scores.items(), strict=True):
        for label, found in {"model": details, **details["baselines"]}.items():
            values = found[score] if threshold is None else found[score][threshold]
            known = [math.nan if value is None else value for value in values]
            panel.plot(found["lead_minutes"], known, "-" if found is details else "--", marker=".", label=label)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(bottom=0)
        _plain(panel, "minutes ahead")
    panels[0].legend(frameon=False, fontsize=8)
    return png(figure)


def reliability_diagrams(details: Mapping[str, Any]) -> bytes:
    """PNG with a panel for each threshold: how often it rained that much where so much probability was forecast.

    On the diagonal forecasts mean what they say; grey bars show how often each was made, on a logarithmic scale.

    Args:
        details: of a nowcaster's `summarise`, for rain.
    """
    found = details["reliability"]
    figure = Figure((2.6 * len(found), 2.9), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (threshold, bins) in zip(panels, found.items(), strict=True):
        pixels = np.array(bins["pixels"])
        known = np.array(bins["forecast"], float), np.array(bins["observed"], float)
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        panel.plot(*known, marker=".")
        panel.set_title(f"at least {threshold} mm/h", fontsize=10)
        panel.set(xlim=(0, 1), ylim=(0, 1))
        _plain(panel, "forecast probability")
        counts = panel.twinx()
        counts.bar((np.arange(len(pixels)) + 0.5) / len(pixels), pixels, 0.8 / len(pixels), color="0.5", alpha=0.25)
        counts.set(yscale="log", ylim=(1, max(10.0, pixels.max()) ** 3), yticks=[])  # in the lowest third
        counts.minorticks_off()
        counts.spines[:].set_visible(False)
    panels[0].set_ylabel("observed frequency", fontsize=9)
    return png(figure)


def confusion_matrix(found: Mapping[str, Any]) -> bytes:
    """PNG: of the samples of each label (a row), which share was said to be which (a column).

    Args:
        found: `labels` and `counts`, as `hybrid_models.scores.labels.confusion` gives them.
    """
    labels, counts = found["labels"], np.array(found["counts"], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.42 * min(len(labels), NAMED)
    figure = Figure((side, side), layout="constrained")
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= NAMED:
        panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        panel.set_yticks(range(len(labels)), labels, parse_math=False)
    panel.tick_params(length=0, labelsize=8)
    panel.set_xlabel("said", fontsize=9)
    panel.set_ylabel("true", fontsize=9)
    if len(labels) <= NUMBERED:
        for row, column in np.argwhere(counts):
            text = f"{counts[row, column]:.0f}"
            colour = "white" if shares[row, column] > 0.5 else "black"
            panel.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return png(figure)


def _plain(panel: Axes, label: str) -> None:
    panel.set_xlabel(label, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3)


def png(figure: Figure) -> bytes:
    """A figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
