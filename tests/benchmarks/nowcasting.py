"""How long a nowcast of twelve leads, with probabilities, takes on one core, or a GPU, beside pysteps, whose have none.

Rain is made up: smooth fields above a threshold, moving along. `pysteps` extrapolates along its Lucas-Kanade motion,
or runs S-PROG; it needs an environment of its own and runs with `--full` only. Ours is measured with a worker's
settings, and in a process without those of its allocator, as who uses the package from Python has it.

    python -m tests.benchmarks.nowcasting SIDE

measures ours alone, with the settings of this process, and prints the seconds.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from hybrid_models.contract import to_device
from hybrid_models.inputs import Sample
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from pipelines.cluster.connection import ALLOCATOR, SHARED_CORES
from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, clock, device, in_turn, sizes

SCRIPT = Path(__file__).parent / "scripts" / "pysteps_peer.py"
SIDES = (256, 1024)
PAST, LEADS, MINUTES = 10, 12, 5.0
METHODS = {"extrapolation": ("pysteps, Lucas-Kanade", 1.0), "sprog": ("pysteps, S-PROG", 2.5)}
"""What pysteps is asked for → its name in the report, and how many times as fast a nowcast has to be."""
ROUNDS = 3


def rain(side: int) -> np.ndarray:
    """mm/h `[PAST, side, side]`: a field that moves two columns a frame and changes slowly."""
    draw = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(draw.normal(size=(side, side)), sigma, mode="wrap") for sigma in (3, 8, 3)]
    still, large, change = (field / field.std() for field in fields)
    frames = [np.roll(still + large, 2 * t, axis=1) + 0.1 * t * change for t in range(PAST)]
    return np.stack([np.where(frame > 1, np.expm1(frame), 0) for frame in frames]).astype(np.float32)


def sample(frames: np.ndarray) -> Sample:
    """What a nowcast is made of."""
    return {
        "past": frames.astype(np.float16), "step_minutes": np.float32(MINUTES), "n_leads": np.int64(LEADS),
        "issue_time": np.int64(0),
    }  # fmt: skip


def nowcast_seconds(model: Nowcaster, frames: np.ndarray) -> float:
    """Of one nowcast, of as many at once as fill the device, as a night makes it: frames, columns and probabilities."""
    began, count = clock(), sizes().nowcasts
    model.predict(to_device(model.collate([sample(frames)] * count), device()), NowcasterDecoding())
    return (clock() - began) / count


def untrained() -> Nowcaster:
    """The recipe's net, on one core or a GPU."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Nowcaster(NowcasterConfig(past_frames=PAST), {}).eval().to(device())


def seconds_from_python(side: int) -> float:
    """Of one nowcast in a process of its own, without a worker's settings."""
    env = {name: value for name, value in peers.clean().items() if name not in {**ALLOCATOR, **SHARED_CORES}}
    said = peers.finish([sys.executable, "-m", "tests.benchmarks.nowcasting", str(side)], tiny.ROOT, env)
    return float(json.loads(said))


def rows(full: bool, scratch: Path) -> list[Row]:
    """Both sizes, with a worker's settings and without; with pysteps' two, too, if `full`."""
    model, made = untrained(), []
    for side in SIDES:
        frames = rain(side)
        measures = {
            "ours": partial(nowcast_seconds, model, frames),
            "from Python": partial(seconds_from_python, side),
        }
        if full:
            np.save(scratch / "rain.npy", frames)
            question = {"frames": str(scratch / "rain.npy"), "leads": LEADS, "minutes": MINUTES}
            for method in METHODS:
                asked = partial(peers.answer, SCRIPT, {**question, "method": method}, "pysteps")
                measures[method] = lambda asked=asked: float(asked()["seconds"])
        for measure in measures.values():
            measure()
        found = in_turn(ROUNDS, measures)
        where = "one core" if device().type == "cpu" else f"one GPU, {sizes().nowcasts} at once"
        what = f"{LEADS} leads of {side} x {side}, {where}"
        alone = f"{what}, from Python without the allocator's settings"
        for name, ours in ((what, found["ours"]), (alone, found["from Python"])):
            if full:
                for method, (against, goal) in METHODS.items():
                    made.append(Row(name, ours, "s", found[method], against, goal_times=goal))
            else:
                made.append(Row(name, ours, "s"))
    return made


def main(side: int) -> None:
    """Prints the seconds of the second nowcast: the first loads what it needs."""
    model, frames = untrained(), rain(side)
    nowcast_seconds(model, frames)
    print(json.dumps(nowcast_seconds(model, frames)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
