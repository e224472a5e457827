"""The order of a clip's frames: an RNN reads what a CNN saw in each (S2VT's encoder, Venugopalan et al. 2015)."""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybrid_models.layers.recurrent import RNNS, Cell, read

PLACES = 2
"""A frame's grid is read as so many rows and columns: averaged over the whole frame, nothing would move."""


class TemporalEncoder(nn.Module):
    """Reads a clip frame by frame.

    x_t = tanh(W norm(g_t) + b) of the frame's cells g_t, pooled to `PLACES` x `PLACES`;  h_t = cell(x_t, h_{t-1})

    Args:
        channels: size C of a cell's vector.
        hidden_size: size D of a state.
        cell: which RNN reads.
    """

    def __init__(self, channels: int, hidden_size: int, cell: Cell) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(PLACES**2 * channels)  # encoders differ in scale by orders of magnitude
        self.look = nn.Linear(PLACES**2 * channels, hidden_size)
        self.rnn = RNNS[cell](hidden_size, hidden_size, batch_first=True)

    def forward(self, course: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """course [B,T,4C] as `pool_places` gives it, padded at the end, and how many frames each clip has, counts [B] →
        states [B,T,D], which mean nothing at padding, and each clip's last one [B,D]."""
        states_BTD, _ = read(self.rnn, torch.tanh(self.look(self.norm(course))))
        return states_BTD, states_BTD[torch.arange(len(counts), device=counts.device), counts - 1]


def pool_places(features: Tensor) -> Tensor:
    """What is where in each frame: grids [F,S,C], S cells of a square row by row → [F, `PLACES`² · C]."""
    side = math.isqrt(features.shape[1])
    grid_FCHW = features.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(grid_FCHW, PLACES).flatten(1)


def frame_places(counts: Sequence[int]) -> np.ndarray:
    """int64 [F]: the places of real frames in [B·T], where clips of so many frames [B] are padded to the most, T."""
    return np.flatnonzero(np.arange(max(counts)) < np.asarray(counts)[:, None])


def clips_of(frames: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """One row for each clip: [F,K] of all clips' frames one after another, their `frame_places`, the shape (B, T) →
    [B,T,K], padded with zeros."""
    padded = frames.new_zeros(shape[0] * shape[1], frames.shape[1])
    return padded.index_copy(0, places, frames).view(*shape, -1)


def real_frames(counts: Tensor, most: int) -> Tensor:
    """bool [B,T]: true at a clip's frames, false at padding."""
    return torch.arange(most, device=counts.device) < counts.unsqueeze(1)


def pad_clips(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [T,…] of different lengths T as one [B,T,…], with zeros at the end."""
    padded = np.zeros((len(clips), max(map(len, clips)), *clips[0].shape[1:]), dtype=clips[0].dtype)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    return padded
