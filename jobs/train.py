"""`hybrid train RECIPE`: train on a Ray cluster, keep the best model, register it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tyro import MISSING

from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig, HybridConfig
from jobs.command import cli
from jobs.command.options import Mlflow, MlflowOptions, WindowOptions, Windows
from jobs.recipes import RECIPES
from pipelines import places, storage
from pipelines.cluster import connection, logs
from pipelines.cluster.resources import Resources
from pipelines.models import registry, tracking
from pipelines.reading.limits import Limits
from pipelines.reading.sandbox import jail
from pipelines.training.recipe import Recipe, TrainConfig

log = logging.getLogger(__name__)
WORKERS = re.compile(r"[0-9]+(\.\.[0-9]+)?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TrainOptions:
    """What `hybrid train` needs to know; everything else is the recipe's and can be overridden."""

    data: str
    """URI of a dataset folder with the shards of `train` and `val`, as `hybrid prepare` writes it."""
    model: HybridConfig
    """Architecture and preprocessing."""
    decoding: DecodingConfig
    """Decoding options of validation and, unless overridden, of batch jobs."""
    train: TrainConfig
    """Optimisation."""
    limits: Limits
    """Bounds on one input row; what exceeds them is a bad sample."""
    windows: Windows = field(default_factory=WindowOptions)
    storage: str = "./lake"
    """URI below which runs (checkpoints, artifacts) and features are kept."""
    name: str = ""
    """Name of the run, by default the recipe's; the same name goes on where it stopped, with any number of workers."""
    register_as: str = ""
    """Name of the registered model, by default the hybrid's: two captioners of different things need two."""
    experiment: str = ""
    """MLflow experiment that the run belongs to; MLFLOW_EXPERIMENT_NAME by default, else `hybrid`."""
    num_workers: str = "1"
    """Training processes, one for each GPU or share of the CPUs. MIN..MAX (as 2..8): as many as the cluster has room
    for; when nodes go or come, those that are there go on from the last checkpoint."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether each of them takes a GPU: auto, if the cluster has any now; yes, also where it must grow first. Features
    are made on one likewise."""
    tracking: Mlflow = field(default_factory=MlflowOptions)
    checkpoint_minutes: float = 10.0
    """A checkpoint not only at the end of each epoch, but every so many minutes, at the next tenth step: what is lost
    at most where a machine dies. 0 makes none within an epoch."""
    pictures: int = 4
    """Validation samples drawn for the model card and MLflow, beside learning curves; 0 draws nothing."""
    resources: Resources = field(default_factory=Resources)
    """How much of the cluster decoding and features take, and by `threads` each training process."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, checks everything that can be checked, connects, trains."""
    name, rest = cli.positional(argv, "recipe", list(RECIPES), "hybrid train")
    return run(name, RECIPES[name]().hybrid, parse(name, rest))


def parse(name: str, argv: Sequence[str]) -> TrainOptions:
    """A recipe's options, some of them overridden.

    Raises:
        UsageError: what is wrong, in one line.
    """
    recipe = RECIPES[name]()
    return cli.parse(
        TrainOptions, argv, f"hybrid train {name}", f"Train the {recipe.hybrid} of recipe `{name}`.",
        TrainOptions(MISSING, recipe.model, recipe.decoding, recipe.train, recipe.limits),
    )  # fmt: skip


def run(recipe_name: str, hybrid: str, options: TrainOptions) -> dict[str, Any]:
    """One training run."""
    from pipelines.datasets.writer import check_finished
    from pipelines.training import runs  # with what reads shards; a help text does not wait for it

    jail.ensure()
    name = options.name or recipe_name
    for option, value in (("--name", name), ("--register-as", options.register_as or hybrid)):
        if not NAME.fullmatch(value):
            raise UsageError(f"{option} '{value}' must be letters, digits, '.', '_' and '-'")
    written = [storage.join(options.storage, folder) for folder in ("runs", "features")]
    for split in ("train", "val"):
        places.check_apart({"data": storage.join(options.data, split)}, "storage", written)
    options.windows.check()
    options.windows.check_for(options.model)
    check_finished(options.data, levels=1)
    cut = options.windows.cut_for(options.model)
    job = runs.TrainJob(
        recipe=Recipe(hybrid, options.model, options.decoding, options.train, options.limits, cut),
        recipe_name=recipe_name,
        data=storage.absolute(options.data),
        storage=options.storage,
        name=name,
        tracking_uri=options.tracking.uri,
        num_workers=workers(options.num_workers),
        resources=_with_gpu(options.resources, options.gpu),
        checkpoint_minutes=options.checkpoint_minutes,
        pictures=options.pictures,
        gpu=options.gpu,
        register_as=options.register_as,
        experiment=options.experiment,
    )
    shards = runs.check(job)
    if (trained := runs.finished(job)) is not None:
        log.info("run '%s' is finished: another --name trains again", name)
        return asdict(trained)
    registry.check(job.tracking_uri, job.model_name, hybrid, tracking.experiment_name(job.experiment))
    with connection.connect(), logs.about(run=job.name, recipe=job.recipe_name):
        from pipelines.training import driver  # torch and Ray take seconds to import; Ray is told something before

        return asdict(driver.train(job, shards))


def workers(text: str) -> int | tuple[int, int]:
    """A number of workers, or the least and the most of them.

    Raises:
        UsageError: it is neither.
    """
    if not WORKERS.fullmatch(text):
        raise UsageError(f"--num-workers '{text}' must be a number, or two with '..' between them, such as 1..4")
    numbers = [int(number) for number in text.split("..")]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _with_gpu(resources: Resources, gpu: Literal["auto", "yes", "no"]) -> Resources:
    """Features are made on a GPU where the training has one, unless their own option says otherwise."""
    return replace(resources, gpu=gpu) if resources.gpu == "auto" else resources


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
