"""The gate before a model is used at night: judged beside the champion on the same held-out shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_models.errors import UsageError
from pipelines.cluster.resources import Resources
from pipelines.judging import evaluate
from pipelines.judging.evaluate import Evaluation
from pipelines.reading.limits import MAX_BAD_SHARE


@dataclass(frozen=True)
class Verdict:
    """How a candidate does beside its rival: the champion, or without one the hybrid's baseline."""

    candidate: str
    rival: str
    metric: str
    higher_is_better: bool
    margin: float
    candidate_value: float
    rival_value: float
    samples: int
    low: float | None = None
    high: float | None = None
    """95 % confidence interval of candidate − rival; None beside a baseline."""
    p: float | None = None
    unanswered: int = 0
    """Samples beside `samples` that the candidate could not predict, of those that the champion could, if there is
    one."""

    @property
    def passed(self) -> bool:
        """Whether the candidate predicts (nearly) all that it should, and is not worse by more than the margin."""
        gain = self.candidate_value - self.rival_value
        answers = self.unanswered <= MAX_BAD_SHARE * (self.samples + self.unanswered)
        return answers and not math.isnan(gain) and (gain if self.higher_is_better else -gain) >= -self.margin

    def __str__(self) -> str:
        interval = "" if self.low is None else f", difference {self.low:+.4g} to {self.high:+.4g}"
        lost = "" if not self.unanswered else f"; {self.unanswered} more that it could not predict"
        return (
            f"{self.metric} of {self.candidate} is {self.candidate_value:.4g}, of {self.rival} {self.rival_value:.4g} "
            f"({self.samples} samples{interval}, margin {self.margin:g}){lost}"
        )


def weigh(
    candidate: Evaluation, champion: Evaluation | None, metric: str, margin: float, resources: Resources
) -> Verdict:
    """Judges the candidate and its rival; what was judged before is not computed again.

    Args:
        candidate: the model that might be promoted, on held-out shards.
        champion: the model in use, on the same shards; None if there is none yet.
        metric: one of the hybrid's; its first one if empty.
        margin: by how much the candidate may be worse, in the metric's unit.
        resources: how much of the cluster to take.

    Raises:
        UsageError: the hybrid has no such metric here, or see `evaluate.compare`.
        RuntimeError: see `evaluate.judge`.
    """
    if champion is None:
        judged = evaluate.evaluate(candidate, resources)
        metric, higher = _metric(candidate, metric, judged.metrics)
        baseline = judged.baseline
        values = (judged.metrics[metric], baseline[metric])
        return Verdict(
            candidate.artifact.model, f"the baseline '{baseline['name']}'", metric, higher, margin, *values,
            judged.samples, unanswered=sum(judged.errors.values()),
        )  # fmt: skip
    compared = evaluate.compare(champion, candidate, resources)
    metric, higher = _metric(candidate, metric, compared.metrics)
    found = compared.metrics[metric]
    return Verdict(
        candidate.artifact.model, champion.artifact.model, metric, higher, margin, found.second, found.first,
        compared.samples, found.low, found.high, found.p, compared.only_first,
    )  # fmt: skip


def _metric(candidate: Evaluation, metric: str, found: Mapping[str, object]) -> tuple[str, bool]:
    """The metric's name, and whether higher is better."""
    known = {name: higher for name, higher in candidate.artifact.interface.metrics.items() if name in found}
    name = metric or next(iter(known))
    if name not in known:
        raise UsageError(f"`metric` '{name}' is unknown here: use {', '.join(known)}")
    return name, known[name]
