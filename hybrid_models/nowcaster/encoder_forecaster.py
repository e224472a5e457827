"""The nowcaster's network: ConvLSTM encoder and forecaster, for rain in coordinates that move along with it.

Shi et al. 2015 with things given to the network that few events cannot teach it:

- Rain moves. The frames are first moved along their own optical flow to where they would be at the issue time; the
  ConvLSTMs see what is left, growth and decay (Lagrangian coordinates, as Ritvanen et al. 2023), and what they forecast
  is moved on along the flow.
- Small scales are forgotten first, as fast as the past frames tell (S-PROG, Seed 2003): how alike a scale of two
  successive frames is, along the flow, to the power of the lead time, is how much of it is left. The scales are taken
  of the rain rate itself: smoothed logarithms lose the heavy rain. That is the first guess.

What it learns is how likely the rain reaches each of `RAIN_THRESHOLDS`: a logistic regression on the first guess (Wilks
2009), whose slope and offset the network gives by place, lead time and threshold. Likelihood is a proper score: unlike
errors of amounts, it does not reward too much rain or too little. The forecast has as much rain as the newest frame,
moved along, and as heavy (probability matching, Ebert 2001): its values, the highest where most rain is expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, count, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from hybrid_models.contract import Loss, autocast
from hybrid_models.layers.advection import MOTION_FRAMES, estimate_motion, move, stays_inside, trajectories
from hybrid_models.layers.conv_lstm import ConvLSTM
from hybrid_models.scores.frames import RAIN_THRESHOLDS

DRIZZLE_MM_H = 0.1
"""Up to about here the network's scale of rain is linear, above it is logarithmic."""
MAX_MM_H = 100.0
"""1 on the network's scale, and the most that is forecast."""
SCALES = 5
"""Levels of the cascade: details of about 2, 4, 8, 16 and 32 pixels."""

_SLOPE = 20.0
"""Slope of an untrained probability, per unit of the network's scale."""
_EVEN = 1e-3
"""Differences of expected rain below about this share of the newest frame mean nothing."""
_TINY = 1e-6
_WHOLE = 0.99
"""Share of a moved pixel that must have been measured."""


