"""`hybrid promote NAME`: make a registered model the champion, if it is not worse than the one in use.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Cut
from jobs.command import cli
from jobs.command.options import Input, Judging, JudgingOptions, Mlflow, MlflowOptions, Work, WorkOptions
from pipelines import storage
from pipelines.cluster import connection
from pipelines.models import registry
from pipelines.models.registry import CHALLENGER
from pipelines.models.tracking import Tracker
from pipelines.places import InputOptions
from pipelines.reading.sandbox import jail
from pipelines.secrets import shown

if TYPE_CHECKING:
    from pipelines.judging.evaluate import Evaluation
    from pipelines.judging.promotion import Verdict
    from pipelines.models.artifacts import Artifact
    from pipelines.reading.shards import Shard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromoteOptions:
    """What `hybrid promote` needs to know."""

    input: str = ""
    """Held-out shards with references, such as s3://lake/multi30k/test; may be left out with --force."""
    model: str = ""
    """The candidate: models:/NAME/VERSION or models:/NAME@ALIAS; models:/NAME@challenger by default."""
    metric: str = ""
    """What decides; the hybrid's first metric by default: cider_d, csi_1 (mse without rain rates), accuracy,
    bleu."""
    margin: float = 0.0
    """By how much the candidate may be worse, in the metric's unit."""
    force: str = ""
    """Promote whatever comes out, for this reason, which is recorded."""
    named: Input = field(default_factory=InputOptions)
    judging: Judging = field(default_factory=JudgingOptions)
    tracking: Mlflow = field(default_factory=MlflowOptions)
    work: Work = field(default_factory=WorkOptions)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, checks everything that can be checked, judges, moves the alias."""
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & set(argv):
            cli.parse(PromoteOptions, argv, "hybrid promote NAME", "Make a model the champion, if it is not worse.")
        raise UsageError("hybrid promote needs the name of a registered model first: `hybrid models` lists them")
    name, rest = argv[0], argv[1:]
    options = cli.parse(
        PromoteOptions, rest, f"hybrid promote {name}", "Make a model the champion, if it is not worse."
    )
    if not options.input and not options.force:
        raise UsageError("--input is needed: held-out shards with references (or --force REASON)")
    jail.ensure()
    if not 0 <= options.margin < math.inf:
        raise UsageError(f"--margin is {options.margin}: it must be a number from 0 on")
    options.judging.check(options.input)
    model = options.model or f"models:/{name}@{CHALLENGER}"
    if not model.startswith("models:/"):
        raise UsageError(f"--model {model} is not registered: write models:/NAME/VERSION or models:/NAME@ALIAS")
    return run(name, options, model, options.tracking.uri)


def run(name: str, options: PromoteOptions, model: str, tracking_uri: str) -> dict[str, Any]:
    """One promotion, with its MLflow run.

    Raises:
        RefusedError: the candidate is worse than its rival.
        RuntimeError: the champion changed while the candidate was judged, or another promotion at the same time won.
    """
    from pipelines.datasets.writer import check_finished
    from pipelines.models import artifacts
    from pipelines.reading.manifests import list_input
    from pipelines.staging.checks import RefusedError

    candidate = artifacts.read(model, None, tracking_uri)
    hybrid = candidate.interface
    if candidate.model != f"models:/{name}/{candidate.version}":
        raise UsageError(f"--model {model} is no version of the registered model '{name}', whose champion is chosen")
    if options.metric and options.metric not in hybrid.metrics:
        raise UsageError(f"--metric '{options.metric}' is unknown: use {', '.join(hybrid.metrics)}")
    options.judging.windows.check_for(candidate.config)
    if options.input:
        check_finished(options.input)
    cut = options.judging.windows.cut_for(candidate.config)
    given = [options.input] if options.input else []
    shards = list_input(given, options.named, options.work.limits, cut is not None).shards if given else []
    holder = registry.champion(tracking_uri, name)
    summary = {"name": name, "hybrid": hybrid.name, "model": candidate.model, "mlflow": shown(tracking_uri)}
    if holder == candidate.version:
        log.info("%s is the champion already", candidate.model)
        return {**summary, "promoted": False, "champion": candidate.model}
    before = None if holder is None else f"models:/{name}/{holder}"
    rival = _rival(before, hybrid.name, tracking_uri) if before and shards else None
    verdict = _weigh(options, shards, candidate, rival) if shards else None
    promoted = bool(options.force) or (verdict is not None and verdict.passed)
    decision = {
        "promoted": promoted,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": options.input,
        "forced": options.force,
        "champion_before": before,
        **({} if verdict is None else {**asdict(verdict), "passed": verdict.passed}),
    }
    registry.note(tracking_uri, name, candidate.version, {**decision, "promoted": False})
    if promoted:  # only now: a champion always has its reason
        promotions = registry.promotions(tracking_uri, name)
        registry.promote(tracking_uri, name, candidate.version, holder)
        registry.confirm(tracking_uri, name, candidate.version, promotions)
        registry.note(tracking_uri, name, candidate.version, decision)
    run_id = _record(tracking_uri, candidate, decision)
    if not promoted:
        raise RefusedError(f"{verdict}: not promoted; --force REASON promotes it all the same")
    log.info("%s is the champion: %s", candidate.model, verdict or options.force)
    return {**summary, "champion": candidate.model, **decision, "mlflow_run_id": run_id}


def _rival(champion: str, hybrid: str, tracking_uri: str) -> Artifact:
    from pipelines.models import artifacts

    try:
        return artifacts.read(champion, hybrid, tracking_uri)
    except UsageError as error:
        advice = "--force REASON without --input replaces it"
        raise UsageError(f"the champion cannot be judged ({error}); {advice}") from None


def _weigh(options: PromoteOptions, shards: list[Shard], candidate: Artifact, before: Artifact | None) -> Verdict:
    from pipelines.judging import promotion
    from pipelines.judging.evaluate import Evaluation
    from pipelines.models.session import Inference
    from pipelines.reading.manifests import list_input

    storage.check_writable(options.judging.storage)

    def cuts(artifact: Artifact) -> Cut | None:
        return options.judging.windows.cut_for(artifact.config)

    def job(artifact: Artifact) -> Evaluation:
        cut, own = cuts(artifact), shards
        if (cut is None) != (cuts(candidate) is None):
            own = list_input([options.input], options.named, options.work.limits, cut is not None).shards
        inference = Inference.of(artifact, options.work.limits, cut)
        return Evaluation(own, options.judging.storage, inference, options.judging.stride)

    with connection.on_demand():
        rival = None if before is None else job(before)
        return promotion.weigh(job(candidate), rival, options.metric, options.margin, options.work.resources)


def _record(tracking_uri: str, candidate: Artifact, decision: dict[str, Any]) -> str | None:
    """The decision as an MLflow run, whatever it is."""
    tracker = Tracker(tracking_uri)
    known = {name: value for name, value in decision.items() if value is not None}
    tracker.start(f"promote {candidate.model}", {"model": candidate.model, **known}, {"hybrid.job": "promote"})
    tracker.log_text(json.dumps(decision, indent=2), "promotion.json")
    tracker.finish()
    return tracker.run_id


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
