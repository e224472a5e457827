"""Verification of nowcasts by lead time: what is kept of each one, and how many are summed up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_models.errors import UsageError
from hybrid_models.scores.frames import FSS_WINDOWS, contingency, csi, error_sums, far, fss, fss_sums, pod, ratio, ssim
from hybrid_models.scores.probabilities import bin_sums, brier_sums, certain, certain_crps_sums, crps_sums, reliability
from hybrid_models.scores.texts import Tally


def verification_record(
    forecast: np.ndarray, observed: np.ndarray, thresholds: Sequence[float], probability: np.ndarray | None = None
) -> dict[str, Any]:
    """What one nowcast, `[L, H, W]` as its observation, adds by lead time, as plain lists.

    Error sums `[L]`. For rain, which has thresholds, contingency counts `[L][thresholds]`, sums of the FSS
    `[L][thresholds][windows]`, `brier_error` `[L][thresholds]`, `crps_error` `[L]` and, of all lead times together,
    `bin_sums` as `bins`; for video `ssim` `[L]`, 1 or without any window 0 as its `frames`, and `observed`, the share
    of a frame that was. In colour `ssim` and `frames` are sums over the channels, and each of their values is a pixel.

    Args:
        forecast: `[L, H, W]`, of video in colour `[L, H, W, 3]`.
        observed: as `forecast`, NaN where nothing was measured.
        thresholds: mm/h; none for video.
        probability: of each threshold, `[L, thresholds, H, W]`; a forecast without is certain.
    """
    if not thresholds:
        return _lists(_video_sums(forecast, observed))
    sums = error_sums(forecast, observed)
    sums |= contingency(forecast, observed, thresholds) | fss_sums(forecast, observed, thresholds)
    if probability is None:
        probability = certain(forecast, thresholds)
        sums["crps_error"] = certain_crps_sums(forecast, observed, thresholds[-1])
    else:
        sums["crps_error"] = crps_sums(probability, observed, thresholds)
    sums["brier_error"] = brier_sums(probability, observed, thresholds)
    return {**_lists(sums), "bins": _lists(bin_sums(probability, observed, thresholds))}


def _video_sums(forecast: np.ndarray, observed: np.ndarray) -> dict[str, np.ndarray]:
    """`[L]` each; every channel is judged as a frame of its own, and adds to its lead time."""
    similar, errors = ssim(_planes(forecast), _planes(observed)), error_sums(_planes(forecast), _planes(observed))
    of_planes = {**errors, "ssim": np.nan_to_num(similar), "frames": np.isfinite(similar).astype(np.int64)}
    sums = {name: values.reshape(len(observed), -1).sum(1) for name, values in of_planes.items()}
    return sums | {"observed": sums["pixels"] / math.prod(observed.shape[1:])}


def _planes(frames: np.ndarray) -> np.ndarray:
    """Frames `[L, H, W]`, or in colour `[L, H, W, channels]`, each channel by itself: `[L * channels, H, W]`."""
    leads, height, width = frames.shape[:3]
    return np.moveaxis(frames.reshape(leads, height, width, -1), 3, 1).reshape(-1, height, width)


def _lists(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: values.tolist() for name, values in arrays.items()}


def summarise_by_lead(
    records: Sequence[Mapping[str, Any]], baseline: str = ""
) -> tuple[dict[str, float], dict[str, Any]]:
    """Pools the sums of many nowcasts by lead time before any division.

    Nowcasts with different time steps meet at the lead times that they share.

    Args:
        records: each has `lead_minutes`, `thresholds`, and a `verification_record` of the `model` and of each of the
            `baselines`.
        baseline: the name of one to sum up instead of the model.

    Returns:
        Metrics: `mse` and `mae` over pixels, in colour over their channels, too; for rain `csi_<threshold>`, each the
        mean over lead times (0 without any event), and `crps`; for video `ssim`, and `frame_mse`, the squared error of
        a frame, summed over its pixels and channels.
        Details: `lead_minutes`, and by lead time `csi`, `far`, `pod`, `brier` by threshold, `fss` by threshold and
        window, `crps`, `mse`, `mae`, `ssim`; and over all lead times `reliability` by threshold. None where undefined.

    Raises:
        UsageError: no records.
    """
    if not records:
        raise UsageError("no nowcasts to verify: the evaluation has no usable sample with an observed future")
    of_one = [record["baselines"][baseline] if baseline else record["model"] for record in records]
    leads, parts = _by_lead(records, of_one)
    sums = {name: values.sum(0) for name, values in parts.items()}
    names = _names(records)
    scores = {"csi": csi(sums), "far": far(sums), "pod": pod(sums)} if names else {}
    pixels = sums["pixels"]
    details: dict[str, Any] = {"lead_minutes": leads}
    for score, values in scores.items():
        details[score] = {name: _plain(values[:, k]) for k, name in enumerate(names)}
    if names:
        shares = fss(sums)
        details["fss"] = {
            f"{name} in {window} px": _plain(shares[:, k, w])
            for k, name in enumerate(names)
            for w, window in enumerate(FSS_WINDOWS)
        }
        brier = ratio(sums["brier_error"].T, pixels)
        details["brier"] = {name: _plain(brier[k]) for k, name in enumerate(names)}
        pooled = reliability(_bins(of_one))
        details["reliability"] = {
            name: {part: _plain(values[k]) for part, values in pooled.items()} for k, name in enumerate(names)
        }
        details["crps"] = _plain(ratio(sums["crps_error"], pixels))
    for name, total in (("mse", sums["sq_error"]), ("mae", sums["abs_error"])):
        details[name] = _plain(ratio(total, pixels))
    if "ssim" in sums:
        details["ssim"] = _plain(ratio(sums["ssim"], sums["frames"]))
    return {name: tally.total for name, tally in _tallies(names, parts).items()}, details


def lead_tallies(records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
    """The model's metrics of `summarise_by_lead` as sums over nowcasts."""
    return _tallies(_names(records), _by_lead(records, [record["model"] for record in records])[1])


