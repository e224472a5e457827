"""How long a nowcast of twelve leads, with probabilities, takes on one core, or a GPU, beside pysteps, whose have none.

Rain is made up: smooth fields above a threshold, moving along. `pysteps` extrapolates along its Lucas-Kanade motion,
or runs S-PROG; it needs an environment of its own and runs with `--full` only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from hybrid_models.contract import to_device
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.nowcaster.preprocess import NowcasterConfig
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, clock, device, in_turn, sizes

SCRIPT = Path(__file__).parent / "scripts" / "pysteps_peer.py"
SIDES = (256, 1024)
PAST, LEADS, MINUTES = 10, 12, 5.0
ROUNDS = 3


def rain(side: int) -> np.ndarray:
    """mm/h `[PAST, side, side]`: a field that moves two columns a frame and changes slowly."""
    draw = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(draw.normal(size=(side, side)), sigma, mode="wrap") for sigma in (3, 8, 3)]
    still, large, change = (field / field.std() for field in fields)
    frames = [np.roll(still + large, 2 * t, axis=1) + 0.1 * t * change for t in range(PAST)]
    return np.stack([np.where(frame > 1, np.expm1(frame), 0) for frame in frames]).astype(np.float32)


def nowcast_seconds(model: Nowcaster, frames: np.ndarray) -> float:
    """Of one nowcast, of as many at once as fill the device, as a night makes it: frames, columns and probabilities."""
    sample = {
        "past": frames.astype(np.float16), "step_minutes": np.float32(MINUTES), "n_leads": np.int64(LEADS),
        "issue_time": np.int64(0),
    }  # fmt: skip
    began, count = clock(), sizes().nowcasts
    model.predict(to_device(model.collate([sample] * count), device()), NowcasterDecoding())
    return (clock() - began) / count


def rows(full: bool, scratch: Path) -> list[Row]:
    """Both sizes; with pysteps' two, too, if `full`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Nowcaster(NowcasterConfig(past_frames=PAST), {}).eval().to(device())
    made = []
    for side in SIDES:
        frames = rain(side)
        measures = {"ours": partial(nowcast_seconds, model, frames)}
        if full:
            np.save(scratch / "rain.npy", frames)
            question = {"frames": str(scratch / "rain.npy"), "leads": LEADS, "minutes": MINUTES}
            for method in ("extrapolation", "sprog"):
                asked = partial(peers.answer, SCRIPT, {**question, "method": method}, "pysteps")
                measures[method] = lambda asked=asked: float(asked()["seconds"])
        for measure in measures.values():
            measure()
        found = in_turn(ROUNDS, measures)
        where = "one core" if device().type == "cpu" else f"one GPU, {sizes().nowcasts} at once"
        what = f"{LEADS} leads of {side} x {side}, {where}"
        if full:
            made.append(Row(what, found["ours"], "s", found["extrapolation"], "pysteps, Lucas-Kanade", goal_times=1.0))
            made.append(Row(what, found["ours"], "s", found["sprog"], "pysteps, S-PROG", goal_times=2.5))
        else:
            made.append(Row(what, found["ours"], "s"))
    return made
