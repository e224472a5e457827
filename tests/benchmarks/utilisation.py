"""What share of what a device can multiply the nets make use of, and how long it has nothing to do.

    python -m tests.benchmarks utilisation

The ceiling is a large square product of matrices, in the type that nets compute in and in float32. Beside it are what
trainings, searches and nights do with a batch that lies on the device already: the sizes are those of the other lines,
and all take turns. Operations are those of products and convolutions, two for each multiplication and its addition;
whatever is computed element by element (softmax, tanh, optimizer) takes time and counts as none. They are counted in a
run of their own. "Times as good" is the share of the ceiling.

A GPU is idle while no kernel runs, by torch's profiler; cores are while no thread of the process runs on them, also
where other processes do: the figure means something on a machine with nothing else to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hybrid_models.contract import Hybrid, autocast, half_type, to_device
from hybrid_models.inputs import Sample
from hybrid_models.layers.conv_lstm import ConvLSTM
from hybrid_models.translator.decoding import TranslatorDecoding
from pipelines.training.loop import scaler_of, step
from tests.benchmarks import captioning, convlstm, fitting, nowcasting, translating
from tests.benchmarks.figures import Row, clock, device, in_turn, sizes
from tests.benchmarks.scripts import captioner, translator

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the ceiling's matrices, by kind of device."""
PRODUCTS = 10
ROUNDS = 3
BATCHES = 3
"""Of sentences; other works have one batch."""
GIGA = 1e9


@dataclass(frozen=True)
class Work:
    """What a net does with a batch or some."""

    what: str
    run: Callable[[], object]
    items: int
    """Of what is counted, in a run."""
    unit: str
    kind: torch.dtype
    """That its products are computed in."""


