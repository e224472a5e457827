import importlib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Cut
from hybrid_models.nowcaster.config import NowcasterConfig
from jobs.command import cli
from jobs.command.options import (
    JudgingOptions,
    MlflowOptions,
    NightOptions,
    SourceOptions,
    WindowOptions,
    WorkOptions,
    check_ds,
)
from pipelines.models.server import default_uri
from pipelines.nights.rules import Retention, Rules
from tests.jobs.command.test_cli import flags_of

SHARED = (MlflowOptions, WorkOptions, JudgingOptions, NightOptions, WindowOptions)


def test_a_shared_option_is_declared_in_one_class() -> None:
    shared = {name.split(".")[0] for group in SHARED for name in flags_of(group)}
    assert {"mlflow", "resources", "limits", "stride", "retain_hours", "max_error_fraction"} <= shared
    twice = []
    for verb in cli.VERBS:
        module = importlib.import_module(f"jobs.{verb}")
        for name, kind in vars(module).items():
            if name.endswith("Options") and is_dataclass(kind) and kind.__module__ == module.__name__:
                twice += [f"{name}.{field.name}" for field in fields(kind) if field.name in shared]
    # The recipe's own limits and what is not one of the group: a training's storage, what `doctor` looks at, of which
    # nothing is needed, decoding for features, a query's limits, what tidying would remove, and compacting rewrite.
    assert sorted(twice) == [
        "CompactOptions.dry_run", "DemoOptions.storage", "DoctorOptions.mlflow", "DoctorOptions.storage",
        "QueryOptions.limits", "TidyOptions.dry_run", "TidyOptions.dry_run", "TidyOptions.storage",
        "TrainOptions.limits", "TrainOptions.resources", "TrainOptions.storage",
    ]  # fmt: skip


def test_mlflow_is_where_it_is_said_or_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MlflowOptions("http://there").uri == "http://there"
    assert MlflowOptions().uri == default_uri()


def test_records_are_not_staged_among_shards(tmp_path: Path) -> None:
    options = JudgingOptions(str(tmp_path))
    options.check("")
    options.check(f"{tmp_path}/test")
    with pytest.raises(UsageError, match=r"^`input` .*/evaluations/x is|lies in .*: give another `storage`"):
        options.check(f"{tmp_path}/evaluations/x")
    with pytest.raises(UsageError, match="--stride is 0: it must be at least 1"):
        JudgingOptions(str(tmp_path), stride=0).check("")


def test_clips_are_cut_for_models_that_read_some() -> None:
    video, rain = NowcasterConfig(unit="intensity"), NowcasterConfig()
    assert WindowOptions(2.0).cut_for(video) == Cut(2.0, 2.0)
    assert WindowOptions(2.0, 0.5).cut_for(video) == Cut(2.0, 0.5)
    assert WindowOptions().cut_for(video) is None
    assert WindowOptions(2.0).cut_for(rain) is None, "among several models"
    for options, config in ((WindowOptions(), rain), (WindowOptions(2.0), video)):
        options.check_for(config)
    with pytest.raises(UsageError, match="--window-seconds cuts clips, and this model reads none: leave it out"):
        WindowOptions(2.0).check_for(rain)
    for options, said in ((WindowOptions(stride_seconds=1), "goes with --window-seconds"), (WindowOptions(-1), "-1")):
        for checked in (options.check, lambda windows=options: JudgingOptions(windows=windows).check("")):
            with pytest.raises(UsageError, match=said):
                checked()


@pytest.mark.parametrize("ds", ["2026-01-31", "2024-02-29"])
def test_dates(ds: str) -> None:
    check_ds(ds)


@pytest.mark.parametrize(
    "ds", ["", "2026-02-30", "20260131", "2026-1-31", "2026-01-31T00:00", "2026-W05-6", "today", "../x"]
)
def test_what_is_no_date(ds: str) -> None:
    with pytest.raises(UsageError, match="is not a date: write YYYY-MM-DD"):
        check_ds(ds)


def test_options_of_nights_that_cannot_be_are_refused() -> None:
    NightOptions().check()
    windows = WindowOptions(stride_seconds=1)
    for options, said in (
        (NightOptions(rules=Rules(1.5)), "`max_error_fraction` is 1.5"),
        (NightOptions(retention=Retention(0)), "`retain_hours` is 0"),
        (NightOptions(retention=Retention(10**8)), "`retain_hours` is 100000000: it must be at most 87600, ten years"),
        (NightOptions(source=SourceOptions(windows=windows)), "goes with --window-seconds"),
    ):
        with pytest.raises(UsageError, match=said):
            options.check()