def to_scale(rain: Tensor) -> Tensor:
    """mm/h → logarithmic 0 … 1."""
    return rain.clamp(max=MAX_MM_H).div_(DRIZZLE_MM_H).log1p_().div_(math.log1p(MAX_MM_H / DRIZZLE_MM_H))


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
    """

    def __init__(self, patch: int, hidden_dims: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        self.patch = patch
        first, last = hidden_dims[0], hidden_dims[-1]
        self.stem = nn.Conv2d(2 * patch**2 + 1, first, 3, padding=1)
        self.encoder = ConvLSTM(first, hidden_dims, kernel_size)
        self.forecaster = ConvLSTM(first, hidden_dims, kernel_size)
        self.neck = nn.Conv2d(last, last, 3, padding=1)
        self.head = nn.Conv2d(last, 2 * len(RAIN_THRESHOLDS), 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, past: Tensor, step_minutes: Tensor, n_leads: int) -> Nowcast:
        """Forecasts `n_leads` steps.

        Args:
            past: `[B, P, H, W]` mm/h, oldest first, NaN where nothing was measured; any grid.
            step_minutes: `[B]` minutes between frames, past and future.
        """
        newest, seen, logits = self._chances(past, step_minutes, n_leads)
        return Nowcast(match(expected_rain(logits), newest, seen), logits)

    def loss(self, past: Tensor, step_minutes: Tensor, future: Tensor) -> Loss:
        """Surprise at what came: the negative log likelihood of each threshold being reached or not, summed over the
        thresholds, where `future` `[B, L, H, W]` mm/h is measured."""
        *_, logits = self._chances(past, step_minutes, future.shape[1])
        rained = (torch.nan_to_num(future).unsqueeze(2) >= _thresholds(future)).to(logits.dtype)
        surprise = F.binary_cross_entropy_with_logits(logits, rained, reduction="none").sum(dim=2)
        measured = torch.isfinite(future)
        return Loss((surprise * measured).sum(), measured.sum())

    def _chances(self, past: Tensor, step_minutes: Tensor, n_leads: int) -> tuple[Tensor, Tensor, Tensor]:
        """From `forward`'s arguments the newest frame moved along and where that was measured, `[B, L, H, W]` each, and
        the logits `[B, L, thresholds, H, W]`."""
        covered, past = torch.isfinite(past).to(past.dtype), torch.nan_to_num(past).clamp_(0, MAX_MM_H)
        newest, seen = past[:, -1:], covered[:, -1:]
        with torch.no_grad():
            motion = estimate_motion(to_scale(past[:, -MOTION_FRAMES:]), covered[:, -MOTION_FRAMES:])
            path = trajectories(motion, max(n_leads, past.shape[1] - 1))
            aligned, covered = align(past, covered, path)
            guesses = first_guesses(past[:, -1], seen[:, 0], persistences(aligned, covered))
            levels = to_scale(_thresholds(past))
        height, width = past.shape[-2:]
        maps_of_leads = self._maps(to_scale(aligned), covered, step_minutes, n_leads)

        def moved(lead: int, guess: Tensor) -> Tensor:
            slopes, offsets = (
                F.interpolate(maps, scale_factor=self.patch, mode="bilinear")[..., :height, :width]
                for maps in maps_of_leads[lead].split(len(levels), dim=1)
            )
            logits = offsets.addcmul_(slopes.exp_(), guess.unsqueeze(1) - levels, value=_SLOPE)
            return move(torch.cat((newest, seen, logits), dim=1), path[:, lead])

        everything = _stacked(map(moved, range(n_leads), guesses), n_leads)
        newest_moved, seen_moved, logits = everything.split((1, 1, len(levels)), dim=2)
        return newest_moved.squeeze(2), seen_moved.squeeze(2) > _WHOLE / 2, logits

    def _maps(self, frames: Tensor, covered: Tensor, step_minutes: Tensor, n_leads: int) -> list[Tensor]:
        """The head's maps for each lead time, `[B, channels, H/patch, W/patch]`, rounded up to whole cells."""
        margin = (0, -frames.shape[3] % self.patch, 0, -frames.shape[2] % self.patch)
        if any(margin):
            frames, covered = F.pad(frames, margin), F.pad(covered, margin)
        with autocast(frames.device):
            pixels = [self._pixels(*frame) for frame in zip(frames.unbind(1), covered.unbind(1), strict=True)]
            seen = [self._cells(frame, age * step_minutes) for age, frame in zip(count(1 - len(pixels)), pixels)]
            _, states = self.encoder(torch.stack(seen, dim=1))
            asked = [self._cells(pixels[-1], lead * step_minutes) for lead in range(1, n_leads + 1)]
            hiddens, _ = self.forecaster(torch.stack(asked, dim=1), states)
            maps = (self.head(F.leaky_relu(self.neck(h), 0.2)).float() for h in hiddens.unbind(1))
            # Whole frames are made of them, which pixel by pixel is slower channels last.
            return [of_lead.contiguous() for of_lead in maps]

    def _pixels(self, frame: Tensor, covered: Tensor) -> Tensor:
        """A frame `[B, H, W]`, and where it is measured, cell by cell: `[B, 2 patch², H/patch, W/patch]`."""
        return F.pixel_unshuffle(torch.stack((frame, covered), dim=1), self.patch)

    def _cells(self, pixels: Tensor, minutes: Tensor) -> Tensor:
        """A frame as `_pixels` has it, and its time from the issue time → `[B, D, H/patch, W/patch]`."""
        hours = (minutes / 60).view(-1, 1, 1, 1).expand(-1, 1, *pixels.shape[-2:])
        return F.leaky_relu(self.stem(torch.cat((pixels, hours), dim=1)), 0.2)


def _thresholds(like: Tensor) -> Tensor:
    """`RAIN_THRESHOLDS`, mm/h `[thresholds, 1, 1]`, where this tensor is: one by one, as a copy from the host would be
    waited for."""
    return torch.cat([like.new_full((1, 1, 1), threshold) for threshold in RAIN_THRESHOLDS])


