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

Video of intensities (Moving MNIST) has none of this: there the forecaster draws every pixel, as in Shi et al.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from hybrid_models.advection import estimate_motion, move, stays_inside, trajectories
from hybrid_models.contract import autocast
from hybrid_models.conv_lstm import ConvLSTM
from hybrid_models.frame_metrics import RAIN_THRESHOLDS
from hybrid_models.nowcaster_inputs import Unit

DRIZZLE_MM_H = 0.1
"""Up to about here the network's scale of rain is linear, above it is logarithmic."""
MAX_MM_H = 100.0
"""1 on the network's scale, and the most that is forecast."""
SCALES = 5
"""Levels of the cascade: details of about 2, 4, 8, 16 and 32 pixels."""

_SLOPE = 20.0
"""Slope of an untrained probability, per unit of the network's scale."""
_DARK = -3.0
"""Logit of an untrained pixel of video: most of a frame is dark."""


def to_scale(frames: Tensor, unit: Unit) -> Tensor:
    """mm/h → logarithmic 0 … 1; intensities 0 … 1 stay as they are."""
    if unit == "intensity":
        return frames
    return torch.log1p(frames.clamp(max=MAX_MM_H) / DRIZZLE_MM_H) / math.log1p(MAX_MM_H / DRIZZLE_MM_H)


class Nowcast(NamedTuple):
    """What is forecast.

    Args:
        frames: `[B, L, H, W]`, in the unit of the past frames.
        logits: of the probability that the rain is at least each of `RAIN_THRESHOLDS`, `[B, L, thresholds, H, W]`; None
            for video.
    """

    frames: Tensor
    logits: Tensor | None


class EncoderForecaster(nn.Module):
    """Past frames → future frames.

    Args:
        unit: of the frames, in and out. Rain in mm/h is forecast along its motion, by changing the newest frame; video
            of intensities 0 … 1 is drawn.
        patch: side of the square of pixels that is one cell of the ConvLSTMs' grid (space to depth).
        hidden_dims: channels of each layer of encoder and forecaster.
        kernel_size: of the ConvLSTMs.
    """

    def __init__(self, unit: Unit, patch: int, hidden_dims: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        self.unit = unit
        self.patch = patch
        first, last = hidden_dims[0], hidden_dims[-1]
        self.stem = nn.Conv2d(2 * patch**2 + 1, first, 3, padding=1)
        self.encoder = ConvLSTM(first, hidden_dims, kernel_size)
        self.forecaster = ConvLSTM(first, hidden_dims, kernel_size)
        self.neck = nn.Conv2d(last, last, 3, padding=1)
        rain_maps = SCALES + 1 + 2 * len(RAIN_THRESHOLDS)
        self.head = nn.Conv2d(last, rain_maps if unit == "mm/h" else patch**2, 3, padding=1)
        if unit == "mm/h":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        else:
            nn.init.constant_(self.head.bias, _DARK)  # type: ignore[arg-type]

    def forward(self, past: Tensor, step_minutes: Tensor, n_leads: int) -> Nowcast:
        """Forecasts `n_leads` steps.

        Args:
            past: `[B, P, H, W]` oldest first, NaN where nothing was measured; any grid.
            step_minutes: `[B]` minutes between frames, past and future.
        """
        height, width = past.shape[-2:]
        covered, past = torch.isfinite(past).to(past.dtype), torch.nan_to_num(past)
        frames = to_scale(past, self.unit)
        if self.unit == "mm/h":
            moved = torch.stack(self._along_motion(frames, covered, past[:, -1], step_minutes, n_leads), dim=1)
            return Nowcast(moved[:, :, 0], moved[:, :, 1:])
        drawn = torch.stack(self._drawn(frames, covered, step_minutes, n_leads), dim=1)
        return Nowcast(drawn[..., :height, :width], None)

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
            levels = to_scale(torch.tensor(RAIN_THRESHOLDS, device=newest.device), "mm/h").view(-1, 1, 1)
        height, width = newest.shape[-2:]
        moved = []
        for lead, maps in enumerate(self._maps(frames, covered, step_minutes, n_leads)):
            maps = F.interpolate(maps, scale_factor=self.patch, mode="bilinear")[..., :height, :width]
            changes, slopes, offsets = maps.split((SCALES + 1, len(levels), len(levels)), dim=1)
            forecast = ((1 + changes) * parts).sum(dim=1, keepdim=True).clamp(0, MAX_MM_H)
            logits = _SLOPE * slopes.exp() * (to_scale(forecast.detach(), "mm/h") - levels) + offsets
            moved.append(move(torch.cat((forecast, logits), dim=1), path[:, lead]))
        return moved

    def _drawn(self, frames: Tensor, covered: Tensor, step_minutes: Tensor, n_leads: int) -> list[Tensor]:
        """Draws every pixel anew."""
        return [
            F.pixel_shuffle(logits, self.patch)[:, 0].sigmoid()
            for logits in self._maps(frames, covered, step_minutes, n_leads)
        ]

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