def _tallies(thresholds: Sequence[str], parts: Mapping[str, np.ndarray]) -> dict[str, Tally]:
    tallies = {}
    for k, name in enumerate(thresholds):
        counts = [parts[count][:, :, k] for count in _COUNTS]
        tallies[f"csi_{name}"] = Tally(np.concatenate(counts, axis=1).astype(np.float64), _mean_csi)
    for name, error in (("mse", "sq_error"), ("mae", "abs_error")):
        tallies[name] = _ratio_tally(parts[error], parts["pixels"])
    if "crps_error" in parts:
        tallies["crps"] = _ratio_tally(parts["crps_error"], parts["pixels"])
    if "ssim" in parts:
        tallies["ssim"] = _ratio_tally(parts["ssim"], parts["frames"])
        tallies["frame_mse"] = _ratio_tally(parts["sq_error"], parts["observed"])
    return tallies


def _ratio_tally(part: np.ndarray, whole: np.ndarray) -> Tally:
    """One sum by another, over all lead times, from `[records, leads]` each."""
    both = np.stack([part.sum(1), whole.sum(1)], axis=1).astype(np.float64)
    return Tally(both, lambda total: float(total[0] / total[1]) if total[1] else 0.0)


_COUNTS = ("hits", "misses", "false_alarms")


def _mean_csi(total: np.ndarray) -> float:
    """CSI averaged over lead times, from three counts of each; 0 without any event."""
    values = csi(dict(zip(_COUNTS, total.reshape(3, -1), strict=True)))
    return 0.0 if np.isnan(values).all() else float(np.nanmean(values))


def _names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{threshold:g}" for threshold in records[0]["thresholds"]]


def _by_lead(
    records: Sequence[Mapping[str, Any]], sums: Sequence[Mapping[str, Any]]
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The lead times, and a forecaster's sums, each `[records, leads, …]`, 0 where a nowcast has no such lead time."""
    minutes = [[round(float(lead), 3) for lead in record["lead_minutes"]] for record in records]
    leads = sorted({lead for of_one in minutes for lead in of_one})
    place = {lead: i for i, lead in enumerate(leads)}
    first = {name: values for name, values in sums[0].items() if name != "bins"}
    parts = {name: np.zeros((len(records), len(leads), *np.shape(values)[1:])) for name, values in first.items()}
    for n in range(len(records)):
        columns = [place[lead] for lead in minutes[n]]
        for name, part in parts.items():
            part[n, columns] = sums[n][name]
    return leads, parts


def _bins(sums: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """`bin_sums` of all nowcasts together."""
    return {name: np.sum([of_one["bins"][name] for of_one in sums], axis=0) for name in sums[0]["bins"]}


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
