"""Moving MNIST: how well the nowcaster draws ten frames after so many training steps, beside a plain ConvLSTM.

    python -m tests.benchmarks.moving_mnist --source MNIST_FOLDER [--net nowcaster|plain] [--steps 2000]

The plain net is OpenSTL's ConvLSTM-S: a stack of ConvLSTMs that predicts the next frame, trained on squared errors of
all 19 next frames, with scheduled sampling (Bengio et al. 2015, arXiv:1506.03099). The nowcaster has the same
structure, a sigmoid at its end, cross entropy instead of squared errors, and reads its own predictions from the
start. Both see the same sequences, never one twice, with the same layers, batch, optimizer and schedule: those of the
recipe `nowcaster-moving-mnist`, unless options say otherwise; the plain net has a peak rate of its own, which was not
tuned. Prints a JSON object at each judgement: MSE of a frame (summed over pixels) and SSIM, the means over all frames
of the test sequences, and the time of a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from hybrid_models.contract import Loss, autocast
from hybrid_models.layers.conv_lstm import ConvLSTM
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.scores.frames import ssim
from jobs.recipes import RECIPES
from pipelines.datasets.moving_digits import moving_sequence, read_idx_images
from pipelines.datasets.public_data import MNIST_CANVAS, MNIST_FILES, MNIST_FRAMES, MNIST_VAL_DIGITS
from pipelines.training.loop import learning_rate, make_optimizer, step
from pipelines.training.recipe import Kind

PAST = 10
SAMPLING_SHARE = 0.4  # of the steps, until when the plain net sees true future frames: 50,000 of OpenSTL's 125,000
PLAIN_RATE = 1e-3
JUDGED = 32  # sequences at a time


@dataclass(frozen=True)
class Options:
    """What to train and for how long."""

    source: str
    """Folder with MNIST's train-images-idx3-ubyte and t10k-images-idx3-ubyte, gzipped."""
    net: Literal["nowcaster", "plain"] = "nowcaster"
    """Which net."""
    steps: int = 2000
    """Training steps."""
    judge_every: int = 250
    """Steps between judgements."""
    test: int = 256
    """Test sequences."""
    hidden_dims: tuple[int, ...] = ()
    """Channels of each layer; the recipe's by default."""
    rate: float = 0.0
    """Peak learning rate; the recipe's by default, 0.001 for the plain net."""
    optimizer: Kind | None = None
    """How gradients become steps; the recipe's by default."""
    batch: int = 0
    """Sequences of a step; the recipe's by default."""
    threads: int = 1
    """CPU threads of torch."""
    seed: int = 1
    """Of weights and sequences."""


