import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from jobs import demo
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.command.options import NightOptions
from jobs.recipes import RECIPES
from pipelines.datasets.demo import data
from pipelines.datasets.demo.nights import SHOT_SECONDS
from pipelines.models import artifacts
from pipelines.nights.commit import Partition


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
    nights: list[tuple[Partition, NightOptions]] = []

    def note(given: str, partition: Partition, *more: object) -> dict[str, Any]:
        options = more[2]
        assert isinstance(options, NightOptions)
        nights.append((partition, options))
        return {"task": "captions", "ds": partition.ds, "rows": 1, "ok": 1, "errors": {}, "version": 1, "changed": True}

    model = SimpleNamespace(model="models:/captioner/1", decoding=DecodingConfig())
    judged = {"metrics": {"cider_d": 1.0}, "baseline": {"name": "none", "cider_d": 0.0}}
    monkeypatch.setattr(demo.train, "run", lambda *_: {"model": model.model})
    monkeypatch.setattr(artifacts, "read", lambda *_: model)
    monkeypatch.setattr(demo.evaluate, "run", lambda *_: judged)
    monkeypatch.setattr(demo.registry, "champion", lambda *_: "1")
    monkeypatch.setattr(demo.infer, "run", note)
    demo._take_through(demo.TASKS[0], "lake", "sqlite:///m.db", 0)
    assert [(partition.ds, options.rules.allow_missing) for partition, options in nights] == [
        (ds, False) for ds in demo.NIGHTS
    ]
    assert {options.source.windows.window_seconds for _, options in nights} == {SHOT_SECONDS}


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot write /proc/nowhere/"):
        demo.main(["--out", str(tmp_path), "--storage", "/proc/nowhere"])
    with pytest.raises(UsageError, match="--scenes"):
        demo.main(["--scenes", "many"])
    with pytest.raises(UsageError, match="`digits` is 7: at least 8"):
        demo.main(["--out", str(tmp_path), "--digits", "7"])


def test_an_earlier_demo_with_other_options_stays(tmp_path: Path) -> None:
    """Its trainings could not go on, and their data would be gone."""
    run = tmp_path / "runs" / "captioner-demo"
    run.mkdir(parents=True)
    epochs = RECIPES["captioner-demo"]().train.epochs
    (run / "run.json").write_text(json.dumps({"config": {"train": {"epochs": epochs}}}))
    data.prepare_one("scenes", str(tmp_path / "data"), 8, 1, 8, 0)
    before = (tmp_path / "data/scenes/_manifest.json").read_bytes()
    with pytest.raises(
        UsageError, match=r"holds a demo whose `captioner-demo` was made with `scenes` 8, not 1600: use"
    ):
        demo.main(["--out", str(tmp_path)])
    with pytest.raises(UsageError, match=rf"was made with `epochs` {epochs}, not {epochs + 1}: use another `out`$"):
        demo.main(["--out", str(tmp_path), "--scenes", "8", "--epochs", str(epochs + 1)])
    assert (tmp_path / "data/scenes/_manifest.json").read_bytes() == before
    rows = {"scenes": 8, "digits": 800, "sentences": 3000}
    for damaged in ("{", "[]", "{}"):
        demo._check_same(str(tmp_path), rows, 0)
        (run / "run.json").write_text(damaged)


def test_work_that_fails_says_which_and_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the real processes, from which an exception may not come back whole; what is beside it is done."""
    monkeypatch.setattr(demo.connection, "side_by_side", lambda jobs: 2)
    monkeypatch.setattr(demo.connection, "for_others", dict)
    monkeypatch.setattr(demo, "PRELOADED", ())
    demo._preload()
    with demo._processes() as pool:
        assert demo._all(pool, {"a": partial(abs, -3), "b": partial(len, "ab")}) == [3, 2]
        with pytest.raises(EndedError, match=r"^data: --digits is 7: at least 8") as error:
            demo._all(pool, {"fine": partial(abs, 1), "data": partial(data.check, {"digits": 7}, 90)})
        assert error.value.code == cli.USAGE
        with pytest.raises(EndedError, match=r"^odd: failed: ConnectionError: away \(HYBRID_TRACEBACK=1") as error:
            demo._all(pool, {"odd": away})
        assert error.value.code == cli.FAILED
        with pytest.raises(EndedError, match=r"^failed: a process was killed, .* with smaller --scenes"):
            demo._all(pool, {"killed": partial(os._exit, 9)})


def away() -> None:
    raise ConnectionError("away")
