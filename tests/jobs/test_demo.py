import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from hybrid_models.inputs import DecodingConfig
from jobs import cli, demo, infer
from jobs.errors import EndedError
from jobs.recipes import RECIPES
from pipelines.datasets.demo.data import SHOT_SECONDS


def test_the_demo_shows_three_hybrids_by_a_metric_and_columns_that_they_have() -> None:
    hybrids = [RECIPES[task.recipe]().hybrid for task in demo.TASKS]
    assert len({*hybrids} & {*HYBRIDS}) == len(hybrids) == 3
    for task, name in zip(demo.TASKS, hybrids, strict=True):
        hybrid = HYBRIDS[name]
        assert task.metric in hybrid.metrics
        assert RECIPES[task.recipe]().train.metric == task.metric
        assert set(task.columns.split(", ")) <= set(hybrid.payload_schema.names)


def test_a_night_of_somebody_elses_is_not_replaced_by_the_demos(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--storage` may name a lake in use, whose nights have these dates: shards that are gone are refused."""
    nights: list[infer.InferOptions] = []

    def note(options: infer.InferOptions, *_: object) -> dict[str, Any]:
        nights.append(options)
        return {"task": "captions", "ds": options.ds, "rows": 1, "ok": 1, "errors": {}, "version": 1, "changed": True}

    model = SimpleNamespace(model="models:/captioner/1", decoding=DecodingConfig())
    judged = {"metrics": {"cider_d": 1.0}, "baseline": {"name": "none", "cider_d": 0.0}}
    monkeypatch.setattr(demo.train, "run", lambda *_: {"model": model.model})
    monkeypatch.setattr(demo.artifacts, "read", lambda *_: model)
    monkeypatch.setattr(demo.evaluate, "run", lambda *_: judged)
    monkeypatch.setattr(demo.registry, "champion", lambda *_: "1")
    monkeypatch.setattr(demo.infer, "run", note)
    demo._take_through(demo.TASKS[0], "lake", "sqlite:///m.db", 0)
    assert [(night.ds, night.night.rules.allow_missing) for night in nights] == [(ds, False) for ds in demo.NIGHTS]
    assert {night.source.windows.window_seconds for night in nights} == {SHOT_SECONDS}


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write /proc/nowhere/"):
        demo.main(["--out", str(tmp_path), "--storage", "/proc/nowhere"])
    with pytest.raises(UsageError, match="--scenes"):
        demo.main(["--scenes", "many"])
    with pytest.raises(UsageError, match="`digits` is 7: at least 8"):
        demo.main(["--out", str(tmp_path), "--digits", "7"])


def test_a_task_that_fails_says_which_and_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in a process of its own, from which an exception might not come back whole."""

    def fail(*_: object) -> None:
        raise UsageError("no model")

    monkeypatch.setattr(demo, "_take_through", fail)
    monkeypatch.setattr(demo.connection, "connect", lambda quiet: contextlib.nullcontext())
    monkeypatch.setenv("RAY_ADDRESS", "")
    made = demo._one({"RAY_ADDRESS": "head:6379"}, demo.TASKS[0], "lake", "sqlite:///m.db", 0)
    with pytest.raises(EndedError, match=r"^captioner-demo: no model$") as error:
        demo._result(made)
    assert error.value.code == cli.USAGE
