import logging
import time
from typing import Any

import pytest
import ray

from pipelines.training import progress

pytestmark = pytest.mark.usefixtures("ray_cluster")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pipelines.training.progress"]


def test_every_epoch_is_one_line_also_the_last(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipelines.training.progress")
    with progress.followed("run", epochs=2) as reporter:
        for epoch in (0, 1):
            reporter.update.remote("start", epoch, 3 * epoch, {"steps": 3, "done": 0})
            reporter.update.remote("step", epoch, 3 * epoch + 2, {"loss": 2.5, "samples_per_second": 10.0})
            ray.get(
                reporter.update.remote(
                    "epoch", epoch + 1, 3 * epoch + 3, {"val_loss": 1.23456, "val_bleu": float(epoch)}
                )
            )
    assert lines(caplog) == [
        "run: epoch 1/2, step 3: val_loss 1.235, val_bleu 0",
        "run: epoch 2/2, step 6: val_loss 1.235, val_bleu 1",
    ]


def test_events_are_handed_out_once() -> None:
    actor = progress.Reporter.remote()  # type: ignore[attr-defined]
    ray.get(actor.update.remote("step", 0, 1, {"loss": 1.0}))
    assert ray.get(actor.take.remote()) == [("step", 0, 1, {"loss": 1.0}, "")]
    assert ray.get(actor.take.remote()) == []
    ray.kill(actor)


def test_an_answer_that_is_late_ends_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    get, late = ray.get, iter([True, True])

    def slow(*args: Any, **options: Any) -> Any:
        if options and next(late, False):
            raise ray.exceptions.GetTimeoutError("busy")
        return get(*args, **options)

    caplog.set_level(logging.INFO, "pipelines.training.progress")
    monkeypatch.setattr(progress.ray, "get", slow)
    with progress.followed("run", epochs=1) as reporter:
        get(reporter.update.remote("epoch", 1, 3, {"val_loss": 1.0}))
        time.sleep(4 * progress.POLL_SECONDS)
    assert lines(caplog) == ["run: epoch 1/1, step 3: val_loss 1"]


def test_a_lost_reporter_or_a_failed_training_stops_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipelines.training.progress")
    with pytest.raises(RuntimeError, match="training failed"), progress.followed("run", epochs=1) as reporter:  # noqa: PT012
        ray.kill(reporter)
        deadline = time.monotonic() + 20
        while not lines(caplog) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise RuntimeError("training failed")
    assert len(lines(caplog)) == 1
    assert lines(caplog)[0].startswith("progress is not shown any longer: ")
