"""What only a GPU can show: nets predict and learn there what they do on a CPU, and wait for it as seldom as is counted
on CPUs (`tests.waits`). `make test-gpu`, on a machine with one, from which other tests hide it."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from deltalake import DeltaTable

from hybrid_models import contract
from hybrid_models.contract import Hybrid, to_device
from pipelines.cluster import connection
from pipelines.cluster.resources import Compute, Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import infer
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.reading.shards import list_shards
from pipelines.staging.actors import Predictor
from pipelines.staging.pieces import Lineage
from pipelines.training import driver, loop, runs, workers
from pipelines.training.checkpoints import Progress
from pipelines.training.loop import Within, train_epoch
from pipelines.training.recipe import Recipe, TrainConfig
from pipelines.training.runs import TrainJob
from tests import tiny
from tests.pipelines.staging.test_actors import samples_table, tokenized
from tests.pipelines.training.test_loop import FORMS, Samples, some_of

pytestmark = pytest.mark.gpu
GPU, CPU = torch.device("cuda"), torch.device("cpu")
NEVER = Within(lambda: False, lambda: None)
LINEAGE = Lineage("m", "1", "f", "r")


@pytest.fixture(autouse=True, scope="module")
def there() -> None:
    assert torch.cuda.is_available(), "there is no GPU here that torch can use"


def on(device: torch.device, hybrid: Hybrid) -> Hybrid:
    contract.compute_exactly(device)
    return hybrid.to(device)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both devices compute in float32."""
    for module in ("hybrid_models.contract", "pipelines.training.loop"):
        monkeypatch.setattr(f"{module}.half_type", lambda device: None)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as its only worker runs it."""
    monkeypatch.setattr(workers, "rank", lambda: 0)
    monkeypatch.setattr(workers, "world_size", lambda: 1)
    monkeypatch.setattr(workers, "tell", lambda *args: None)


@contextmanager
def waits() -> Iterator[list[str]]:
    """What makes this thread wait for the GPU, as torch tells it; that which makes batches may."""
    own, told = threading.get_ident(), list[str]()

    def note(message: Any, category: Any, filename: str, line: int, *_: Any) -> None:
        if threading.get_ident() == own and "called a synchronizing CUDA operation" in str(message):
            told.append(f"{filename}:{line}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode("default")


def alike(one: Any, other: Any) -> None:
    """What two devices predict: words are the same, numbers nearly so; frames as float16, and chances in per cent."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            kinds = {"frames": "<f2", "probability": "u1"} if isinstance(value, bytes) else {}
            alike(*(np.frombuffer(row[name], kinds[name]).tolist() if kinds else row[name] for row in (one, other)))
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            alike(*pair)
    elif isinstance(one, float | int):
        assert one == pytest.approx(other, abs=1 if isinstance(one, int) else 1e-2, rel=1e-2)
    else:
        assert one == other


# ---- nets ----------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", FORMS)
def test_predictions_are_those_of_a_cpu(name: str) -> None:
    hybrid, samples = some_of(name)
    hybrid.eval()
    expected = hybrid.predict(hybrid.collate(samples), hybrid.decoding)
    on(GPU, hybrid)
    found = hybrid.predict(to_device(hybrid.collate(samples), GPU), hybrid.decoding)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        alike(one, other)


@pytest.mark.parametrize("name", FORMS)
def test_in_half_precision_a_batch_is_predicted(name: str) -> None:
    hybrid, samples = some_of(name)
    on(GPU, hybrid.eval())
    found = hybrid.predict(to_device(hybrid.collate(samples), GPU), hybrid.decoding)
    assert len(found) == len(samples)


