"""Nowcaster: rain of the next hour from the last radar frames, or the next frames of a video, by ConvLSTMs.

The networks and their losses are in `encoder_forecaster` (rain) and `frame_predictor` (video); here are their data,
output table and judgement. Rain is in mm/h everywhere outside the network, NaN where no radar looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hybrid_models.contract import Batch, Hybrid, Loss, module_device, to_device
from hybrid_models.errors import UsageError
from hybrid_models.explanations import Explanation, Forecast
from hybrid_models.inputs import Sample
from hybrid_models.interface import DecodingConfig, HybridConfig
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.encoder_forecaster import EncoderForecaster, chances, extrapolate
from hybrid_models.nowcaster.frame_predictor import FramePredictor
from hybrid_models.nowcaster.interface import NowcasterInterface
from hybrid_models.nowcaster.preprocess import UNKNOWN_TIME
from hybrid_models.scores.frames import RAIN_THRESHOLDS
from hybrid_models.scores.leads import lead_tallies, summarise_by_lead, verification_record
from hybrid_models.scores.texts import Tally
from hybrid_models.search.beam import inference

WET_MM_H = 0.1
"""A pixel with at least this much rain is wet."""


# ---- the hybrid ----------------------------------------------------------------------------------------------------
class Nowcaster(NowcasterInterface, Hybrid):
    """Frames in, frames out. See `Hybrid` for the methods' contract."""

    def __init__(self, config: HybridConfig, assets: Mapping[str, str]) -> None:
        super().__init__(config, assets)
        self.config: NowcasterConfig = cast(NowcasterConfig, config)
        sizes = (self.config.patch, self.config.hidden_dims, self.config.kernel_size)
        channels = math.prod(self.config.pixel_shape)
        self.net = EncoderForecaster(*sizes) if self.config.unit == "mm/h" else FramePredictor(*sizes, channels)

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """`past` float16 [B,P,H,W]; `step_minutes` [B], and `minutes`, a list of the same; lists `n_leads` and
        `issue_time`; `future` float16 [B,L,H,W] with L the most leads in the batch, NaN (no loss) beyond a sample's
        own. Frames in colour are [B,…,H,W,3]."""
        if rng is not None and self.config.augment:
            samples = [_turned(sample, rng) for sample in samples]
        batch: Batch = {
            name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in ("past", "step_minutes")
        }
        batch["minutes"] = batch["step_minutes"].tolist()
        for name in ("n_leads", "issue_time"):
            batch[name] = [sample[name].item() for sample in samples]
        if all("future" in sample for sample in samples):
            futures = [torch.from_numpy(np.ascontiguousarray(sample["future"])) for sample in samples]
            batch["future"] = torch.nn.utils.rnn.pad_sequence(futures, batch_first=True, padding_value=torch.nan)
        return batch

    def forward(self, batch: Batch) -> Loss:
        """The network's loss over what was observed: future rain, or all frames of a video after the first."""
        return self.net.loss(batch["past"].float(), batch["step_minutes"], batch["future"].float())

    def nowcast(self, past: np.ndarray, n_leads: int, step_minutes: float) -> np.ndarray:
        """Frames of the next `n_leads` steps `[n_leads, H, W]` from at least `past_frames` past ones `[time, H, W]`.

        Both in mm/h, NaN where nothing was measured (intensity 0 … 1 for video, in colour `[…, H, W, 3]`); any grid.

        Raises:
            UsageError: too few past frames, not the model's channels, or values below 0.
        """
        pixel_shape, least = self.config.pixel_shape, self.config.past_frames
        if past.ndim != 3 + len(pixel_shape) or past.shape[3:] != pixel_shape or len(past) < least:
            wanted = ", ".join(map(str, ("time", "H", "W", *pixel_shape)))
            raise UsageError(f"past is {past.shape}: [{wanted}] with at least {least} frames")
        if (lowest := np.fmin.reduce(past, axis=None, initial=0)) < 0:
            raise UsageError(f"past holds {lowest:g}: values are 0 or more, and NaN where nothing was measured")
        device = module_device(self)
        frames = torch.from_numpy(np.ascontiguousarray(past[-self.config.past_frames :], np.float32)).to(device)
        with inference(self):
            forecast, _ = self.net(frames[None], torch.tensor([float(step_minutes)], device=device), n_leads)
            return np.asarray(forecast[0].cpu().numpy())

    def predict(self, batch: Batch, decoding: DecodingConfig) -> list[dict[str, Any]]:
        n_leads = batch["n_leads"]
        with inference(self):
            forecast, logits = self.net(batch["past"].float(), batch["step_minutes"], max(n_leads))
            kept, percents = forecast.half(), None if logits is None else _percents(logits)
            summaries = _summaries(kept, torch.isfinite(batch["past"][:, -1])).tolist()
        frames = kept.numpy(force=True).astype("<f2", copy=False)
        chance = None if percents is None else percents.numpy(force=True)
        times = zip(batch["issue_time"], batch["minutes"], strict=True)
        return [
            _frame_columns(frames[i, :leads], issue_time, step_minutes)
            | _summary_columns(self.config.unit, *(values[:leads] for values in summaries[i]))
            | _probability_columns(None if chance is None else chance[i, :leads])
            for i, (leads, (issue_time, step_minutes)) in enumerate(zip(n_leads, times, strict=True))
        ]

    def explain(self, samples: Sequence[Sample], decoding: DecodingConfig) -> list[Explanation]:
        batch = to_device(self.collate(samples), module_device(self))
        return [
            Forecast(
                sample["past"].astype(np.float32),
                np.frombuffer(output["frames"], "<f2").reshape(output["frames_shape"]).astype(np.float32),
                sample["future"].astype(np.float32) if "future" in sample else None,
                output["lead_minutes"],
                self.config.unit,
                _probabilities(output)[:, RAIN_THRESHOLDS.index(1)] if output["thresholds_mm_h"] else None,
            )
            for sample, output in zip(samples, self.predict(batch, decoding), strict=True)
        ]

    def record(self, sample: Sample, output: Mapping[str, Any]) -> dict[str, Any]:
        """Counts and error sums per lead time, of the nowcast and of the `baselines`: persistence (the newest frame,
        unchanged) and for rain extrapolation (the newest frame, moved along its motion)."""
        forecast = np.frombuffer(output["frames"], "<f2").reshape(output["frames_shape"])
        observed, thresholds = sample["future"], output["thresholds_mm_h"]
        probability = _probabilities(output) if thresholds else None
        baselines = {"persistence": np.broadcast_to(sample["past"][-1], forecast.shape)}
        if thresholds:
            past = torch.from_numpy(sample["past"].astype(np.float32))
            baselines["extrapolation"] = extrapolate(past[None], len(forecast))[0].numpy()
        return {
            "lead_minutes": list(output["lead_minutes"]),
            "thresholds": list(thresholds),
            "model": verification_record(forecast, observed, thresholds, probability),
            "baselines": {
                name: verification_record(frames, observed, thresholds) for name, frames in baselines.items()
            },
        }

    @classmethod
    def summarise(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """CSI averaged over lead times and CRPS, both for rain only; MSE and MAE over all pixels and channels, in the
        forecast's unit (mm/h, or intensity 0 … 1); details by lead time, those of all baselines under `baselines`. The
        baseline is persistence, or for rain extrapolation along its motion."""
        metrics, details = summarise_by_lead(records)
        found = {name: summarise_by_lead(records, name) for name in records[0]["baselines"]}
        details |= {
            "samples": len(records),
            "baselines": {name: {"metrics": scores, **by_lead} for name, (scores, by_lead) in found.items()},
        }
        rival = "extrapolation" if "extrapolation" in found else "persistence"
        return {"metrics": metrics, "baseline": {"name": rival, **found[rival][0]}, "details": details}

    @classmethod
    def part(cls, shard: str, record: Mapping[str, Any]) -> str | None:
        """The event: a radar shard has one. Other shards are cut anywhere."""
        return shard.rsplit("/", 1)[-1] if shard.lower().endswith(".nc") else None

    @classmethod
    def tallies(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
        return lead_tallies(records)


def _turned(sample: Sample, rng: np.random.Generator) -> Sample:
    """One of the eight turned or mirrored versions of a sample."""
    turns, mirror = int(rng.integers(4)), int(rng.integers(2))
    turned = dict(sample)
    for name in ("past", "future"):
        frames = np.rot90(sample[name], turns, axes=(1, 2))
        turned[name] = np.ascontiguousarray(frames[:, :, ::-1] if mirror else frames)
    return turned


def _percents(logits: Tensor) -> Tensor:
    """Probabilities as uint8 per cent, [B,L,thresholds,H,W]: never higher for more rain than for less."""
    percents = torch.empty_like(logits, dtype=torch.uint8)
    for lead, of_lead in enumerate(logits.split(1, dim=1)):  # which fits into a cache
        for threshold, chance in enumerate(chances(of_lead)):
            percents[:, lead : lead + 1, threshold] = (chance * 100).round_()
    return percents


def _probability_columns(percents: np.ndarray | None) -> dict[str, Any]:
    """The columns of one nowcast's probabilities uint8 [L,thresholds,H,W]; none for video."""
    if percents is None:
        return {"thresholds_mm_h": [], "probability": None}
    return {"thresholds_mm_h": list(RAIN_THRESHOLDS), "probability": percents.tobytes()}


def _probabilities(output: Mapping[str, Any]) -> np.ndarray:
    """Of a row of the table: float32 [L,thresholds,H,W], 0 … 1."""
    leads, height, width = output["frames_shape"]
    shape = (leads, len(output["thresholds_mm_h"]), height, width)
    return np.frombuffer(output["probability"], np.uint8).reshape(shape).astype(np.float32) / 100


def _summaries(frames: Tensor, covered: Tensor) -> Tensor:
    """Mean, maximum and wet share of nowcasts by lead time, float64 [B,3,L].

    Args:
        frames: as the table keeps them, float16 [B,L,H,W], in colour [B,L,H,W,3], no value negative.
        covered: [B,H,W], in colour [B,H,W,3]; true where the newest frame has a value, and only what is said of these
            pixels counts. But a mean is NaN where any pixel is.
    """
    covered = covered.flatten(1)
    pixels = covered.sum(1).double()
    found = []
    for frame in frames.flatten(2).unbind(1):
        seen = frame.float().masked_fill_(~covered, 0)
        # Sums of float16 are exact in float64: in any order, on any device.
        sums = (seen.sum(1, dtype=torch.float64) + 0 * frame.sum(1, dtype=torch.float64), (seen >= WET_MM_H).sum(1))
        found.append(torch.stack((sums[0] / pixels, seen.amax(1).double(), sums[1] / pixels), dim=1))
    return torch.stack(found, dim=2)


def _summary_columns(unit: str, mean: list[float], most: list[float], wet: list[float]) -> dict[str, Any]:
    """One nowcast by lead time; what is said of rain alone is null for video."""
    rain = {"mean_mm_h": mean, "max_mm_h": most, "wet_fraction": wet} if unit == "mm/h" else {}
    return {"mean_mm_h": None, "max_mm_h": None, "wet_fraction": None, **rain, "mean": mean, "max": most, "unit": unit}


def _frame_columns(frames: np.ndarray, issue_time: int, step_minutes: float) -> dict[str, Any]:
    """One nowcast of float16 `frames` `[L, H, W]`, in colour `[L, H, W, 3]`, and what it is of."""
    return {
        "issue_time": None if issue_time == UNKNOWN_TIME else issue_time,
        "step_minutes": step_minutes,
        "lead_minutes": [step_minutes * (lead + 1) for lead in range(len(frames))],
        "frames": frames.tobytes(),
        "frames_shape": list(frames.shape),
    }
