"""`hybrid evaluate`: judge a model on held-out shards, beside its trivial baseline."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tyro import MISSING

from hybrid_models.errors import UsageError
from hybrid_models.inputs import DecodingConfig
from jobs import cli
from pipelines import artifacts, cluster, evaluate, storage
from pipelines.artifacts import Artifact
from pipelines.cluster import Resources
from pipelines.limits import Limits
from pipelines.shards import list_shards
from pipelines.tracking import Tracker, default_uri, shown


@dataclass(frozen=True)
class EvaluateOptions:
    """What `hybrid evaluate` needs to know."""

    model: str
    """The model: an artifact folder, or models:/NAME/VERSION or models:/NAME@ALIAS."""
    input: str
    """Held-out shards with references: a folder, a glob pattern or one object, such as s3://lake/multi30k/test"""
    decoding: DecodingConfig
    """How to decode; the model's own options by default."""
    storage: str = "./lake"
    """URI below which records are staged, so that an interrupted evaluation goes on."""
    stride: int = 1
    """Every n-th issue time of a radar event is a sample."""
    mlflow: str = ""
    """MLflow tracking URI; MLFLOW_TRACKING_URI by default, else ./mlflow.db"""
    resources: Resources = field(default_factory=Resources)
    """How much of the cluster to take."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on one input row; what exceeds them is a bad sample."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, checks everything that can be checked, connects, judges."""
    tracking_uri = cli.peek(argv, "--mlflow") or default_uri()
    model = cli.peek(argv, "--model")
    artifact = None if model is None else artifacts.read(model, None, tracking_uri)
    decoding = DecodingConfig() if artifact is None else artifact.decoding
    options = cli.parse(
        EvaluateOptions, argv, "hybrid evaluate", "Judge a model on held-out shards, beside its trivial baseline.",
        EvaluateOptions(MISSING, MISSING, decoding),
    )  # fmt: skip
    if artifact is None:
        raise UsageError("--model is needed: an artifact folder or models:/NAME@ALIAS")
    return run(options, artifact, tracking_uri)


def run(options: EvaluateOptions, artifact: Artifact, tracking_uri: str) -> dict[str, Any]:
    """One evaluation, with its MLflow run."""
    if options.stride < 1:
        raise UsageError(f"--stride is {options.stride}: it must be at least 1")
    job = evaluate.Evaluation(
        list_shards(options.input), options.storage, artifact, options.decoding, options.stride, options.limits
    )
    storage.check_writable(options.storage)
    tracker = Tracker(tracking_uri)
    hybrid = artifact.hybrid_class.name
    params = {"input": options.input, "model": artifact.model, "stride": options.stride, "decoding": vars(job.decoding)}
    with cluster.connect():
        tracker.start(f"evaluate {artifact.model}", params, {"hybrid.job": "evaluate"})
        try:
            result = evaluate.evaluate(job, options.resources)
        except BaseException:
            tracker.finish(succeeded=False)
            raise
    baseline = {key: value for key, value in result["baseline"].items() if isinstance(value, int | float)}
    tracker.log_metrics({**result["metrics"], **{f"baseline/{key}": value for key, value in baseline.items()}})
    tracker.log_text(json.dumps(result, indent=2), "evaluation.json")
    tracker.finish()
    return {
        "hybrid": hybrid,
        "model": artifact.model,
        "model_version": artifact.version,
        "input": options.input,
        **result,
        "mlflow": shown(tracking_uri),
        "mlflow_run_id": tracker.run_id,
    }


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