def extrapolate(past: Tensor, n_leads: int) -> Tensor:
    """The newest frame moved along its motion, the usual baseline: past `[B, P, H, W]` mm/h, NaN where nothing was
    measured → `[B, L, H, W]`."""
    covered, rain = torch.isfinite(past).to(past.dtype), torch.nan_to_num(past).clamp_(min=0)
    motion = estimate_motion(to_scale(rain[:, -MOTION_FRAMES:]), covered[:, -MOTION_FRAMES:])
    path = trajectories(motion, n_leads)
    return torch.cat([move(rain[:, -1:], displacement) for displacement in path.unbind(1)], dim=1)


@torch.no_grad()
def first_guesses(newest: Tensor, seen: Tensor, kept: Tensor) -> Iterator[Tensor]:
    """What is left of the newest frame's scales at one lead time after the other, without end: `[B, H, W]` on the
    network's scale.

    Args:
        newest: `[B, H, W]` mm/h.
        seen: `[B, H, W]` 1 where it was measured, 0 elsewhere.
        kept: as `persistences` has them.
    """
    parts, pixels = scales(newest), _pixels(seen)
    means = torch.stack([_mean(part, seen, pixels) for part in parts.unbind(1)], dim=1)
    parts -= means
    for lead in count(1):
        left = torch.einsum("bc,bchw->bhw", kept[..., 0, 0] ** lead, parts)
        yield to_scale((left + means.sum(dim=1)).clamp(min=0))


def persistences(aligned: Tensor, covered: Tensor) -> Tensor:
    """How alike each scale of successive frames is, `[B, SCALES + 1, 1, 1]`: the mean correlation of the newest frames,
    `aligned` `[B, P, H, W]` along their motion, over the pairs with rain where both are `covered`; 1 without any."""
    alike, known = [], []
    newest = (frames[:, -MOTION_FRAMES:].unbind(1) for frames in (aligned, covered))
    frames = ((scales(frame), seen) for frame, seen in zip(*newest, strict=True))
    for (before, seen_before), (after, seen_after) in pairwise(frames):
        both = ((seen_before > _WHOLE) & (seen_after > _WHOLE)).to(before.dtype)
        sums = [_products(*parts, both) for parts in zip(before.unbind(1), after.unbind(1), strict=True)]
        product, size = torch.stack(sums, dim=2)
        known.append((size > _TINY).to(size.dtype))
        alike.append(product / size.clamp(min=_TINY) * known[-1])
    pairs = torch.stack(known).sum(0)
    mean = torch.stack(alike).sum(0) / pairs.clamp(min=1)
    return torch.where(pairs > 0, mean, 1).clamp(0, 1)[..., None, None]


def _products(before: Tensor, after: Tensor, both: Tensor) -> Tensor:
    """Of one scale `[B, H, W]` of two frames, over the pixels in `both`: what they vary together, and the root of what
    the one varies times what the other does, sums `[2, B]`."""
    pixels = _pixels(both)
    before, after = ((part - _mean(part, both, pixels)) * both for part in (before, after))
    product, squares, others = ((a * b).sum((1, 2)) for a, b in ((before, after), (before, before), (after, after)))
    return torch.stack((product, (squares * others).sqrt()))


def _pixels(seen: Tensor) -> Tensor:
    """How many were `seen` `[B, H, W]`, one at the least: `[B, 1, 1]`."""
    return seen.sum((1, 2), keepdim=True).clamp(min=1)


def _mean(part: Tensor, seen: Tensor, pixels: Tensor) -> Tensor:
    """Mean of a scale `[B, H, W]` over the pixels that were `seen`: `[B, 1, 1]`. Scale by scale, as a cache has no room
    for all of them, multiplied."""
    return (part * seen).sum((1, 2), keepdim=True) / pixels


