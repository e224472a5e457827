"""Groups of options that verbs share: each is said once, here or beside what it decides."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from hybrid_models.inputs import Cut
from hybrid_models.interface import HybridConfig
from pipelines import places, storage
from pipelines.cluster.resources import Resources
from pipelines.nights.rules import Retention, Rules
from pipelines.places import InputOptions
from pipelines.reading.limits import Limits

TASKS = {table: name for name, table in TABLES.items()}
"""What `infer` and `nightly` are asked for, the default table of each hybrid → the hybrid."""
FLAT = tyro.conf.arg(name="")
"""The options of a group so annotated have no prefix."""


@dataclass(frozen=True)
class MlflowOptions:
    """Where models and metrics are."""

    mlflow: str = ""
    """MLflow tracking URI; MLFLOW_TRACKING_URI by default, else ./mlflow.db"""

    @property
    def uri(self) -> str:
        """The tracking URI."""
        if self.mlflow:
            return self.mlflow
        from pipelines.models.server import default_uri  # MLflow takes a second to import

        return default_uri()


@dataclass(frozen=True)
class WorkOptions:
    """What a job takes of the cluster, and bears of its input."""

    resources: Resources = field(default_factory=Resources)
    """How much of the cluster to take."""
    limits: Limits = field(default_factory=Limits)
    """Bounds on one input row; what exceeds them is a bad sample."""


@dataclass(frozen=True)
class WindowOptions:
    """How long clips become rows."""

    window_seconds: float = 0.0
    """Cut clips into windows of so many seconds, a row each, so that a long video is more than one; 0 cuts none."""
    stride_seconds: float = 0.0
    """Seconds from the start of one window to that of the next; by default they follow one another."""

    def cut_for(self, config: HybridConfig) -> Cut | None:
        """How clips are cut for a model; not at all, if it reads none."""
        return self._cut if config.visual is not None else None

    def check_for(self, config: HybridConfig) -> None:
        """Refuses windows for the only model that they are given for, where they would do nothing.

        Raises:
            UsageError: it reads no clips.
        """
        if self._cut is not None and config.visual is None:
            raise UsageError("--window-seconds cuts clips, and this model reads none: leave it out")

    @property
    def _cut(self) -> Cut | None:
        if not self.window_seconds:
            return None
        return Cut(self.window_seconds, self.stride_seconds or self.window_seconds)

    def check(self) -> None:
        """Refuses options that do not go together.

        Raises:
            UsageError: says which.
        """
        if self.stride_seconds and not self.window_seconds:
            raise UsageError("--stride-seconds goes with --window-seconds: it tells where the next window begins")
        _ = self._cut


@dataclass(frozen=True)
class JudgingOptions:
    """How models are judged."""

    storage: str = "./lake"
    """URI below which records are staged, so that an interrupted evaluation goes on."""
    stride: int = 1
    """Every n-th issue time of a radar event is a sample."""
    windows: Annotated[WindowOptions, FLAT] = field(default_factory=WindowOptions)

    def check(self, shards: str) -> None:
        """Refuses shards in the folder of the records, a stride that is none, and windows that are none.

        Args:
            shards: the held-out ones, as the user gave them; none if empty.

        Raises:
            UsageError: says which.
        """
        if self.stride < 1:
            raise UsageError(f"--stride is {self.stride}: it must be at least 1")
        self.windows.check()
        if shards:
            places.check_apart({"input": shards}, "storage", [storage.join(self.storage, "evaluations")])


@dataclass(frozen=True)
class SourceOptions:
    """How the input is named, and what of it stays with a row."""

    named: Annotated[InputOptions, FLAT] = field(default_factory=InputOptions)
    keep: tuple[str, ...] = ()
    """Fields of the input that the table keeps, as a JSON object in its column `fields`: the number of a product …"""
    windows: Annotated[WindowOptions, FLAT] = field(default_factory=WindowOptions)

    def check(self) -> None:
        """Refuses options that do not go together.

        Raises:
            UsageError: says which.
        """
        self.named.check()
        self.windows.check()
        if self.named.uri_column and self.named.uri_column in self.keep:
            raise UsageError(
                f"`keep` names '{self.named.uri_column}', as `uri_column` does: each row's address is in the "
                "table's column 'object'"
            )


@dataclass(frozen=True)
class NightOptions:
    """How nights are made, when one is committed, and what is kept of those before."""

    rules: Annotated[Rules, FLAT] = field(default_factory=Rules)
    retention: Annotated[Retention, FLAT] = field(default_factory=Retention)
    source: Annotated[SourceOptions, FLAT] = field(default_factory=SourceOptions)
    work: Annotated[WorkOptions, FLAT] = field(default_factory=WorkOptions)
    dry_run: bool = False
    """Write nothing: say what would be computed and reused, how many files there would be, on which resources, and, at
    the pace of an earlier night, about how long it would compute."""

    def check(self) -> None:
        """Refuses options that cannot be or do not go together.

        Raises:
            UsageError: says which.
        """
        self.rules.check()
        self.retention.check()
        self.source.check()


def check_ds(ds: str, option: str = "--ds") -> datetime.date:
    """A date; refuses what is none.

    Raises:
        UsageError: says what a date looks like.
    """
    try:
        date = datetime.date.fromisoformat(ds)
    except ValueError:
        date = None
    if date is None or date.isoformat() != ds:
        raise UsageError(f"{option} '{ds}' is not a date: write YYYY-MM-DD, such as 2026-01-31")
    return date


Mlflow = Annotated[MlflowOptions, FLAT]
Work = Annotated[WorkOptions, FLAT]
Judging = Annotated[JudgingOptions, FLAT]
Nightly = Annotated[NightOptions, FLAT]
Input = Annotated[InputOptions, FLAT]
Windows = Annotated[WindowOptions, FLAT]
