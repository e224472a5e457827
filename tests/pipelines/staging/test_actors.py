import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch

from hybrid_models.captioner.captioner import Captioner, CaptionerDecoding
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.errors import BadSample
from hybrid_models.inputs import Inputs, Sample
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.cluster.resources import Compute
from pipelines.models import artifacts
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference
from pipelines.reading.samples import SAMPLE_SCHEMA, pack, unpack
from pipelines.staging.actors import Featurizer, Made, Predictor
from pipelines.staging.pieces import Lineage
from tests import tiny

DECODING = TranslatorDecoding(beam_size=1, max_length=12)
LINEAGE = Lineage("models:/translator/3", "3", "f" * 64, "run")
TEXTS = tiny.sentences(11, seed=3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.read(tiny.write_translator(str(tmp_path_factory.mktemp("model"))))


def samples_table(samples: list[Sample | BadSample]) -> pa.Table:
    """Samples and errors as the decoding step emits them."""
    rows: list[dict[str, Any]] = []
    for i, sample in enumerate(samples):
        row = {"shard": "s3://x/a.txt", "index": 10 + i, "last": i + 1 == len(samples), "sample_id": f"id{i}"}
        if isinstance(sample, BadSample):
            outcome: dict[str, Any] = {"error": str(sample)}
        else:
            outcome = {"sample": pack(sample), "length": int(sample["length"]), "output_bytes": 0}
        rows.append({**row, **outcome, "decode_seconds": 0.5})
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def tokenized(artifact: Artifact, texts: list[str], with_target: bool = False) -> list[Sample | BadSample]:
    preprocess = artifact.hybrid_class.preprocess(artifact.config, artifact.assets)
    return [preprocess(Inputs(None, {"en": text, "de": text.upper()}), with_target) for text in texts]


def test_rows_keep_their_order_and_errors_their_place(artifact: Artifact) -> None:
    samples = tokenized(artifact, TEXTS)
    samples[4:4] = [BadSample("TextTooLong", "201 characters")]
    predictor = Predictor(Inference(artifact, DECODING), Compute(4, 1, False), LINEAGE)
    before = datetime.now(UTC)
    table = predictor(samples_table(samples))
    assert table.schema == predictor.schema
    rows = table.to_pylist()
    assert [row["sample_id"] for row in rows] == [f"id{i}" for i in range(12)]
    assert [row["index"] for row in rows] == list(range(10, 22))
    assert [row["last"] for row in rows] == [False] * 11 + [True]
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["error"] + ["ok"] * 7

    expected = tiny.translator().translate(TEXTS, beam_size=1, max_length=12)
    assert [row["translation"] for row in rows if row["status"] == "ok"] == expected
    assert [row["source"] for row in rows if row["status"] == "ok"] == TEXTS
    bad = rows[4]
    assert bad["error"] == "TextTooLong: 201 characters"
    assert {bad[name] for name in artifact.hybrid_class.payload_schema.names} == {None}
    assert bad["predict_seconds"] == 0
    for row in rows:
        assert (row["model"], row["model_version"], row["fingerprint"], row["run_id"]) == (
            LINEAGE.model, "3", LINEAGE.fingerprint, "run",
        )  # fmt: skip
        assert before <= row["created_at"] <= datetime.now(UTC)
        assert row["decode_seconds"] == 0.5
    assert all(row["predict_seconds"] > 0 for row in rows if row["status"] == "ok")


def test_a_block_of_errors_only_needs_no_model(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(Inference(artifact, DECODING), Compute(4, 1, False), LINEAGE)
    monkeypatch.setattr(predictor, "_predict", None)
    table = predictor(samples_table([BadSample("A", "x"), BadSample("B", "y")]))
    assert table["error"].to_pylist() == ["A: x", "B: y"]
    assert len(predictor(samples_table([]))) == 0


def test_batches_have_similar_lengths(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    seen: list[list[int]] = []
    predict = predictor._predict

    def watch(made: Made) -> list[dict[str, Any]]:
        seen.append([int(sample["length"]) for sample in made.samples])
        return predict(made)

    monkeypatch.setattr(predictor, "_predict", watch)
    predictor(samples_table(tokenized(artifact, TEXTS)))
    assert [len(batch) for batch in seen] == [2, 2, 2, 2, 2, 1]
    lengths = [length for batch in seen for length in batch]
    assert lengths == sorted(lengths)


def test_tables_that_are_built_late_have_their_own_rows_alone(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first one is begun when all batches are done."""
    samples = tokenized(artifact, TEXTS)
    samples[4:4] = [BadSample("TextTooLong", "201 characters")]
    predictor = Predictor(Inference(artifact, DECODING), Compute(4, 1, False), LINEAGE)
    expected = predictor(samples_table(samples)).to_pylist()
    done, build, predict = threading.Event(), predictor._table, predictor._predict
    left = [None, None]

    def last(made: Made) -> list[dict[str, Any]]:
        outputs = predict(made)
        if not left:
            done.set()
        else:
            left.pop()
        return outputs

    def late(*arguments: Any) -> pa.Table:
        assert done.wait(60)
        return build(*arguments)

    monkeypatch.setattr(predictor, "_predict", last)
    monkeypatch.setattr(predictor, "_table", late)
    rows = predictor(samples_table(samples)).to_pylist()
    timed = ("created_at", "predict_seconds")
    assert [{n: v for n, v in row.items() if n not in timed} for row in rows] == [
        {n: v for n, v in row.items() if n not in timed} for row in expected
    ]


class Device:
    """A model's predictor beside whose work batches are made and tables are built, or else it waits in vain."""

    def __init__(self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
        self._collate, self._infer, self._table = predictor.session.collate, predictor.session.infer, predictor._table
        self._made, self._built, self._batches = threading.Semaphore(0), threading.Semaphore(0), 0
        self.threads: dict[str, set[int]] = {}
        self.waited: list[bool] = []
        monkeypatch.setattr(predictor.session, "collate", self.collate)
        monkeypatch.setattr(predictor.session, "infer", self.infer)
        monkeypatch.setattr(predictor, "_table", self.table)

    def collate(self, samples: list[Sample]) -> Any:
        self.threads.setdefault("collate", set()).add(threading.get_ident())
        self._made.release()
        return self._collate(samples)

    def infer(self, batch: Any) -> list[dict[str, Any]]:
        self.threads.setdefault("infer", set()).add(threading.get_ident())
        self._batches += 1
        ahead = 2 if self._batches == 1 else 1 if self._batches < 6 else 0
        self.waited += [self._made.acquire(timeout=60) for _ in range(ahead)]
        self.waited.append(self._built.acquire(timeout=60))  # what came before this batch
        return self._infer(batch)

    def table(self, *arguments: Any) -> pa.Table:
        self.threads.setdefault("table", set()).add(threading.get_ident())
        self._built.release()
        return self._table(*arguments)


def test_a_gpu_waits_neither_for_batches_nor_for_tables(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = samples_table(tokenized(artifact, TEXTS))
    expected = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)(samples)
    predictor = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    monkeypatch.setattr(predictor, "compute", Compute(2, 1, True))
    monkeypatch.setattr(predictor, "_check_device", lambda: None)
    monkeypatch.setattr(predictor, "_room", 1)
    device = Device(predictor, monkeypatch)
    table = predictor(samples)
    assert table["translation"].equals(expected["translation"])
    assert len(device.waited) == 12
    assert all(device.waited)
    assert all(len(threads) == 1 for threads in device.threads.values())
    assert len(set.union(*device.threads.values())) == 3


def test_a_gpu_waits_for_no_table_between_two_others(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two calls at once one's batches are made while those of the other are computed, its rows are built while the
    next one's are; on the device they come one after the other."""
    calls = [samples_table(tokenized(artifact, TEXTS[:6])), samples_table(tokenized(artifact, TEXTS[5:]))]
    predictor = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    expected = [predictor(samples)["translation"] for samples in calls]
    monkeypatch.setattr(predictor, "compute", Compute(2, 1, True))
    monkeypatch.setattr(predictor, "_check_device", lambda: None)
    monkeypatch.setattr(predictor, "_room", 1)
    monkeypatch.setattr(predictor, "_note_path", lambda *_: None)
    collate, infer, table = predictor.session.collate, predictor.session.infer, predictor._table
    makers, both_made, second = set[int](), threading.Event(), threading.Event()
    computed: list[int] = []
    in_time: list[bool] = []

    def making(samples: list[Sample]) -> Any:
        makers.add(threading.get_ident())
        if len(makers) == 2:
            both_made.set()
        return collate(samples)

    def computing(batch: Any) -> list[dict[str, Any]]:
        computed.append(threading.get_ident())
        in_time.append(both_made.wait(60))
        if len(set(computed)) == 2:
            second.set()
        return infer(batch)

    def building(rows: Any, part: Any, outputs: Any) -> pa.Table:
        if outputs and len(computed) >= 3:  # the first call's last rows, and all of the second's
            in_time.append(second.wait(60))
        return table(rows, part, outputs)

    monkeypatch.setattr(predictor.session, "collate", making)
    monkeypatch.setattr(predictor.session, "infer", computing)
    monkeypatch.setattr(predictor, "_table", building)
    with ThreadPoolExecutor(2) as threads:
        found = [done["translation"] for done in threads.map(predictor, calls)]
    assert found == expected
    assert len(in_time) >= 6 + 1 + 3, "rows of the first wait for the second to begin"
    assert all(in_time)
    assert [len(list(run)) for _, run in itertools.groupby(computed)] == [3, 3]


def test_a_call_that_fails_leaves_the_device_to_others(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    samples = samples_table(tokenized(artifact, TEXTS))
    with monkeypatch.context() as patch:
        failing(predictor, patch, lambda sample: True)
        patch.setattr(predictor, "_check_device", Mock(side_effect=OSError("the device is gone")))
        with pytest.raises(OSError, match="the device is gone") as failed:
            predictor(samples)
    with ThreadPoolExecutor(1) as thread:
        assert len(thread.submit(predictor, samples).result(60)) == len(TEXTS), failed


@pytest.mark.parametrize("died", [False, True])
def test_nothing_is_beside_a_call_that_a_process_has_died_of(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: bool
) -> None:
    """What kills it while rows are built would be blamed on the batch that is computed then."""
    calls = [samples_table(tokenized(artifact, TEXTS[:2])), samples_table(tokenized(artifact, TEXTS[2:5]))]
    predictor = Predictor(Inference(artifact, DECODING), Compute(8, 1, False), LINEAGE)
    monkeypatch.setattr(predictor, "compute", Compute(8, 1, True))
    monkeypatch.setattr(predictor, "_room", 1)
    monkeypatch.setattr(predictor, "_note_path", lambda samples, purpose: tmp_path / f"{purpose}-{len(samples)}")
    if died:
        (tmp_path / f"call {LINEAGE.fingerprint}-2").touch()
    infer, table = predictor.session.infer, predictor._table
    building, computing = threading.Event(), threading.Event()
    beside: list[bool] = []

    def inferred(batch: Any) -> list[dict[str, Any]]:
        if building.is_set():
            computing.set()
        return infer(batch)

    def built(rows: Any, part: Any, outputs: Any) -> pa.Table:
        if len(rows) == 2 and outputs:
            building.set()
            beside.append(computing.wait(1 if died else 60))
        return table(rows, part, outputs)

    monkeypatch.setattr(predictor.session, "infer", inferred)
    monkeypatch.setattr(predictor, "_table", built)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(predictor, calls[0])
        assert building.wait(60)
        assert len(threads.submit(predictor, calls[1]).result(60)) == 3
        assert len(first.result(60)) == 2
    assert beside == [not died]
    assert not list(tmp_path.iterdir()), "all is done"


@pytest.mark.parametrize(("memory", "size"), [((100, 100), 2), ((100, 800), 8), ((100, 10**9), 11), ((0, 100), 11)])
def test_batches_grow_into_a_gpus_memory(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, memory: tuple[int, int], size: int
) -> None:
    predictor = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    monkeypatch.setattr(predictor, "compute", Compute(2, 1, True))
    monkeypatch.setattr(predictor, "_memory", lambda: memory)
    monkeypatch.setattr(predictor, "_check_device", lambda: None)
    seen = failing(predictor, monkeypatch, lambda sample: False)
    samples = tokenized(artifact, TEXTS)
    few = samples_table([samples[0], BadSample("A", "x")])
    before = [predictor(few), predictor(samples_table(samples))]
    assert seen[:2] == [1, 2], "until a full one has been seen, of the longest"
    assert (seen[2], sum(seen)) == (min(size, 9), 12)
    seen.clear()
    assert predictor(samples_table(samples))["translation"].equals(before[1]["translation"])
    assert (seen[0], sum(seen)) == (size, 11)
    alone = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    assert alone(samples_table(samples))["translation"].equals(before[1]["translation"]), "each row at its place"


def test_batches_shrink_where_a_gpu_has_too_little_memory(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the next table: not one batch after the other is tried in vain, though others may take of the memory later."""
    predictor = Predictor(Inference(artifact, DECODING), Compute(2, 1, False), LINEAGE)
    samples = samples_table(tokenized(artifact, TEXTS))
    expected = predictor(samples)["translation"]
    monkeypatch.setattr(predictor, "compute", Compute(2, 1, True))
    monkeypatch.setattr(predictor, "_room", 4)
    monkeypatch.setattr(predictor, "_check_device", lambda: None)
    seen: list[int] = []
    predict_ = predictor._predict

    def predicted(made: Made) -> list[dict[str, Any]]:
        seen.append(len(made.samples))
        if len(made.samples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict_(made)

    monkeypatch.setattr(predictor, "_predict", predicted)
    for sizes in ([8, 4, 2, 2, 4, 2, 2, 3], [4, 2, 2, 4, 2, 2, 3], [2, 2, 2, 2, 2, 1], [2, 2, 2, 2, 2, 1]):
        seen.clear()
        assert predictor(samples)["translation"].equals(expected)
        assert seen == sizes


@pytest.mark.parametrize(
    ("of", "most", "after"), [("collate", 5, 2), ("collate", 0, 4), ("_predict", 0, 4), ("_predict", 5, 2)]
)
@pytest.mark.parametrize("other", [False, True])
def test_batches_shrink_once_for_two_calls_and_not_for_a_row_that_fits_nowhere(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, of: str, most: int, after: int, other: bool
) -> None:
    """Whether the memory was wanted for making a batch, or for its predictions."""
    predictor = Predictor(Inference(artifact, DECODING), Compute(1, 1, False), LINEAGE)
    some = tokenized(artifact, TEXTS)[: most + 1]
    samples = samples_table(some)
    monkeypatch.setattr(predictor, "compute", Compute(2, 1, True))
    monkeypatch.setattr(predictor, "_room", 4)
    monkeypatch.setattr(predictor, "_check_device", lambda: None)
    place: Any = predictor if of == "_predict" else predictor.session
    work = getattr(place, of)

    def worked(given: Any) -> Any:
        if len(given.samples if of == "_predict" else given) > most:
            if other:
                predictor._room = after  # of a call beside this one
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(given)

    monkeypatch.setattr(place, of, worked)
    assert predictor(samples)["status"].to_pylist() == (["ok"] * 6 if most else ["error"])
    assert predictor._room == after


def failing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, bad: Callable[[Sample], bool]) -> list[int]:
    """Makes it fail on batches with such a sample; returns the sizes of the batches that it is given."""
    seen: list[int] = []
    predict_ = predictor._predict

    def sometimes(made: Made) -> list[dict[str, Any]]:
        seen.append(len(made.samples))
        if any(map(bad, made.samples)):
            raise FloatingPointError("a value\nof no use")
        return predict_(made)

    monkeypatch.setattr(predictor, "_predict", sometimes)
    return seen


def test_a_row_that_the_model_fails_on_costs_only_itself(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, retried: Counter[str]
) -> None:
    predictor = Predictor(Inference(artifact, DECODING), Compute(8, 1, False), LINEAGE)
    samples = tokenized(artifact, TEXTS)
    whole = predictor(samples_table(samples)).to_pylist()
    bad = samples[3]
    assert isinstance(bad, dict)
    seen = failing(predictor, monkeypatch, lambda sample: np.array_equal(sample["source"], bad["source"]))
    rows = predictor(samples_table(samples)).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["error"] + ["ok"] * 7
    assert rows[3]["error"] == "PredictionError: FloatingPointError: a value"
    assert rows[3]["translation"] is None
    assert [row["translation"] for row in rows if row["status"] == "ok"] == [
        row["translation"] for i, row in enumerate(whole) if i != 3
    ]
    assert sorted(seen, reverse=True) == [8, 4, 4, 3, 2, 2, 1, 1]
    assert retried == {"model": 6}, "all but the two whole batches"


def test_the_batch_size_decides_no_output(artifact: Artifact) -> None:
    table = samples_table(tokenized(artifact, TEXTS))
    outputs = [
        Predictor(Inference(artifact, DECODING), Compute(n, 1, False), LINEAGE)(table)["translation"]
        for n in (1, 3, 64)
    ]
    assert outputs[0].to_pylist() == outputs[1].to_pylist() == outputs[2].to_pylist()


def test_judging_keeps_records_instead_of_predictions(artifact: Artifact) -> None:
    samples = tokenized(artifact, TEXTS[:3], with_target=True)
    samples.insert(1, BadSample("EmptyText", "no text"))
    rows = Predictor(Inference(artifact, DECODING), Compute(8, 1, False), LINEAGE, judge=True)(
        samples_table(samples)
    ).to_pylist()
    assert "translation" not in rows[0]
    hypotheses = tiny.translator().translate(TEXTS[:3], beam_size=1, max_length=12)
    truths = [json.loads(rows[i]["record"]).pop("truth") for i in (0, 2, 3)]
    assert len(set(truths)) == 3, "other references, other hashes"
    records = [None if row["record"] is None else json.loads(row["record"]) for row in rows]
    assert records == [
        {"hypothesis": hypotheses[0], "references": [TEXTS[0].upper()], "source": TEXTS[0], "truth": truths[0]},
        None,
        {"hypothesis": hypotheses[1], "references": [TEXTS[1].upper()], "source": TEXTS[1], "truth": truths[1]},
        {"hypothesis": hypotheses[2], "references": [TEXTS[2].upper()], "source": TEXTS[2], "truth": truths[2]},
    ]
    assert rows[1]["status"] == "error"


def test_the_featurizer_replaces_frames_by_what_the_frozen_net_sees(tmp_path: Path) -> None:
    config = CaptionerConfig(
        encoder="test_efficientnet", encoder_weights="hub", freeze_encoder=True, image_size=32, frames=2,
        embedding_size=16, hidden_size=32, attention_size=16, vocab_size=300,
    )  # fmt: skip
    torch.manual_seed(0)
    captioner = Captioner(config, tiny.captioner().assets).eval()
    artifacts.write(artifacts.make(captioner, CaptionerDecoding(), {}, ""), str(tmp_path))
    rng = np.random.default_rng(0)
    samples: list[Sample | BadSample] = [
        {
            "frames": rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8),
            "frame_count": np.asarray(count),
            "length": np.asarray(length),
        }
        for count, length in ((1, 9), (2, 4), (1, 6))
    ]
    table = samples_table([samples[0], BadSample("X", "y"), *samples[1:]])
    featurized = Featurizer(Inference.of(artifacts.read(str(tmp_path))), Compute(2, 1, False))(table)
    assert featurized.schema == SAMPLE_SCHEMA
    assert featurized.drop_columns(["sample"]).equals(table.drop_columns(["sample"]))
    packed = featurized["sample"].to_pylist()
    assert packed[1] is None
    broken = [samples[0], {name: samples[1][name] for name in ("frame_count", "length")}]
    told = Featurizer(Inference.of(artifacts.read(str(tmp_path))), Compute(2, 1, False))(
        samples_table(broken)
    ).to_pylist()
    assert [row["error"] for row in told] == [None, "PredictionError: KeyError: 'frames'"]
    assert [row["length"] for row in told] == [9, None]
    found = [unpack(packed[i]) for i in (0, 2, 3)]
    alone = np.stack([captioner.featurize([sample])[0]["features"] for sample in samples if isinstance(sample, dict)])
    features = np.stack([sample["features"] for sample in found])
    spread = float(alone.std())
    assert np.abs(features - alone).max() < 0.1 * spread
    assert np.abs(alone[0] - alone[2]).max() > spread, "other frames, other features"
    assert [sorted(sample) for sample in found] == [["features", "frame_count", "length"]] * 3
    assert [int(sample["length"]) for sample in found] == [9, 4, 6]
