"""The nowcaster's network: ConvLSTM encoder and forecaster, for rain in coordinates that move along with it.

Shi et al. 2015 with three things given to the network that few events cannot teach it:

- Rain moves. The frames are first moved along their own optical flow to where they would be at the issue time; the
  ConvLSTMs see what is left, growth and decay (Lagrangian coordinates, as Ritvanen et al. 2023), and what they forecast
  is moved on along the flow.
- The newest frame is the first guess. The network changes it, and untrained it changes nothing: what it is trained from
  is extrapolation along the flow, the usual baseline.
- Small scales are forgotten first. What the network may change is how much of each scale of the newest frame is left
  (the cascade of S-PROG, Seed 2003, with weights by place and lead time). The scales are taken of the rain rate itself:
  smoothed logarithms lose the heavy rain.

Beside the forecast it says how sure it is: the probability that the rain reaches each of `RAIN_THRESHOLDS` is a
logistic regression on the forecast (Wilks 2009), whose slope and offset the network gives by place, lead time and
threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from hybrid_models.advection import estimate_motion, move, stays_inside, trajectories
from hybrid_models.contract import Loss, autocast
from hybrid_models.conv_lstm import ConvLSTM
from hybrid_models.frame_metrics import RAIN_THRESHOLDS

DRIZZLE_MM_H = 0.1
"""Up to about here the network's scale of rain is linear, above it is logarithmic."""
MAX_MM_H = 100.0
"""1 on the network's scale, and the most that is forecast."""
SCALES = 5
"""Levels of the cascade: details of about 2, 4, 8, 16 and 32 pixels."""

_SLOPE = 20.0
"""Slope of an untrained probability, per unit of the network's scale."""
_EVENTS = ((0.5, 0.37, 0.2), (1.0, 0.33, 0.3), (2.0, 0.28, 0.5), (5.0, 0.18, 1.3), (10.0, 0.10, 2.6))
"""Rain rate that is an event (mm/h), cost of a false alarm, weight in the loss."""
_STEEPNESS = 30.0
"""Slope of the softened threshold, per unit of the network's scale: from 10 to 90 % within a factor of 1.7 in rain."""


def to_scale(rain: Tensor) -> Tensor:
    """mm/h → logarithmic 0 … 1."""
    return torch.log1p(rain.clamp(max=MAX_MM_H) / DRIZZLE_MM_H) / math.log1p(MAX_MM_H / DRIZZLE_MM_H)


class Nowcast(NamedTuple):
    """What is forecast.

    Args:
        frames: `[B, L, H, W]` mm/h.
        logits: of the probability that the rain is at least each of `RAIN_THRESHOLDS`, `[B, L, thresholds, H, W]`.
    """

    frames: Tensor
    logits: Tensor


