"""Verification of nowcasts by lead time: what is kept of each one, and how many are summed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_models.errors import UsageError
from hybrid_models.metrics import contingency, csi, error_sums, far, pod


def verification_record(forecast: np.ndarray, observed: np.ndarray, thresholds: Sequence[float]) -> dict[str, Any]:
    """Contingency counts `[L][thresholds]` and error sums `[L]` of one nowcast, both `[L, H, W]`, as plain lists."""
    sums = contingency(forecast, observed, thresholds) | error_sums(forecast, observed)
    return {name: values.tolist() for name, values in sums.items()}


def summarise_by_lead(records: Sequence[Mapping[str, Any]], forecaster: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Pools the sums of many nowcasts by lead time before any division.

    Nowcasts with different time steps meet at the lead times that they share.

    Args:
        records: each has `lead_minutes`, `thresholds` and, under the name `forecaster`, a `verification_record`.

    Returns:
        Metrics: `csi_<threshold>`, each the mean over lead times (0 without any event), `mse` and `mae` over pixels.
        Details: `lead_minutes`, and by lead time `csi`, `far`, `pod` by threshold, `mse`, `mae`; None where undefined.

    Raises:
        UsageError: no records.
    """
    if not records:
        raise UsageError("no nowcasts to verify: the evaluation has no usable sample with an observed future")
    names = [f"{threshold:g}" for threshold in records[0]["thresholds"]]
    leads, sums = _pooled(records, forecaster)
    scores = {"csi": csi(sums), "far": far(sums), "pod": pod(sums)} if names else {}
    errors = {"mse": sums["sq_error"], "mae": sums["abs_error"]}
    pixels = sums["pixels"]
    metrics = {f"csi_{name}": _mean(scores["csi"][:, k]) for k, name in enumerate(names)}
    metrics |= {name: float(total.sum() / max(pixels.sum(), 1)) for name, total in errors.items()}
    details: dict[str, Any] = {"lead_minutes": leads}
    for score, values in scores.items():
        details[score] = {name: _plain(values[:, k]) for k, name in enumerate(names)}
    for name, total in errors.items():
        details[name] = _plain(np.where(pixels > 0, total / np.maximum(pixels, 1), np.nan))
    return metrics, details


def _pooled(records: Sequence[Mapping[str, Any]], forecaster: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """The lead times, and each sum with one row per lead time."""
    pooled: dict[float, dict[str, np.ndarray]] = {}
    for record in records:
        for i, lead in enumerate(record["lead_minutes"]):
            key = round(float(lead), 3)
            sums = {name: np.asarray(values[i]) for name, values in record[forecaster].items()}
            pooled[key] = {name: pooled[key][name] + sums[name] for name in sums} if key in pooled else sums
    leads = sorted(pooled)
    return leads, {name: np.stack([pooled[lead][name] for lead in leads]) for name in pooled[leads[0]]}


def _mean(values: np.ndarray) -> float:
    return 0.0 if np.isnan(values).all() else float(np.nanmean(values))


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
