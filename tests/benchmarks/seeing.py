"""What a photograph costs an encoder, in evaluation: with its batch norm as it is and folded, some at a time.

    python -m tests.benchmarks.seeing [--encoder tf_efficientnet_lite0] [--image-size 224] [--threads 1] [--as-it-comes]

One process with a worker's settings, those of its allocator above all, or with none; noise for pixels, weights that
learned nothing. Milliseconds of CPU a photograph, the least of some rounds, in turn; and how far what is seen is from
what float32 sees. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.layers.image_encoder import Encoder
from pipelines.cluster.connection import worker_env

PHOTOGRAPHS = 32
AT_A_TIME = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    encoder: str = CaptionerConfig.encoder
    """One of timm's nets."""
    image_size: int = CaptionerConfig.image_size
    """Pixels of a side."""
    threads: int = 1
    """Of torch, as a night's actors have."""
    rounds: int = 5
    """Of each."""
    as_it_comes: bool = False
    """Without a worker's settings, as who uses the package from Python."""


def main(options: Options) -> None:
    """Measures and prints."""
    settings = worker_env()
    if not options.as_it_comes and not settings.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **settings})
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = Encoder(options.encoder, options.image_size).eval().requires_grad_(False)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    frames = torch.randint(0, 256, (PHOTOGRAPHS, options.image_size, options.image_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        ways = {"as it is": encoder.cnn, "folded": encoder._quick()}
        with torch.autocast("cpu", enabled=False):
            exact = encoder.cnn.forward_features(pixels(encoder, frames)).flatten(2).transpose(1, 2)
        least = {name: dict.fromkeys(AT_A_TIME, float("inf")) for name in ways}
        for _ in range(options.rounds):
            for name, cnn in ways.items():
                for count in AT_A_TIME:
                    took = cpu(lambda cnn=cnn, count=count: seen(encoder, cnn, frames, count))
                    least[name][count] = min(least[name][count], round(1000 * took / PHOTOGRAPHS, 2))
        off = {name: distance(seen(encoder, cnn, frames, 4), exact) for name, cnn in ways.items()}
    print(json.dumps({"ms": least, "off float32": off}, indent=1))


def pixels(encoder: Encoder, frames: Tensor) -> Tensor:
    """As the encoder has them."""
    return (frames.permute(0, 3, 1, 2).float() / 255 - encoder.mean) / encoder.std


def seen(encoder: Encoder, cnn: nn.Module, frames: Tensor, count: int) -> Tensor:
    """What a net sees, so many frames at a time."""
    return torch.cat([encoder._see(cnn, part) for part in frames.split(count)])


def cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU."""
    began = time.process_time()
    work()
    return time.process_time() - began


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative."""
    return round(float((found - exact).norm() / exact.norm()), 4)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