def losses(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of twenty steps of two samples."""
    for module in (loop, workers):
        monkeypatch.setattr(module, "get_device", lambda: device)
    monkeypatch.setattr(loop, "LOG_EVERY", 5)
    hybrid, samples = some_of(name)
    for module in hybrid.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    on(device, hybrid)
    config = TrainConfig(epochs=1, batch_size=2, learning_rate=1e-3, warmup_steps=1)
    optimizer = torch.optim.AdamW([p for p in hybrid.parameters() if p.requires_grad], fused=True)
    many: Any = Samples([{"length": np.array(1), **sample} for sample in (samples * 40)[:40]])
    progress = Progress()
    train_epoch(hybrid, optimizer, many, config, progress, [], NEVER)
    return [entry["loss"] for entry in progress.history]


@pytest.mark.usefixtures("alone", "exact")
@pytest.mark.parametrize("name", FORMS)
def test_it_learns_there_what_it_does_on_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses(name, CPU, monkeypatch)
    assert losses(name, GPU, monkeypatch) == pytest.approx(expected, rel=2e-2)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", FORMS)
def test_it_learns_in_half_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = losses(name, GPU, monkeypatch)
    assert found[-1] < found[0]


# ---- what is waited for --------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", FORMS)
def test_training_waits_every_tenth_step_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, workers):
        monkeypatch.setattr(module, "get_device", lambda: GPU)
    hybrid, samples = some_of(name)
    on(GPU, hybrid)
    config = TrainConfig(epochs=2, batch_size=2, learning_rate=1e-3, warmup_steps=1)
    optimizer = torch.optim.AdamW([p for p in hybrid.parameters() if p.requires_grad], fused=True)
    many: Any = Samples([{"length": np.array(1), **sample} for sample in (samples * 40)[:40]])
    train_epoch(hybrid, optimizer, many, config, Progress(), [], NEVER)  # handles and kernels are made
    with waits() as told:
        train_epoch(hybrid, optimizer, many, config, Progress(epoch=1), [], NEVER)
    assert len(told) <= 2, told


@pytest.mark.parametrize(("name", "most"), [("translator", 0.2 * 41), ("captioner", 0.2 * 21), ("nowcaster", 4)])
def test_a_batch_is_waited_for_seldom(name: str, most: float) -> None:
    hybrid, samples = some_of(name)
    on(GPU, hybrid.eval())
    limit = {} if name == "nowcaster" else {"max_length": 40 if name == "translator" else 20}
    decoding = replace(hybrid.decoding, **limit)
    batch = to_device(hybrid.collate(samples), GPU)
    hybrid.predict(batch, decoding)
    with waits() as told:
        hybrid.predict(batch, decoding)
    assert len(told) <= most, told


# ---- the actor -----------------------------------------------------------------------------------------------------
def inference(folder: Path) -> Inference:
    return Inference.of(artifacts.read(tiny.write_translator(str(folder / "model"))))


def test_an_actor_finds_how_many_fit_and_predicts_the_same(tmp_path: Path) -> None:
    chosen = inference(tmp_path)
    texts = tiny.sentences(200, seed=3)
    samples = samples_table(tokenized(chosen.artifact, texts))
    expected = Predictor(chosen, Compute(8, 1, False), LINEAGE)(samples)
    predictor = Predictor(chosen, Compute(8, 1, True), LINEAGE)
    found = [predictor(samples) for _ in range(2)]
    assert predictor._room is not None
    assert predictor._room > 1, "a tiny net leaves room"
    for table in found:
        assert table["sample_id"].equals(expected["sample_id"])
        assert table["source"].equals(expected["source"])
        np.testing.assert_allclose(table["score"].to_pylist(), expected["score"].to_pylist(), atol=0.05)


def test_what_does_not_fit_is_halved_until_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = inference(tmp_path)
    samples = samples_table(tokenized(chosen.artifact, tiny.sentences(64, seed=3)))
    predictor = Predictor(chosen, Compute(32, 1, True), LINEAGE)
    predict_, sizes = predictor._predict, []

    def predicted(made: Any) -> list[dict[str, Any]]:
        sizes.append(len(made.samples))
        if len(made.samples) > 20:
            torch.empty(1 << 50, dtype=torch.uint8, device=GPU)  # out of memory, as torch says it
        return predict_(made)

    monkeypatch.setattr(predictor, "_predict", predicted)
    monkeypatch.setattr(predictor, "_room", 2)
    assert predictor(samples)["status"].to_pylist() == ["ok"] * 64
    assert (sizes[0], predictor._room) == (64, 1)


def test_a_batch_is_copied_beside_what_is_computed() -> None:
    batch = {"a": torch.arange(1 << 20), "b": ["x"], "c": torch.rand(3, 4)}
    moved = to_device(batch, GPU)
    assert moved["b"] is batch["b"]
    for name in "ac":
        assert moved[name].device.type == "cuda"
        assert torch.equal(moved[name].cpu(), batch[name])


# ---- jobs ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """With the GPU that is there."""
    os.environ.update(connection.LOCAL_CLUSTER)
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": connection.worker_env()},
    )  # fmt: skip
    connection.configure_data()
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_night_on_a_gpu_is_that_of_a_cpu(tmp_path: Path) -> None:
    tiny.write_sentences(str(tmp_path / "in"), shards=6, rows=50)
    chosen, found = inference(tmp_path), {}
    for gpu in ("no", "yes"):
        night = Night(
            list_shards(str(tmp_path / "in")), Partition.of(f"{tmp_path}/{gpu}", "translations", "2026-01-31"), chosen
        )
        summary = asdict(infer.infer(night, Resources(gpu=gpu), Tracker("sqlite:////proc/nowhere/mlflow.db")))  # type: ignore[arg-type]
        assert (summary["rows"], summary["ok"]) == (300, 300)
        assert 0 < summary["model_busy"] <= 1
        rows = DeltaTable(night.partition.table).to_pyarrow_table().to_pylist()
        found[gpu] = {row["sample_id"]: (row["source"], row["score"]) for row in rows}
    assert found["no"].keys() == found["yes"].keys()
    for key, (source, score) in found["no"].items():
        assert found["yes"][key] == (source, pytest.approx(score, abs=0.05))


@pytest.mark.usefixtures("cluster")
def test_a_training_on_a_gpu_ends_in_a_model(tmp_path: Path) -> None:
    for split, rows in (("train", 200), ("val", 16)):
        tiny.write_pairs(str(tmp_path / "data" / split), rows=rows, seed=rows)
    recipe = Recipe(
        "translator", tiny.translator().config, tiny.translator().decoding,
        TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2, warmup_steps=5, validate_samples=8, max_failures=0),
    )  # fmt: skip
    job = TrainJob(
        recipe, "test", f"{tmp_path}/data", str(tmp_path), "z", f"sqlite:///{tmp_path}/mlflow.db", 1, Resources(),
        gpu="yes",
    )  # fmt: skip
    trained = driver.train(job, runs.check(job))
    lines = (tmp_path / "runs/z/history.jsonl").read_text().splitlines()
    values = [json.loads(line)["val_loss"] for line in lines if "val_loss" in line]
    assert values[-1] < values[0]
    assert artifacts.read(trained.artifact).load() is not None