def _stacked(frames: Iterator[Tensor], count: int) -> Tensor:
    """`count` of `frames` `[B, …]` side by side, `[B, count, …]`. They are most of a nowcast's memory: where no
    gradients are wanted, each is copied as it comes, so that not all are held twice. Made lead by lead, they fit into
    what an allocator has at hand: large blocks, which it gives back, are paged in anew each time."""
    if torch.is_grad_enabled():
        return torch.stack(list(frames), dim=1)
    first = next(frames)
    stacked = first.new_empty(len(first), count, *first.shape[1:])
    for place, frame in enumerate(chain((first,), frames)):
        stacked[:, place] = frame
    return stacked


def chances(logits: Tensor) -> Iterator[Tensor]:
    """Of logits `[B, L, thresholds, H, W]` the probabilities `[B, L, H, W]` of each threshold, the lowest first: never
    higher for more rain than for less. (`cummin` has the same values, but looks for their places, too, and slowly.)"""
    return accumulate((one.sigmoid() for one in logits.unbind(2)), torch.minimum)


def expected_rain(logits: Tensor) -> Tensor:
    """Rain `[B, L, H, W]` in mm/h up to the highest threshold, as probabilities `[B, L, thresholds, H, W]` have it."""
    return _stacked(map(_rain_of_lead, logits.split(1, dim=1)), logits.shape[1])


def _rain_of_lead(logits: Tensor) -> Tensor:
    """Of one lead, `[B, 1, thresholds, H, W]` → `[B, H, W]`."""
    rain = torch.zeros_like(logits[:, 0, 0])
    for chance, (lower, upper) in zip(chances(logits), pairwise((0.0, *RAIN_THRESHOLDS)), strict=True):
        rain = torch.add(rain, chance[:, 0], alpha=upper - lower)
    return rain


def match(expected: Tensor, like: Tensor, seen: Tensor) -> Tensor:
    """The values of each frame of `like` `[B, L, H, W]`, none negative, the highest where most rain is `expected` (of
    the same shape), or where that is even, in the order of `like`; where `like` was not `seen` (False) it stays. NaN
    where what is expected is NaN."""
    leads = list(zip(expected.unbind(1), like.unbind(1), seen.unbind(1), strict=True))
    counts = [((values > 0) & there).flatten(1).sum(dim=1) for _, values, there in leads]
    # Where it rains nowhere else, nothing else is to be put in order. To look is one wait for a device, for the whole
    # batch; to order all pixels instead would take a CPU longer.
    wet = int(torch.stack(counts).max())
    return _stacked((_matched(*lead, wet) for lead in leads), len(leads))


def _matched(expected: Tensor, like: Tensor, seen: Tensor, wet: int) -> Tensor:
    """Of one lead, `[B, H, W]` each, whose frames have no more than `wet` wet pixels. What was not seen is last."""
    ranks, values = (each.masked_fill(~seen, -1).flatten(1) for each in (expected + _EVEN * like, like))
    highest, places = ranks.topk(wet, dim=1, sorted=False)
    places = places.gather(1, _order(highest.detach()))
    matched = torch.zeros_like(values).scatter_(1, places, _ordered(values)[:, values.shape[1] - wet :])
    return torch.where(seen, matched.view_as(like), like) + 0 * expected  # what is no number stays none


def _order(rows: Tensor) -> Tensor:
    """Where the values of each row `[B, N]` are, from the lowest to the highest."""
    return torch.from_numpy(np.argsort(np.from_dlpack(rows), axis=1)) if _by_numpy(rows) else rows.argsort(dim=1)


def _ordered(rows: Tensor) -> Tensor:
    """The values of each row `[B, N]`, from the lowest to the highest."""
    return torch.from_numpy(np.sort(np.from_dlpack(rows), axis=1)) if _by_numpy(rows) else rows.sort(dim=1).values


def _by_numpy(rows: Tensor) -> bool:
    """Whether NumPy sorts them, by a CPU's vectors, in a third to a twentieth of torch's time."""
    return rows.device.type == "cpu" and not rows.requires_grad


def align(frames: Tensor, covered: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Moves every frame `[B, P, H, W]` to the newest frame's time, along a path as `trajectories` has it, of at least
    P - 1 steps; what would come from outside is not covered."""
    aligned = []
    for age in range(frames.shape[1] - 1, 0, -1):
        displacement = path[:, age - 1]
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