def rows(full: bool, scratch: Path) -> list[Row]:
    """The ceilings, and three rows for each work: how fast it is, what it multiplies, how long the device is idle."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    half = half_type(device()) or torch.float32
    works = [make(half) for make in WORKS]
    side = SIDE[device().type]
    names = {kind: f"a product of {side} x {side} in {_name(kind)}" for kind in dict.fromkeys((half, torch.float32))}
    measures = {name: partial(seconds, product(kind, side)) for kind, name in names.items()}
    for work in works:
        measures |= {work.what: partial(seconds, work.run), f"{work.what}: idle": partial(idle, work.run)}
    for measure in measures.values():
        measure()
    found = in_turn(ROUNDS, measures)
    most = {kind: PRODUCTS * 2 * side**3 / found[name] / GIGA for kind, name in names.items()}
    made = [Row(name, most[kind], "GFLOP/s") for kind, name in names.items()]
    for work in works:
        took, kind = found[work.what], work.kind
        rate = operations(work.run) / took / GIGA
        made += [
            Row(work.what, work.items / took, work.unit),
            Row(f"{work.what}: products", rate, "GFLOP/s", most[kind], _name(kind)),
            Row(f"{work.what}: the device is idle", 100 * found[f"{work.what}: idle"], "% of the time"),
        ]
    return made


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


# ---- what is measured --------------------------------------------------------------------------------------------
def translator_training(kind: torch.dtype) -> Work:
    """Steps of the line `translating`."""
    size = sizes().training
    given = translating.batches(BATCHES, size)
    hybrid = translator.make({"dropout": 0.4, "vocabulary": translating.VOCABULARY})
    samples = [
        [{"source": np.asarray(source), "target": np.asarray(target)} for source, target in batch] for batch in given
    ]
    tokens = sum(len(target) + 1 for batch in given for _, target in batch)
    what = f"a translator's step of {size} sentences"
    return Work(what, training(hybrid, samples), tokens, "target tokens/s", kind)


def translator_search(_: torch.dtype) -> Work:
    """Of the same line, beam 5: in float32 everywhere."""
    size = sizes().searching
    hybrid = translator.make({"dropout": 0.0, "vocabulary": translating.VOCABULARY}).eval().to(device())
    batches = [
        to_device(hybrid.collate([{"source": np.asarray(source)} for source, _ in batch]), device())
        for batch in translating.batches(BATCHES, size)
    ]
    decoding = TranslatorDecoding(beam_size=5, max_length=translating.LENGTH)
    what = f"a translator's search of {size} sentences, beam 5"
    return Work(
        what, lambda: [hybrid.predict(batch, decoding) for batch in batches], BATCHES * size, "sentences/s",
        torch.float32,
    )  # fmt: skip


def captioner_training(kind: torch.dtype) -> Work:
    """A step on references of the line `fitting`, features kept."""
    size = sizes().fitting
    hybrid, samples = captioner.make({"words": fitting.WORDS, "samples": size})
    what = f"a captioner's step of {size} photographs"
    return Work(what, training(hybrid, [samples]), size, "photographs/s", kind)


def captioner_rewards(kind: torch.dtype) -> Work:
    """A step on rewards of the same line: captions are drawn, compared with the references, and learned from."""
    size = sizes().fitting
    hybrid, samples = captioner.make({"words": fitting.WORDS, "samples": size})
    what = f"a captioner's step of {size} photographs, on rewards"
    return Work(what, training(hybrid, [samples], epoch=1), size, "photographs/s", kind)


def captions(kind: torch.dtype) -> Work:
    """A batch of a night of the line `captioning`."""
    size, hybrid = sizes().captioning, captioning.untrained().to(device())
    side = hybrid.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, 1, side, side, 3), dtype=np.uint8)
    batch = to_device(hybrid.collate([{"frames": each, "frame_count": np.asarray(1)} for each in pixels]), device())
    run = partial(hybrid.predict, batch, captioning.DECODING)
    return Work(f"a night's batch of {size} photographs", run, size, "photographs/s", kind)


def frames(kind: torch.dtype) -> Work:
    """Forward and backward of the line `convlstm`."""
    size, net = sizes().sequences, ConvLSTM(convlstm.CHANNELS, convlstm.HIDDEN, convlstm.KERNEL).to(device())
    given = torch.rand(size, convlstm.FRAMES, convlstm.CHANNELS, convlstm.SIDE, convlstm.SIDE, device=device())

    def run() -> None:
        with autocast(device()):
            states = net(given)[0]
        states.float().square().mean().backward()

    return Work(f"a ConvLSTM's forward and backward, sequences: {size}", run, size, "sequences/s", kind)


def nowcasts(kind: torch.dtype) -> Work:
    """A batch of a night of the line `nowcasting`, 256 x 256."""
    size, threads = sizes().nowcasts, torch.get_num_threads()
    hybrid = nowcasting.untrained()
    torch.set_num_threads(threads)
    batch = to_device(hybrid.collate([nowcasting.sample(nowcasting.rain(nowcasting.SIDES[0]))] * size), device())
    run = partial(hybrid.predict, batch, nowcasting.NowcasterDecoding())
    return Work(f"a night's batch of {nowcasting.SIDES[0]} x {nowcasting.SIDES[0]}, nowcasts: {size}", run, size,
                "nowcasts/s", kind)  # fmt: skip


WORKS = (translator_training, translator_search, captioner_training, captioner_rewards, captions, frames, nowcasts)
"""Each for the type that the device computes in."""


def training(hybrid: Hybrid, samples: Sequence[Sequence[Sample]], epoch: int = 0) -> Callable[[], None]:
    """A step of a training for each batch of samples, in one of two epochs."""
    hybrid.to(device()).train()  # first: a batch's shapes depend on where the net is
    hybrid.start_epoch(epoch, 2)
    batches = [to_device(hybrid.collate(batch), device()) for batch in samples]
    learned = [parameter for parameter in hybrid.parameters() if parameter.requires_grad]
    optimizer, scaler = (
        torch.optim.AdamW(learned, lr=1e-4, fused=True),
        scaler_of(device(), {}, half_type(device()) is torch.float16),
    )

    def run() -> None:
        for batch in batches:
            loss = hybrid(batch)
            scaler.scale(loss.total / loss.terms).backward()
            step(hybrid, optimizer, 1e-4, 1.0, scaler)

    return run


def product(kind: torch.dtype, side: int) -> Callable[[], None]:
    """`PRODUCTS` products of two matrices."""
    left, right = (torch.rand(side, side, device=device()).to(kind) for _ in range(2))
    made = torch.empty_like(left)

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=made)

    return run


# ---- how it is measured ------------------------------------------------------------------------------------------
def seconds(run: Callable[[], object]) -> float:
    """Of a run."""
    began = clock()
    run()
    return clock() - began


def operations(run: Callable[[], object]) -> int:
    """Floating point operations of a run's products and convolutions, those of its gradients and of functions with
    gradients of their own included."""
    kernels = torch.ops.aten
    own = {kernels._cudnn_rnn: rnn_operations, kernels._cudnn_rnn_backward: partial(rnn_operations, times=2)}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return counter.get_total_flops()


def rnn_operations(given: Sequence[int], weights: Iterable[Sequence[int]], *_: Any, times: int = 1, **__: Any) -> int:
    """Of an RNN that is one kernel, which torch's counter does not know: each step of each row with each matrix; twice
    as many of its gradients.

    Args:
        given: shape of the input [T,B,I], or [B,T,I].
        weights: shapes of its matrices and biases.
        times: how often as many.
    """
    return times * 2 * given[0] * given[1] * sum(prod(shape) for shape in weights if len(shape) == 2)


def idle(run: Callable[[], object]) -> float:
    """The share of the time that the device does nothing for a run, 0 to 1."""
    if device().type == "cuda":
        took = seconds(run)  # without the profiler, which slows the host
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            seconds(run)
        return max(0.0, 1 - kernel_seconds(profiler.events()) / took)
    began, spent = time.perf_counter(), time.process_time()
    run()
    busy = time.process_time() - spent
    return max(0.0, 1 - busy / ((time.perf_counter() - began) * torch.get_num_threads()))


def kernel_seconds(events: Iterable[Any]) -> float:
    """Seconds in which at least one kernel or copy of a profile runs on a GPU; those of two streams may overlap."""
    ranges = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    covered, last = 0.0, float("-inf")
    for start, end in sorted(ranges):
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return covered / 1e6
