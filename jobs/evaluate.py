"""`hybrid evaluate`: judge a model on held-out shards, beside a baseline or beside another model.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro import MISSING

from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from jobs.command import cli
from jobs.command.options import Input, Judging, JudgingOptions, Mlflow, MlflowOptions, Work, WorkOptions
from pipelines import storage
from pipelines.cluster import connection
from pipelines.models.tracking import Tracker
from pipelines.places import InputOptions
from pipelines.reading.sandbox import jail
from pipelines.secrets import shown

if TYPE_CHECKING:
    from pipelines.judging.evaluate import Evaluation
    from pipelines.models.artifacts import Artifact


@dataclass(frozen=True)
class EvaluateOptions:
    """What `hybrid evaluate` needs to know."""

    model: str
    """The model: an artifact folder, or models:/NAME/VERSION or models:/NAME@ALIAS."""
    input: str
    """Held-out shards with references: a folder, a glob pattern or one object, such as s3://lake/multi30k/test"""
    decoding: DecodingConfig
    """How to decode; the model's own options by default."""
    compare: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="MODEL_A MODEL_B")] = None
    """Instead of --model: how B differs from A in each metric, and how sure that is (paired bootstrap)."""
    named: Input = field(default_factory=InputOptions)
    judging: Judging = field(default_factory=JudgingOptions)
    pictures: int = 4
    """Samples drawn for MLflow: attention, alignments, nowcasts; 0 draws nothing."""
    tracking: Mlflow = field(default_factory=MlflowOptions)
    work: Work = field(default_factory=WorkOptions)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, checks everything that can be checked, judges."""
    tracking = MlflowOptions(cli.peek(argv, "--mlflow") or "")
    model = cli.peek(argv, "--model")
    artifact = None if model is None else _artifact(model, None, tracking.uri)
    decoding = DecodingConfig() if artifact is None else artifact.decoding
    options = cli.parse(
        EvaluateOptions, argv, "hybrid evaluate", "Judge a model on held-out shards, beside a baseline or another one.",
        EvaluateOptions("", MISSING, decoding),
    )  # fmt: skip
    jail.ensure()
    if (artifact is None) == (options.compare is None):
        raise UsageError("--model is needed, an artifact folder or models:/NAME@ALIAS; or --compare MODEL_A MODEL_B")
    return run(options, artifact, tracking.uri) if artifact else run_comparison(options, tracking.uri)


def _artifact(model: str, hybrid: str | None, tracking_uri: str) -> Artifact:
    from pipelines.models import artifacts

    return artifacts.read(model, hybrid, tracking_uri)


def run(options: EvaluateOptions, artifact: Artifact, tracking_uri: str) -> dict[str, Any]:
    """One evaluation, with its MLflow run."""
    from pipelines.judging import evaluate

    job = _job(options, artifact, options.decoding)
    params = {
        "input": options.input,
        "model": artifact.model,
        "stride": options.judging.stride,
        "decoding": vars(options.decoding),
    }
    with _tracked(f"evaluate {artifact.model}", params, tracking_uri) as tracker:
        result = evaluate.evaluate(job, options.work.resources)
        baseline = {key: value for key, value in result.baseline.items() if isinstance(value, int | float)}
        tracker.log_metrics({**result.metrics, **{f"baseline/{key}": value for key, value in baseline.items()}})
        tracker.log_text(json.dumps(asdict(result), indent=2), "evaluation.json")
        for name, content in _pictures(job, options.pictures, result.details).items():
            tracker.log_file(content, f"pictures/{name}")
    return {
        "hybrid": artifact.hybrid_class.name,
        "model": artifact.model,
        "model_version": artifact.version,
        "input": options.input,
        **asdict(result),
        "mlflow": shown(tracking_uri),
        "mlflow_run_id": tracker.run_id,
    }


def run_comparison(options: EvaluateOptions, tracking_uri: str) -> dict[str, Any]:
    """One comparison of two models of one kind, each with its own decoding options, with its MLflow run."""
    from pipelines.judging import evaluate

    assert options.compare is not None
    first = _artifact(options.compare[0], None, tracking_uri)
    second = _artifact(options.compare[1], first.hybrid_class.name, tracking_uri)
    jobs = [_job(options, artifact, artifact.decoding) for artifact in (first, second)]
    params = {"input": options.input, "first": first.model, "second": second.model, "stride": options.judging.stride}
    with _tracked(f"compare {first.model} {second.model}", params, tracking_uri) as tracker:
        result = evaluate.compare(jobs[0], jobs[1], options.work.resources)
        tracker.log_metrics(
            {
                f"{name}/{key}": value
                for name, found in result.metrics.items()
                for key, value in asdict(found).items()
                if value is not None
            }
        )
        tracker.log_text(json.dumps(asdict(result), indent=2), "comparison.json")
    return {
        "hybrid": first.hybrid_class.name,
        "first": first.model,
        "second": second.model,
        "input": options.input,
        **asdict(result),
        "mlflow": shown(tracking_uri),
        "mlflow_run_id": tracker.run_id,
    }


def _job(options: EvaluateOptions, artifact: Artifact, decoding: DecodingConfig) -> Evaluation:
    from pipelines.datasets.writer import check_finished
    from pipelines.judging.evaluate import Evaluation
    from pipelines.models.session import Inference
    from pipelines.reading.manifests import list_input

    options.judging.check(options.input)
    options.judging.windows.check_for(artifact.config)
    check_finished(options.input)
    cut = options.judging.windows.cut_for(artifact.config)
    shards = list_input([options.input], options.named, options.work.limits, cut is not None).shards
    storage.check_writable(options.judging.storage)
    inference = Inference(artifact, decoding, options.work.limits, cut=cut)
    return Evaluation(shards, options.judging.storage, inference, options.judging.stride)


def _pictures(job: Evaluation, count: int, details: Mapping[str, Any]) -> dict[str, bytes]:
    """Examples, and the curves that there are."""
    if not count:
        return {}
    from pipelines.models import curves, pictures  # drawing takes half a second to import

    return {
        **curves.evaluation_curves(details),
        **pictures.examples(job.inference.load(), job.shards, count, job.stride),
    }


@contextmanager
def _tracked(name: str, params: Mapping[str, Any], tracking_uri: str) -> Iterator[Tracker]:
    """An MLflow run that ends as what is done inside ends, and a cluster, if there is work for one."""
    tracker = Tracker(tracking_uri)
    with connection.on_demand():
        tracker.start(name, params, {"hybrid.job": "evaluate"})
        try:
            yield tracker
        except BaseException:
            tracker.finish(succeeded=False)
            raise
    tracker.finish()


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
