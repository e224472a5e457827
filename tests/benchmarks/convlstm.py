"""The ConvLSTM of OpenSTL's configuration against the same formula written as a textbook has it.

Moving MNIST: ten frames in, ten out, 64 x 64 pixels in patches of 4 x 4, four layers of 128 channels, kernels of 5 x 5,
a batch of one and all cores, or a GPU and a batch that fills it; seconds are those of one sequence. The textbook's loop
has the same weights, in two convolutions a cell. It runs in float32, and as ours does, in bfloat16 where the hardware
computes in it, which tells precision from the rest. Hidden states agree within bfloat16's rounding there, within that
of floats elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hybrid_models.contract import autocast, bf16_is_fast, half_type
from hybrid_models.layers.conv_lstm import ConvLSTM
from tests.benchmarks.figures import Row, clock, device, in_turn, sizes

FRAMES, CHANNELS, SIDE, HIDDEN, KERNEL = 20, 16, 16, (128, 128, 128, 128), 5
ROUNDS = 5
DEVICE = device()


class Textbook(nn.Module):
    """Shi et al. 2015 without peepholes."""

    def __init__(self, net: ConvLSTM) -> None:
        super().__init__()
        inputs = [CHANNELS, *HIDDEN[:-1]]
        self.of_x = nn.ModuleList(
            nn.Conv2d(i, 4 * d, KERNEL, padding="same") for i, d in zip(inputs, HIDDEN, strict=True)
        )
        self.of_h = nn.ModuleList(nn.Conv2d(d, 4 * d, KERNEL, padding="same", bias=False) for d in HIDDEN)
        with torch.no_grad():
            for cell, of_x, of_h, size in zip(net.cells, self.of_x, self.of_h, inputs, strict=True):
                of_x.weight.copy_(cell.gates.weight[:, :size])
                of_x.bias.copy_(cell.gates.bias)
                of_h.weight.copy_(cell.gates.weight[:, size:])

    def forward(self, frames: Tensor) -> Tensor:
        """frames [B,T,C,H,W] → hidden states of the top layer [B,T,D,H,W]."""
        batch, _, _, height, width = frames.shape
        states = [(frames.new_zeros(batch, hidden, height, width),) * 2 for hidden in HIDDEN]
        tops = []
        for x in frames.unbind(1):
            for layer, (of_x, of_h) in enumerate(zip(self.of_x, self.of_h, strict=True)):
                h, c = states[layer]
                f, i, g, o = (of_x(x) + of_h(h)).chunk(4, dim=1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                states[layer], x = (h, c), h
            tops.append(x)
        return torch.stack(tops, dim=1)


def seconds(run: Callable[[Tensor], Tensor], frames: Tensor, backward: bool) -> float:
    """Of one pass, for a sequence."""
    began = clock()
    if backward:
        run(frames).float().square().mean().backward()
    else:
        with torch.inference_mode():
            run(frames)
    return (clock() - began) / len(frames)


def rows(full: bool, scratch: Path) -> list[Row]:
    """Forward and backward, and forward alone."""
    torch.manual_seed(0)
    net = ConvLSTM(CHANNELS, HIDDEN, KERNEL).to(DEVICE)
    frames = torch.rand(sizes().sequences, FRAMES, CHANNELS, SIDE, SIDE, device=DEVICE)
    textbook = Textbook(net).to(DEVICE)

    def ours(frames: Tensor) -> Tensor:
        with autocast(DEVICE):
            return net(frames)[0]

    def textbook_like_ours(frames: Tensor) -> Tensor:
        with autocast(DEVICE):
            return textbook(frames)

    runs: dict[str, Callable[[Tensor], Tensor]] = {"ours": ours, "textbook's loop, float32": textbook}
    if bf16_is_fast(DEVICE):
        runs["textbook's loop, bfloat16"] = textbook_like_ours
    with torch.inference_mode():
        tolerance = 2e-2 if half_type(DEVICE) else 1e-5
        torch.testing.assert_close(ours(frames).float(), textbook(frames), atol=tolerance, rtol=tolerance)
    made = []
    for what, backward in (("forward and backward, a sample", True), ("forward, a sample", False)):
        measures = {name: partial(seconds, run, frames, backward) for name, run in runs.items()}
        for measure in measures.values():
            measure()
        found = in_turn(ROUNDS, measures)
        times = found.pop("ours")
        goals = {"textbook's loop, float32": 1.8}
        made += [Row(what, times, "s", other, name, goal_times=goals.get(name)) for name, other in found.items()]
    return made
