"""Motion of rain and transport along it: optical flow of the newest frames, semi-Lagrangian trajectories.

Displacements and motions are `[B, 2, H, W]`: the x (column) and the y (row) component, in pixels, of a movement that
*arrives* at the pixel; a field moved by `d` is `field(position - d)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

MOTION_FRAMES = 5
"""Motion is estimated from this many of the newest frames; more are staler and did not score better."""
_LEVELS = ((8, math.inf), (8, 32.0), (4, 24.0), (2, 16.0), (2, 8.0))
"""Coarse to fine: factor by which frames are shrunk, and standard deviation (pixels) of the averaging window."""
_ITERATIONS = 2


def estimate_motion(frames: Tensor, covered: Tensor) -> Tensor:
    """Pixels that the rain moves per frame, by windowed least squares (Lucas & Kanade 1981), coarse to fine.

    One motion is fitted to all pairs of successive frames: with brightness constancy `I_t + g · v = 0`, each level adds
    the `v` that minimises its window-averaged square. First one vector for the whole grid, then ever smaller windows;
    where a window holds little rain, regularisation leaves the coarser estimate alone.

    Args:
        frames: `[B, P, H, W]` at least two frames, oldest first, on a scale with even contrasts (log of rain rate).
        covered: `[B, P, H, W]` 1 where a pixel was measured, 0 where `frames` holds a filler.

    Returns:
        `[B, 2, H, W]`, zero where nothing can be seen moving.
    """
    frames, covered = frames[:, -MOTION_FRAMES:], covered[:, -MOTION_FRAMES:]
    batch, _, height, width = frames.shape
    motion = frames.new_zeros(batch, 2, height, width)
    for factor, window in _LEVELS:
        small = blur(F.avg_pool2d(frames * covered, factor, ceil_mode=True), 1.0)
        whole = (F.avg_pool2d(covered, factor, ceil_mode=True) > 0.99).to(frames.dtype)
        for _ in range(_ITERATIONS):
            shrunk = F.interpolate(motion, small.shape[-2:], mode="bilinear") / factor
            change = _refinement(small, whole, shrunk, window / factor)
            motion = motion + F.interpolate(change * factor, (height, width), mode="bilinear")
    return motion


def _refinement(frames: Tensor, covered: Tensor, motion: Tensor, window: float) -> Tensor:
    """The change of `motion` `[B, 2, H, W]` that explains what is left after moving each frame onto the next."""
    sums, inside = frames.new_zeros(()), stays_inside(motion)
    befores = move(torch.cat((frames[:, :-1], covered[:, :-1]), dim=1), motion).chunk(2, dim=1)
    pairs = (maps.unbind(1) for maps in (*befores, frames[:, 1:], covered[:, 1:]))
    for before, seen_before, after, seen_after in zip(*pairs, strict=True):
        seen = (seen_before > 0.99) * seen_after * inside
        mean, change = (before + after) / 2, after - before
        gx, gy = torch.zeros_like(mean), torch.zeros_like(mean)
        gx[..., 1:-1] = (mean[..., 2:] - mean[..., :-2]) / 2
        gy[..., 1:-1, :] = (mean[..., 2:, :] - mean[..., :-2, :]) / 2
        sums = sums + torch.stack((gx * gx, gx * gy, gy * gy, gx * change, gy * change), 1) * seen[:, None]
    energy = (sums[:, 0] + sums[:, 2]).mean((1, 2), keepdim=True) / 2
    if math.isinf(window):
        averaged, damping = sums.mean((2, 3), keepdim=True).expand_as(sums), 1e-3 * energy + 1e-9
    else:
        averaged, damping = _wide_blur(sums, window), energy + 1e-9
    xx, xy, yy, xt, yt = averaged.unbind(1)
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    step = torch.stack((xy * yt - yy * xt, xy * xt - xx * yt), 1) / determinant[:, None]
    return step.clamp(-2, 2)


def trajectories(motion: Tensor, n_leads: int) -> Tensor:
    """Displacements `[B, L, 2, H, W]` after 1 … L steps along a motion that stays as it is.

    Backward semi-Lagrangian with the midpoint rule, so that rotation is followed, as in Germann & Zawadzki 2002.
    """
    displacement, half, path = torch.zeros_like(motion), motion / 2, []
    for _ in range(n_leads):
        midpoint = displacement + move(half, displacement)
        displacement = displacement + move(motion, midpoint)
        path.append(displacement)
    return torch.stack(path, dim=1)


def move(fields: Tensor, displacement: Tensor) -> Tensor:
    """`fields` `[B, C, H, W]` moved by `displacement` `[B, 2, H, W]`; what enters the grid is what its edge holds."""
    height, width = fields.shape[-2:]
    columns, rows = (torch.linspace(-1, 1, size, device=fields.device) for size in (width, height))
    x = torch.sub(columns, displacement[:, 0], alpha=2 / max(width - 1, 1))
    y = torch.sub(rows[:, None], displacement[:, 1], alpha=2 / max(height - 1, 1))
    grid = torch.stack((x, y), dim=1).movedim(
        1, -1
    )  # read as it lies: to lay x beside y would take as long as to sample
    return F.grid_sample(fields, grid, mode="bilinear", padding_mode="border", align_corners=True)


def stays_inside(displacement: Tensor) -> Tensor:
    """`[B, H, W]`: 1 where what arrives comes from within the grid, 0 where from outside."""
    height, width = displacement.shape[-2:]
    x, y = _origins(displacement)
    return ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)).to(displacement.dtype)


def _origins(displacement: Tensor) -> tuple[Tensor, Tensor]:
    height, width = displacement.shape[-2:]
    rows = torch.arange(height, device=displacement.device, dtype=displacement.dtype)
    columns = torch.arange(width, device=displacement.device, dtype=displacement.dtype)
    return columns - displacement[:, 0], rows[:, None] - displacement[:, 1]


def blur(fields: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[B, C, H, W]`, zeros outside the grid. Shifted fields are added up: a convolution of maps with
    one channel, which a CPU pads to sixteen, takes several times as long where fields are large."""
    radius = math.ceil(2.5 * sigma)
    weights = [math.exp(-(distance**2) / (2 * sigma**2)) for distance in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for axis in (-1, -2):
        size, blurred = fields.shape[axis], fields * (weights[0] / total)
        for distance in range(1, min(radius, size - 1) + 1):
            for to, source in ((0, distance), (distance, 0)):
                shifted = fields.narrow(axis, source, size - distance)
                blurred.narrow(axis, to, size - distance).add_(shifted, alpha=weights[distance] / total)
        fields = blurred
    return fields


def _wide_blur(fields: Tensor, sigma: float) -> Tensor:
    """`blur`, on a shrunk grid where the kernel is wide enough to allow it."""
    factor = max(1, int(sigma // 4))
    shrunk = F.avg_pool2d(fields, factor, ceil_mode=True)
    return F.interpolate(blur(shrunk, sigma / factor), fields.shape[-2:], mode="bilinear")
