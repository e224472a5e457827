"""How fast a captioner trains by `hybrid train`: epochs on references and on rewards, by one worker of all cores, by
two, and on one core alone; with GPUs by one of them, and by two where there are as many.

Photographs and their five captions are made up; captions have about as many words as Flickr8k's, frequent and rare.
The encoder's features are kept, so that it is the decoder that trains. The figures are the samples a second that a run
logs in MLflow at each epoch's end, and the validation loss after the epochs on references: what trains faster is to
learn as much. With `--full` the same command of the commit that goals were set against runs in
turn with ours, its own files, this environment's packages, `ROUNDS` times, and medians count; without, each way trains
once, since a training takes minutes.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from hybrid_models.captioner.config import CaptionerConfig
from pipelines import storage
from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, left_out, sizes, turn

BATCH = sizes().fitting
STEPS = 15
"""Of an epoch."""
PHOTOS = {"train": STEPS * BATCH, "val": BATCH}
EPOCHS = 4
REFERENCES = EPOCHS // 2
"""So many of them; the others are on rewards."""
AS_GOOD = 0.99
"""For `goal_times` of a loss: a hundredth more is the most."""
ROUNDS = 3
LEARNED = f"validation loss after {REFERENCES} epochs on references"
WORDS = 4000
WEIGHTS = "encoder.safetensors"
VERB = ["-m", "jobs.train"]
ONE_CORE = Path(__file__).parent / "scripts" / "one_core.py"


def write_photos(data: Path) -> None:
    """Shards of photographs with captions of ten made-up words, frequent ones and rare ones (Zipf)."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(WORDS)]
    often = [1 / (rank + 3) for rank in range(WORDS)]
    for split, count in PHOTOS.items():
        members = []
        for i in range(count):
            captions = [" ".join(draw.choices(words, often, k=10)) for _ in range(5)]
            members.append((f"{i:06d}.jpg", tiny.jpeg(i, size=224)))
            members.append((f"{i:06d}.json", json.dumps({"captions": captions}).encode()))
        storage.write_bytes(str(data / split / "photos.tar"), tiny.tar(members), storage.anything)


def write_weights(path: Path) -> None:
    """An encoder that has learned nothing: a file of weights is what a frozen one needs."""
    torch.manual_seed(0)
    net = timm.create_model(CaptionerConfig.encoder, pretrained=False, num_classes=0)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)


def train(tree: Path, folder: Path, data: Path, start: Sequence[str], *options: str) -> None:
    """One training, in a process of its own."""
    command = [sys.executable, *start, "captioner-flickr8k", "--data", str(data), "--storage", str(folder)]
    command += ["--name", "run", "--mlflow", f"sqlite:///{folder}/mlflow.db", "--pictures", "0"]
    command += ["--model.encoder-weights", str(data / WEIGHTS), "--model.reward-share", str(1 - REFERENCES / EPOCHS)]
    command += ["--train.epochs", str(EPOCHS), "--train.batch-size", str(BATCH)]
    command += ["--train.validate-samples", "8", *options]
    folder.mkdir(parents=True)
    peers.finish(command, tree, peers.clean(PYTHONPATH=str(tree)))


def logged(folder: Path, metric: str) -> list[float]:
    """What a training's run logged at the end of each epoch; the largest, where it did so more than once."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (history,) = [h for run in runs if (h := client.get_metric_history(run.info.run_id, metric))]
    return [max(found.value for found in history if found.step == STEPS * (epoch + 1)) for epoch in range(EPOCHS)]


def ways(gpus: int) -> dict[str, tuple[list[str], list[str]]]:
    """How a machine with so many GPUs trains: what is started, and its options. A worker has a GPU to itself."""
    found: dict[str, tuple[list[str], list[str]]] = {"one": (VERB, [])}
    if gpus != 1:
        found["two"] = (VERB, ["--num-workers", "2"])
    if not gpus:
        found["core"] = ([str(ONE_CORE), "train"], [])
    return found


def told(what: str, rate: Mapping[str, float], goal: float, gpus: int) -> list[Row]:
    """The rows of an epoch.

    Args:
        what: the epoch's name.
        rate: samples a second of each of the `ways`, and those of the earlier commit if it ran.
        goal: how many times as fast as that.
        gpus: of this machine.
    """
    against = f"commit {peers.BASELINE}" if "before" in rate else ""
    made = [Row(what, rate["one"], "samples/s", rate.get("before"), against, goal_times=goal)]
    alone = (rate["one"], "one GPU") if gpus else (rate["core"], "one core")
    if gpus:
        made.append(left_out(f"{what}, all cores beside one", "a GPU trains"))
    else:
        made.append(Row(f"{what}, one worker of all cores", rate["one"], "samples/s", *alone, goal_times=1.6))
    if "two" in rate:
        made.append(Row(f"{what}, two workers", rate["two"], "samples/s", *alone, goal_times=1.6))
    else:
        made.append(left_out(f"{what}, two workers", "there is one GPU"))
    return made


def learned(loss: Mapping[str, float]) -> list[Row]:
    """How well each of the `ways` has learned, beside one core, or one GPU, alone."""
    name, against = ("core", "one core") if "core" in loss else ("one", "one GPU")
    others = {"one": "one worker of all cores", "two": "two workers"}
    return [
        Row(f"{LEARNED}, {others[way]}", loss[way], "nats", loss[name], against, goal_times=AS_GOOD)
        for way in others
        if way in loss and way != name
    ]


def rows(full: bool, scratch: Path) -> list[Row]:
    """Epochs on references and on rewards, each the second of two: the first waits for what is loaded once."""
    data, gpus = scratch / "data", torch.cuda.device_count()
    write_photos(data)
    write_weights(data / WEIGHTS)
    found: dict[str, list[list[float]]] = defaultdict(list)
    losses: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        started = {name: (tiny.ROOT, *way) for name, way in ways(gpus).items()}
        if full:
            started["before"] = (stack.enter_context(peers.checkout(peers.BASELINE)), VERB, [])
        for number in range(ROUNDS if full else 1):
            for name in turn(number, list(started)):
                tree, start, options = started[name]
                train(tree, scratch / f"{name}-{number}", data, start, *options)
                found[name].append(logged(scratch / f"{name}-{number}", "samples_per_second"))
                losses[name].append(logged(scratch / f"{name}-{number}", "val_loss")[REFERENCES - 1])
    made = []
    for what, epoch, goal in (
        ("an epoch on references", REFERENCES - 1, 1.5),
        ("an epoch on rewards", EPOCHS - 1, 2.5),
    ):
        rate = {name: statistics.median(speed[epoch] for speed in each) for name, each in found.items()}
        made += told(what, rate, goal, gpus)
    return [*made, *learned({name: statistics.median(each) for name, each in losses.items()})]