class PlainConvLSTM(nn.Module):
    """One stack of ConvLSTMs over patches: reads a frame, predicts the next.

    Args:
        patch: side of the square of pixels that is one cell of the grid.
        hidden_dims: channels of each layer.
        kernel_size: of the ConvLSTMs.
    """

    def __init__(self, patch: int, hidden_dims: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        self.patch = patch
        self.stack = ConvLSTM(patch**2, hidden_dims, kernel_size)
        self.head = nn.Conv2d(hidden_dims[-1], patch**2, 1)

    def forward(self, frames: Tensor, given: Tensor) -> Tensor:
        """All next frames `[B, T - 1, H, W]` of `frames` `[B, T, H, W]`, which are read where `given` `[B, T]` says so;
        elsewhere the net's own prediction is."""
        batch, count, height, width = frames.shape
        cells = nn.functional.pixel_unshuffle(frames.unsqueeze(2), self.patch)
        predicted = cells[:, 0]
        predictions = []
        with autocast(frames.device):
            states = self.stack.initial_states(batch, height // self.patch, width // self.patch)
            for t in range(count - 1):
                read = torch.where(given[:, t].view(-1, 1, 1, 1), cells[:, t], predicted)
                states = self.stack.step(read, states)
                predicted = self.head(states[-1][0]).float()
                predictions.append(predicted)
        return nn.functional.pixel_shuffle(torch.stack(predictions, dim=1), self.patch)[:, :, 0]


def main(options: Options) -> None:
    """Trains and judges."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    recipe = RECIPES["nowcaster-moving-mnist"]()
    config = replace(recipe.model, hidden_dims=options.hidden_dims or recipe.model.hidden_dims)
    usual = PLAIN_RATE if options.net == "plain" else recipe.train.learning_rate
    kind, batch = options.optimizer or recipe.train.optimizer, options.batch or recipe.train.batch_size
    rates = replace(recipe.train, optimizer=kind, learning_rate=options.rate or usual, batch_size=batch)
    train, test = (read_idx_images(f"{options.source}/{stem}.gz") for stem in MNIST_FILES.values())
    judged = sequences(test, options.test, np.random.default_rng(0))
    net, loss_of, draw = NETS[options.net](config)
    optimizer = make_optimizer(net, rates)
    rng, seconds, unscaled = np.random.default_rng(options.seed), 0.0, torch.amp.GradScaler("cpu", enabled=False)
    for done in range(options.steps):
        frames = sequences(train[:-MNIST_VAL_DIGITS], rates.batch_size, rng)
        started = time.perf_counter()
        loss = loss_of(frames, done / options.steps)
        (loss.total / loss.terms).backward()
        step(net, optimizer, learning_rate(done, options.steps, rates), rates.clip_norm, unscaled)
        seconds += time.perf_counter() - started
        if (done + 1) % options.judge_every == 0:
            figures = judge(draw, judged)
            entry = {"net": options.net, "step": done + 1, **figures, "seconds": round(seconds / (done + 1), 3)}
            print(json.dumps(entry), flush=True)


def sequences(digits: np.ndarray, count: int, rng: np.random.Generator) -> Tensor:
    """Sequences of two digits, `[count, 20, 64, 64]`, 0 … 1."""
    pairs = [digits[rng.choice(len(digits), size=2, replace=False)] for _ in range(count)]
    drawn = [moving_sequence(pair, MNIST_FRAMES, MNIST_CANVAS, rng) for pair in pairs]
    return torch.from_numpy(np.stack(drawn)).float() / 255


@torch.inference_mode()
def judge(draw: Callable[[Tensor], Tensor], frames: Tensor) -> dict[str, float]:
    """MSE and SSIM of what is drawn from the past frames."""
    drawn = torch.cat([draw(part[:, :PAST]) for part in frames.split(JUDGED)]).clamp(0, 1)
    truth = frames[:, PAST:]
    error = (drawn - truth).square().sum((2, 3)).mean()
    similar = np.mean([ssim(a, b).mean() for a, b in zip(drawn.numpy(), truth.numpy(), strict=True)])
    return {"mse": round(float(error), 2), "ssim": round(float(similar), 4)}


# ---- the two nets: how each is trained and how it draws --------------------------------------------------------------
LossOf = Callable[[Tensor, float], Loss]
Draw = Callable[[Tensor], Tensor]


def nowcaster(config: NowcasterConfig) -> tuple[nn.Module, LossOf, Draw]:
    """The recipe's."""
    hybrid = Nowcaster(config, {})

    def loss_of(frames: Tensor, progress: float) -> Loss:
        minutes = torch.ones(len(frames))
        return hybrid({"past": frames[:, :PAST], "future": frames[:, PAST:], "step_minutes": minutes})

    def draw(past: Tensor) -> Tensor:
        return hybrid.net(past, torch.ones(len(past)), MNIST_FRAMES - PAST)[0]

    return hybrid, loss_of, draw


def plain(config: NowcasterConfig) -> tuple[nn.Module, LossOf, Draw]:
    """OpenSTL's structure."""
    net = PlainConvLSTM(config.patch, config.hidden_dims, config.kernel_size)

    def loss_of(frames: Tensor, progress: float) -> Loss:
        given = torch.rand(frames.shape[:2]) < 1 - progress / SAMPLING_SHARE
        given[:, :PAST] = True
        errors = (net(frames, given) - frames[:, 1:]).square()
        return Loss(errors.sum(), torch.tensor(float(errors.numel())))

    def draw(past: Tensor) -> Tensor:
        future = past.new_zeros(len(past), MNIST_FRAMES - PAST, *past.shape[2:])
        given = torch.arange(MNIST_FRAMES).expand(len(past), -1) < PAST
        return net(torch.cat((past, future), dim=1), given)[:, PAST - 1 :]

    return net, loss_of, draw


NETS = {"nowcaster": nowcaster, "plain": plain}

if __name__ == "__main__":
    main(tyro.cli(Options))