class EncoderForecaster(nn.Module):
    """Past frames of rain → future ones.

    Args:
        patch: side of the square of pixels that is one cell of the ConvLSTMs' grid (space to depth).
        hidden_dims: channels of each layer of encoder and forecaster.
        kernel_size: of the ConvLSTMs.
        event_weight: in the loss, of missed events and false alarms beside the absolute error.
    """

    def __init__(self, patch: int, hidden_dims: Sequence[int], kernel_size: int, event_weight: float) -> None:
        super().__init__()
        self.patch = patch
        self.event_weight = event_weight
        first, last = hidden_dims[0], hidden_dims[-1]
        self.stem = nn.Conv2d(2 * patch**2 + 1, first, 3, padding=1)
        self.encoder = ConvLSTM(first, hidden_dims, kernel_size)
        self.forecaster = ConvLSTM(first, hidden_dims, kernel_size)
        self.neck = nn.Conv2d(last, last, 3, padding=1)
        maps = SCALES + 1 + 2 * len(RAIN_THRESHOLDS)
        self.head = nn.Conv2d(last, maps, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, past: Tensor, step_minutes: Tensor, n_leads: int) -> Nowcast:
        """Forecasts `n_leads` steps.

        Args:
            past: `[B, P, H, W]` mm/h, oldest first, NaN where nothing was measured; any grid.
            step_minutes: `[B]` minutes between frames, past and future.
        """
        covered, past = torch.isfinite(past).to(past.dtype), torch.nan_to_num(past)
        moved = torch.stack(self._along_motion(to_scale(past), covered, past[:, -1], step_minutes, n_leads), dim=1)
        return Nowcast(moved[:, :, 0], moved[:, :, 1:])

    def loss(self, past: Tensor, step_minutes: Tensor, future: Tensor) -> Loss:
        """Error of the forecast and surprise at what came, where `future` `[B, L, H, W]` mm/h is measured."""
        forecast, logits = self(past, step_minutes, future.shape[1])
        measured, rain = torch.isfinite(future), torch.nan_to_num(future)
        errors = _rain_error(forecast, rain, self.event_weight) + _surprise(logits, rain)
        return Loss((errors * measured).sum(), measured.sum())

    def _along_motion(
        self, frames: Tensor, covered: Tensor, newest: Tensor, step_minutes: Tensor, n_leads: int
    ) -> list[Tensor]:
        """Changes the weights of the newest frame's scales, smoothly by place, and moves the sum along.

        Each lead's forecast and logits, `[B, 1 + thresholds, H, W]`. The logits teach the forecast nothing.
        """
        with torch.no_grad():
            motion = estimate_motion(frames, covered)
            frames, covered = align(frames, covered, motion)
            path = trajectories(motion, n_leads)
            parts = scales(newest)
            levels = to_scale(torch.tensor(RAIN_THRESHOLDS, device=newest.device)).view(-1, 1, 1)
        height, width = newest.shape[-2:]
        moved = []
        for lead, maps in enumerate(self._maps(frames, covered, step_minutes, n_leads)):
            maps = F.interpolate(maps, scale_factor=self.patch, mode="bilinear")[..., :height, :width]
            changes, slopes, offsets = maps.split((SCALES + 1, len(levels), len(levels)), dim=1)
            forecast = ((1 + changes) * parts).sum(dim=1, keepdim=True).clamp(0, MAX_MM_H)
            logits = _SLOPE * slopes.exp() * (to_scale(forecast.detach()) - levels) + offsets
            moved.append(move(torch.cat((forecast, logits), dim=1), path[:, lead]))
        return moved

    def _maps(self, frames: Tensor, covered: Tensor, step_minutes: Tensor, n_leads: int) -> list[Tensor]:
        """The head's maps for each lead time, `[B, channels, H/patch, W/patch]`, rounded up to whole cells."""
        margin = (0, -frames.shape[3] % self.patch, 0, -frames.shape[2] % self.patch)
        frames, covered = F.pad(frames, margin), F.pad(covered, margin)
        batch, past, height, width = frames.shape
        with autocast(frames.device):
            states = self.encoder.initial_states(batch, height // self.patch, width // self.patch)
            for t in range(past):
                cells = self._cells(frames[:, t], covered[:, t], (t - past + 1) * step_minutes)
                states = self.encoder.step(cells, states)
            maps = []
            for lead in range(1, n_leads + 1):
                cells = self._cells(frames[:, -1], covered[:, -1], lead * step_minutes)
                states = self.forecaster.step(cells, states)
                maps.append(self.head(F.leaky_relu(self.neck(states[-1][0]), 0.2)).float())
        return maps

    def _cells(self, frame: Tensor, covered: Tensor, minutes: Tensor) -> Tensor:
        """A frame `[B, H, W]`, where it is measured, and its time from the issue time → `[B, D, H/patch, W/patch]`."""
        pixels = F.pixel_unshuffle(torch.stack((frame, covered), dim=1), self.patch)
        hours = (minutes / 60).view(-1, 1, 1, 1).expand(-1, 1, *pixels.shape[-2:])
        return F.leaky_relu(self.stem(torch.cat((pixels, hours), dim=1)), 0.2)


def extrapolate(past: Tensor, n_leads: int) -> Tensor:
    """The newest frame moved along its motion, the usual baseline: past `[B, P, H, W]` mm/h, NaN where nothing was
    measured → `[B, L, H, W]`."""
    covered, rain = torch.isfinite(past).to(past.dtype), torch.nan_to_num(past)
    path = trajectories(estimate_motion(to_scale(rain), covered), n_leads)
    return torch.cat([move(rain[:, -1:], displacement) for displacement in path.unbind(1)], dim=1)


def align(frames: Tensor, covered: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Moves every frame along `motion` to the newest frame's time; what would come from outside is not covered."""
    back = trajectories(motion, frames.shape[1] - 1)
    aligned = []
    for age in range(frames.shape[1] - 1, 0, -1):
        displacement = back[:, age - 1]
        moved = move(torch.stack((frames[:, -1 - age], covered[:, -1 - age]), dim=1), displacement)
        aligned.append(moved * stays_inside(displacement)[:, None])
    aligned.append(torch.stack((frames[:, -1], covered[:, -1]), dim=1))
    both = torch.stack(aligned, dim=1)
    return both[:, :, 0], both[:, :, 1]


def scales(frame: Tensor) -> Tensor:
    """Splits `[B, H, W]` into `SCALES` parts from fine to coarse and a smooth rest: `[B, SCALES + 1, H, W]`, summing to
    the frame (a Laplacian pyramid, Burt & Adelson 1983, with every level at full size)."""
    parts, rest, coarse = [], frame[:, None], frame[:, None]
    for _ in range(SCALES):
        coarse = F.avg_pool2d(coarse, 2, ceil_mode=True)
        smooth = F.interpolate(coarse, frame.shape[-2:], mode="bilinear")
        parts.append(rest - smooth)
        rest = smooth
    return torch.cat((*parts, rest), dim=1)


def _rain_error(forecast: Tensor, truth: Tensor, event_weight: float) -> Tensor:
    """Error of each pixel `[B, L, H, W]` from rain in mm/h: absolute, on the network's scale, and in events.

    For the event "at least so many mm/h" a false alarm costs c and a miss 1 - c: forecasting it pays wherever it is
    more likely than c (the cost-loss model, Murphy 1977). CSI is best with c = CSI / (1 + CSI), and cares for an event
    the more the rarer it is: `_EVENTS` has round figures of usual rain. The step at a threshold is softened.
    """
    forecast, truth_scaled = to_scale(forecast), to_scale(truth)
    error = (forecast - truth_scaled).abs()
    for threshold, cost, weight in _EVENTS:
        level = to_scale(torch.tensor(threshold)).item()
        warned, rained = torch.sigmoid((forecast - level) * _STEEPNESS), truth >= threshold
        error = error + event_weight * weight * torch.where(rained, (1 - cost) * (1 - warned), cost * warned)
    return error


def _surprise(logits: Tensor, truth: Tensor) -> Tensor:
    """Negative log likelihood of what was observed at each pixel `[B, L, H, W]`, summed over the thresholds."""
    rained = truth.unsqueeze(2) >= torch.tensor(RAIN_THRESHOLDS, device=truth.device).view(-1, 1, 1)
    return F.binary_cross_entropy_with_logits(logits, rained.to(logits.dtype), reduction="none").sum(dim=2)
