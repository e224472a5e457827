"""What must be there before the first step of a training: the untrained model, and prepared samples."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import ray
import torch

from hybrid_models import HYBRIDS, Hybrid
from pipelines import storage
from pipelines.models import artifacts, weights
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference
from pipelines.reading.bundles import bundled
from pipelines.reading.datasource import ShardDatasource
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import MAX_BAD_SHARE
from pipelines.reading.samples import SAMPLE_SCHEMA, TrainingTexts
from pipelines.reading.shards import Shard
from pipelines.reading.units import Part
from pipelines.staging import checks, contents, engine, uses
from pipelines.staging.actors import Featurizer
from pipelines.staging.contents import Staged
from pipelines.staging.pieces import PASSING, Piece
from pipelines.training.recipe import Recipe
from pipelines.training.runs import INITIAL, TrainJob

log = logging.getLogger(__name__)
PREPARED_SCHEMA = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])


def initial_artifact(job: TrainJob, shards: list[Shard]) -> Artifact:
    """The untrained model with its assets and pretrained parts, made once and kept in the run's folder."""
    place = storage.join(job.run, INITIAL)
    if not storage.exists(storage.join(place, weights.CONFIG)):
        recipe = job.recipe
        kind = HYBRIDS[recipe.hybrid]
        assets = kind.learn_assets(recipe.model, _texts(recipe, shards))
        torch.manual_seed(recipe.train.seed)
        hybrid = kind(recipe.model, assets)
        for part, uri in hybrid.pretrained().items():
            hybrid.load_pretrained(part, None if uri == "hub" else weights.read_tensors(uri))
        files = artifacts.make(hybrid, recipe.decoding, {}, "Initial weights of a training run.\n")
        artifacts.write(files, place, job.is_own)
    return artifacts.read(place)


def _texts(recipe: Recipe, shards: list[Shard]) -> Iterator[str]:
    """All texts of the training shards, streaming; nothing is read for a hybrid that learns no assets."""
    if not recipe.model.learns_from_texts:
        return
    whole = [Part(replace(shard, cut=False), shard.key) for shard in shards]
    bundles = bundled(whole, max(1, int(ray.cluster_resources().get("CPU", 1))))
    source = ShardDatasource(bundles, ReadOptions(limits=recipe.limits), TrainingTexts(recipe.model))
    dataset = ray.data.read_datasource(source, override_num_blocks=len(bundles), num_cpus=engine.DECODE_CPUS)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch["text"].to_pylist()


def prepare(job: TrainJob, initial: Artifact, shards: list[Shard]) -> tuple[list[Piece], Counter[str]]:
    """Decoded and featurized samples in the lake, computed once for each shard and configuration.

    What could not be read for a reason of the moment stays as it is: others go on with these samples. Not where they
    are too few to train on.

    Returns:
        The staged pieces, and the counts of bad samples by kind.

    Raises:
        RefusedError: too many are bad.
    """
    recipe = job.recipe
    hybrid = initial.load()
    folder = features_folder(job, initial, hybrid)
    uses.mark(folder, uses.RUN, job.run)
    inference = Inference.of(initial, recipe.limits, recipe.cut)
    actor = engine.Actor(Featurizer, (inference,), ("features",)) if hybrid.has_frozen_features else None
    decode = inference.decode(with_target=True)
    for once in (True, False):
        staged = Staged()
        if todo := checks.incomplete(shards, folder, once):
            log.info("%s: preparing %d of %d shards", job.name, len(todo), len(shards))
            staged = engine.stage(todo, folder, PREPARED_SCHEMA, decode, actor, job.resources, "features")
        pieces = checks.verify(shards, folder)
        found = contents.total(pieces, staged.contents)
        errors, rows = found.errors, sum(piece.rows for piece in pieces) + found.lost
        if not checks.too_many(errors, rows, MAX_BAD_SHARE):
            break
    checks.check_errors(errors, rows, MAX_BAD_SHARE, "the share allowed in training,", "mend the data or its limits")
    for kind, count in errors.items():
        log.warning("%s: %d training samples are left out: %s", job.name, count, kind)
    return pieces, errors


def features_folder(job: TrainJob, initial: Artifact, hybrid: Hybrid) -> str:
    """Where samples are kept that are decoded and featurized alike; what is trained, and how, decides nothing."""
    frozen = hashlib.sha256()
    trained = {name for name, parameter in hybrid.named_parameters() if parameter.requires_grad}
    for name, tensor in sorted(hybrid.state_dict().items()):
        if name not in trained:
            frozen.update(name.encode())
            frozen.update(tensor.contiguous().numpy().tobytes())
    config = {name: value for name, value in initial.meta["config"].items() if name not in hybrid.Config.not_in_samples}
    decisive = {
        "hybrid": hybrid.name,
        "samples_version": hybrid.samples_version,
        "config": config,
        "assets": initial.assets,
        "limits": job.recipe.limits.decisive,
        "frozen": frozen.hexdigest(),
        **({} if job.recipe.cut is None else {"cut": job.recipe.cut.decisive}),
    }
    return storage.join(storage.absolute(job.storage), "features", artifacts.fingerprint(decisive)[:12])
