"""The ConvLSTM of OpenSTL's configuration against the same formula written as a textbook has it, in fp32.

Moving MNIST: ten frames in, ten out, 64 x 64 pixels in patches of 4 x 4, four layers of 128 channels, kernels of 5 x 5,
a batch of one, all cores. The textbook's loop has the same weights; its hidden states agree within bf16's rounding
where the hardware computes in bf16, within that of floats elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from hybrid_models.contract import autocast, bf16_is_fast
from hybrid_models.layers.conv_lstm import ConvLSTM
from tests.benchmarks.figures import Row, in_turn

FRAMES, CHANNELS, SIDE, HIDDEN, KERNEL = 20, 16, 16, (128, 128, 128, 128), 5
ROUNDS = 5
CPU = torch.device("cpu")


def textbook(net: ConvLSTM, frames: Tensor) -> Tensor:
    """Hidden states of the top layer [B,T,D,H,W]: Shi et al. 2015 without peepholes, two convolutions a cell."""
    batch, _, _, height, width = frames.shape
    states = [(frames.new_zeros(batch, hidden, height, width),) * 2 for hidden in HIDDEN]
    tops = []
    for x in frames.unbind(1):
        for layer, cell in enumerate(net.cells):
            h, c = states[layer]
            weight_x, weight_h = cell.gates.weight.split([x.shape[1], h.shape[1]], dim=1)  # type: ignore[union-attr]
            gates = F.conv2d(x, weight_x, cell.gates.bias, padding=KERNEL // 2)  # type: ignore[union-attr, arg-type]
            f, i, g, o = (gates + F.conv2d(h, weight_h, padding=KERNEL // 2)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states[layer], x = (h, c), h
        tops.append(x)
    return torch.stack(tops, dim=1)


def ours(net: ConvLSTM, frames: Tensor) -> Tensor:
    """The same of the net itself, in bf16 where that is fast."""
    with autocast(CPU):
        return net(frames)[0]


def seconds(run: Callable[[ConvLSTM, Tensor], Tensor], net: ConvLSTM, frames: Tensor, backward: bool) -> float:
    """Of one pass."""
    net.zero_grad()
    began = time.perf_counter()
    if backward:
        run(net, frames).float().square().mean().backward()
    else:
        with torch.inference_mode():
            run(net, frames)
    return time.perf_counter() - began


def rows(full: bool, scratch: Path) -> list[Row]:
    """Forward and backward, and forward alone."""
    torch.manual_seed(0)
    net = ConvLSTM(CHANNELS, HIDDEN, KERNEL)
    frames = torch.rand(1, FRAMES, CHANNELS, SIDE, SIDE)
    with torch.inference_mode():
        tolerance = 2e-2 if bf16_is_fast(CPU) else 1e-5
        torch.testing.assert_close(ours(net, frames).float(), textbook(net, frames), atol=tolerance, rtol=tolerance)
    made = []
    for what, backward in (("forward and backward, a sample", True), ("forward, a sample", False)):
        runs = {"ours": ours, "reference": textbook}
        measures = {name: partial(seconds, run, net, frames, backward) for name, run in runs.items()}
        for measure in measures.values():
            measure()
        found = in_turn(ROUNDS, measures)
        made.append(Row(what, found["ours"], "s", found["reference"], "textbook's loop, fp32", 1.8))
    return made
