"""The nowcaster's network for video: one stack of ConvLSTMs that reads a frame and predicts the next one.

Shi et al. 2015 in the form that Moving MNIST is usually compared with (OpenSTL's ConvLSTM-S, Tan et al. 2023,
arXiv:2306.11249): frames become cells of a coarser grid, each holding a square of pixels; after the last true frame the
net reads its own predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybrid_models.contract import Loss, autocast
from hybrid_models.layers.conv_lstm import ConvLSTM
from hybrid_models.layers.conv_lstm_walk import channels_last

_DARK = -3.0
"""Logit of an untrained pixel: most of a frame is dark."""


class FramePredictor(nn.Module):
    """Past frames of a video → future ones, intensities 0 … 1.

    Args:
        patch: side of the square of pixels that is one cell of the ConvLSTMs' grid (space to depth).
        hidden_dims: channels of each layer.
        kernel_size: of the ConvLSTMs.
        channels: values of a pixel. Where they are more than 1, frames have a last axis `[…, H, W, channels]`.
    """

    def __init__(self, patch: int, hidden_dims: Sequence[int], kernel_size: int, channels: int = 1) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.stack = ConvLSTM(channels * patch**2, hidden_dims, kernel_size)
        self.head = nn.Conv2d(hidden_dims[-1], channels * patch**2, 1)
        nn.init.constant_(self.head.get_parameter("bias"), _DARK)

    def forward(self, past: Tensor, step_minutes: Tensor, n_leads: int) -> tuple[Tensor, None]:
        """Forecasts `n_leads` frames `[B, L, H, W]`; None stands for probabilities of rain.

        Args:
            past: `[B, P, H, W]` oldest first, NaN where nothing is known; any grid.
            step_minutes: `[B]` minutes between frames; the net does not ask.
        """
        unknown = past.new_full((len(past), n_leads - 1, *past.shape[2:]), torch.nan)
        logits = self._following(torch.cat((past, unknown), dim=1))
        return logits[:, past.shape[1] - 1 :].sigmoid(), None

    def loss(self, past: Tensor, step_minutes: Tensor, future: Tensor) -> Loss:
        """Cross entropy of every frame but the first, past ones too, where it is known; after the last past frame the
        net reads its own predictions, as in a forecast. Arguments as in `forward`; `future` `[B, L, H, W]`."""
        frames = torch.cat((past, torch.full_like(future[:, :-1], torch.nan)), dim=1)
        truth = torch.cat((past[:, 1:], future), dim=1)
        known = torch.isfinite(truth)
        errors = nn.functional.binary_cross_entropy_with_logits(
            self._following(frames), torch.nan_to_num(truth), reduction="none"
        )
        return Loss((errors * known).sum(), known.sum())

    def _following(self, frames: Tensor) -> Tensor:
        """Logits of the frame that follows each of the frames, both `[B, T, H, W]`.

        A value that is NaN is read as the net has just predicted it, dark in the first frame.
        """
        batch, count, height, width = frames.shape[:4]
        planes = frames.reshape(batch, count, height, width, self.channels).movedim(-1, 2)
        planes = nn.functional.pad(planes, (0, -width % self.patch, 0, -height % self.patch))
        cells = channels_last(nn.functional.pixel_unshuffle(planes, self.patch))
        predicted, logits = torch.zeros_like(cells[:, 0]), []
        with autocast(frames.device):
            states = self.stack.initial_states(batch, *cells.shape[-2:])
            for t in range(count):
                states = self.stack.step(torch.where(cells[:, t].isnan(), predicted, cells[:, t]), states)
                # A 1 x 1 kernel has no layout: of maps channels last its gradient has strides that DDP warns of.
                logits.append(self.head(states[-1][0].contiguous()).float())
                predicted = logits[-1].sigmoid()
        following = nn.functional.pixel_shuffle(torch.stack(logits, dim=1), self.patch)[..., :height, :width]
        return following.movedim(2, -1).reshape(frames.shape)
