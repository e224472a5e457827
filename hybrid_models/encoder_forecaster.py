"""The nowcaster's network: ConvLSTM encoder and forecaster, for rain in coordinates that move along with it.

Shi et al. 2015 with three things given to the network that few events cannot teach it:

- Rain moves. The frames are first moved along their own optical flow to where they would be at the issue time; the
  ConvLSTMs see what is left, growth and decay (Lagrangian coordinates, as Ritvanen et al. 2023), and what they forecast
  is moved on along the flow.
- The newest frame is the first guess. The network adds changes to it, and untrained it adds none: persistence, along
  the flow for rain.
- Small scales are forgotten first. What the network may change is how much of each scale of the newest frame is left
  (the cascade of S-PROG, Seed 2003, with weights by place and lead time), and by how much the rain grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from hybrid_models.advection import estimate_motion, move, stays_inside, trajectories
from hybrid_models.contract import autocast
from hybrid_models.conv_lstm import ConvLSTM

SCALES = 5
"""Levels of the cascade: features of about 3, 5, 9, 17 and 33 pixels."""


class EncoderForecaster(nn.Module):
    """Past frames → future frames, both on a scale of 0 … 1.

    Args:
        patch: side of the square of pixels that is one cell of the ConvLSTMs' grid (space to depth).
        hidden_dims: channels of each layer of encoder and forecaster.
        kernel_size: of the ConvLSTMs.
        motion: forecast along the frames' optical flow. Otherwise pixels stay where they are, and the network draws the
            changes of every pixel itself.
    """

    def __init__(self, patch: int, hidden_dims: Sequence[int], kernel_size: int, motion: bool) -> None:
        super().__init__()
        self.patch = patch
        self.motion = motion
        first, last = hidden_dims[0], hidden_dims[-1]
        self.stem = nn.Conv2d(2 * patch**2 + 1, first, 3, padding=1)
        self.encoder = ConvLSTM(first, hidden_dims, kernel_size)
        self.forecaster = ConvLSTM(first, hidden_dims, kernel_size)
        self.neck = nn.Conv2d(last, last, 3, padding=1)
        self.head = nn.Conv2d(last, SCALES + 1 if motion else patch**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, frames: Tensor, covered: Tensor, step_minutes: Tensor, n_leads: int) -> Tensor:
        """Forecasts `[B, n_leads, H, W]`.

        Args:
            frames: `[B, P, H, W]` oldest first, 0 where nothing was measured; H and W multiples of `patch`.
            covered: `[B, P, H, W]` 1 where something was measured.
            step_minutes: `[B]` minutes between frames.
        """
        path = None
        if self.motion:
            with torch.no_grad():
                motion = estimate_motion(frames, covered)
                frames, covered = align(frames, covered, motion)
                path = trajectories(motion, n_leads)
        newest = frames[:, -1]
        parts = scales(newest) if self.motion else None
        forecasts = []
        for lead, changes in enumerate(self._changes(frames, covered, step_minutes, n_leads)):
            change = self._drawn(changes) if parts is None else self._grown(changes, parts)
            forecast = (newest + change).clamp(0, 1)
            forecasts.append(forecast if path is None else move(forecast[:, None], path[:, lead])[:, 0])
        return torch.stack(forecasts, dim=1)

    def _changes(self, frames: Tensor, covered: Tensor, step_minutes: Tensor, n_leads: int) -> list[Tensor]:
        """The head's maps `[B, channels, H/patch, W/patch]` for each lead time."""
        batch, past, height, width = frames.shape
        with autocast(frames.device):
            states = self.encoder.initial_states(batch, height // self.patch, width // self.patch)
            for t in range(past):
                states = self.encoder.step(
                    self._cells(frames[:, t], covered[:, t], (t - past + 1) * step_minutes), states
                )
            changes = []
            for lead in range(1, n_leads + 1):
                cells = self._cells(frames[:, -1], covered[:, -1], lead * step_minutes)
                states = self.forecaster.step(cells, states)
                changes.append(self.head(F.leaky_relu(self.neck(states[-1][0]), 0.2)).float())
        return changes

    def _cells(self, frame: Tensor, covered: Tensor, minutes: Tensor) -> Tensor:
        """A frame `[B, H, W]`, where it is measured, and its time from the issue time → `[B, D, H/patch, W/patch]`."""
        pixels = F.pixel_unshuffle(torch.stack((frame, covered), dim=1), self.patch)
        hours = (minutes / 60).view(-1, 1, 1, 1).expand(-1, 1, *pixels.shape[-2:])
        return F.leaky_relu(self.stem(torch.cat((pixels, hours), dim=1)), 0.2)

    def _drawn(self, changes: Tensor) -> Tensor:
        """Changes of single pixels `[B, H, W]`."""
        return F.pixel_shuffle(changes, self.patch)[:, 0]

    def _grown(self, changes: Tensor, parts: Tensor) -> Tensor:
        """Smooth weights times the newest frame's scales `[B, SCALES + 1, H, W]`, summed: `[B, H, W]`."""
        weights = F.interpolate(changes, parts.shape[-2:], mode="bilinear")
        return (weights * parts).sum(dim=1)


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
    """Splits `[B, H, W]` into `SCALES` parts from fine to coarse and a smooth rest, `[B, SCALES + 1, H, W]`, whose sum
    it is."""
    parts, rest = [], frame[:, None]
    for level in range(1, SCALES + 1):
        smooth = rest
        for _ in range(2):  # twice a box is nearly a Gaussian
            smooth = F.avg_pool2d(smooth, 2**level + 1, 1, 2 ** (level - 1), count_include_pad=False)
        parts.append(rest - smooth)
        rest = smooth
    return torch.cat((*parts, rest), dim=1)
