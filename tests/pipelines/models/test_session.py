"""One prediction path: whoever asks, a row gets the same prediction."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from hybrid_models.frames import frames_of
from hybrid_models.inputs import Cut, Inputs, Visual
from hybrid_models.nowcaster.config import NowcasterConfig, Unit
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines import storage
from pipelines.models import artifacts, session
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference, batches
from pipelines.nights import tables
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.media.decode import decode_media
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.pipelines.reading.media.test_decode import clip_bytes


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.read(tiny.write_translator(str(tmp_path_factory.mktemp("model"))))


def test_python_and_a_night_say_the_same(tmp_path: Path) -> None:
    """Decoding options are the recipe's, which are not the hybrid's defaults."""
    model, texts = str(tmp_path / "model"), tiny.sentences(6, seed=4)
    decoding = TranslatorDecoding(beam_size=3, max_length=7)
    artifacts.write(artifacts.make(tiny.translator(), decoding, {}, "A test's model.\n"), model)
    storage.write_bytes(str(tmp_path / "in/a.txt"), "\n".join(texts).encode())
    tiny.write_night(str(tmp_path / "tables"), "2026-01-31", str(tmp_path / "in"), model)
    table = tables.open_table(str(tmp_path / "tables/translations"))
    assert table is not None
    night = {row["source"]: row["translation"] for row in table.to_pyarrow_table().to_pylist()}
    said = [night[text] for text in texts]
    python = artifacts.load_hybrid(model)
    assert python.translate(texts) == said
    assert python.translate(texts, beam_size=1) != said
    assert python.translate(texts, max_length=4) != said
    raw = next(read_blocks(list_shards(str(tmp_path / "in"))[0], ReadOptions()))
    assert Inference.of(artifacts.read(model)).load().answer(raw)["translation"].to_pylist() == said


def test_a_net_that_gives_no_number_gives_no_text(tmp_path: Path) -> None:
    model = tiny.translator()
    with torch.no_grad():
        model.bridge.weight.fill_(math.nan)
    artifacts.write(artifacts.make(model, TranslatorDecoding(), {}, "A test's model.\n"), str(tmp_path / "model"))
    storage.write_bytes(str(tmp_path / "in/a.txt"), b"one\n\ntwo\n")
    raw = next(read_blocks(list_shards(str(tmp_path / "in"))[0], ReadOptions()))
    rows = Inference.of(artifacts.read(str(tmp_path / "model"))).load().answer(raw).to_pylist()
    assert [row["status"] for row in rows] == ["error"] * 3
    why = "weights are damaged, or too large for half precision"
    told = f"PredictionError: ArithmeticError: the net gives no number: {why}"
    assert [row["error"] == told for row in rows] == [True, False, True]


@pytest.mark.parametrize("unit", ["mm/h", "intensity"])
def test_a_net_that_gives_no_number_gives_no_frames(tmp_path: Path, unit: Unit) -> None:
    config = NowcasterConfig(past_frames=3, horizon_minutes=2, height=16, width=16, unit=unit, hidden_dims=(4,))
    media = np.random.default_rng(0).gamma(0.3, 2, (3, 16, 16)).astype(np.float32).clip(0, 1)
    sample = Nowcaster.preprocess(config, {})(Inputs(media, {"step_minutes": 1.0} if unit == "mm/h" else {}), False)
    model = Nowcaster(config, {})
    for name, damage in (("whole", 1.0), ("damaged", math.nan)):
        with torch.no_grad():
            model.net.head.weight.mul_(damage)
        artifacts.write(artifacts.make(model, NowcasterDecoding(), {}, "A test's model.\n"), str(tmp_path / name))
    (row,) = Inference.of(artifacts.read(str(tmp_path / "whole"))).load().predict([sample])
    assert all(map(math.isfinite, row["mean"]))
    damaged = Inference.of(artifacts.read(str(tmp_path / "damaged"))).load()
    with pytest.raises(ArithmeticError, match="the net gives no number"):
        damaged.predict([sample])


def test_frames_of_a_clip_are_chosen_alike_from_python_and_from_a_shard() -> None:
    visual, by_time = Visual(24, 32, 4), Visual(24, 32, 4, "fps", 5.0)
    for count in (3, 4, 9, 12, 15, 30):
        greys = [round(grey) for grey in np.linspace(20, 230, count)]
        there = decode_media(clip_bytes("matroska", "libx264", greys), "mkv", visual, Limits()).array
        here = frames_of(np.stack([np.full((48, 64, 3), grey, np.uint8) for grey in greys]), visual)
        assert here.shape == there.shape == (4, 24, 32, 3)
        assert np.abs(here.astype(int) - there).max() < 6, "but for the codec's rounding"
        there = decode_media(clip_bytes("matroska", "libx264", greys), "mkv", by_time, Limits()).array
        clip = np.stack([np.full((48, 64, 3), grey, np.uint8) for grey in greys])
        here = frames_of(clip, by_time, frame_rate=25)
        assert here.shape == there.shape == (min(4, max(1, round(count / 5))), 24, 32, 3)
        assert np.abs(here.astype(int) - there).max() < 6, "by their times"
    assert len(frames_of(np.zeros((48, 64, 3), np.uint8), visual)) == 1, "a photograph is one frame"


def test_how_it_predicts_is_kept_with_what_it_predicts(artifact: Artifact) -> None:
    inference = Inference(artifact, artifacts.override(artifact.decoding, {"beam_size": 4}), Limits(max_frames=9))
    assert Inference.noted(artifact, inference.note) == inference
    assert Inference.noted(artifact, {}) == Inference.of(artifact)
    with pytest.raises(UsageError, match="unknown key 'x'"):
        Inference.noted(artifact, {b"hybrid.decoding": b'{"x": 1}'})


def test_windows_of_a_clip_that_are_others_are_not_gone_on_with(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = (None, Cut(10, 10), Cut(10, 5))
    before = [Inference.of(artifact, cut=cut).fingerprint for cut in cuts]
    monkeypatch.setattr(Cut, "version", Cut.version + 1)
    after = [Inference.of(artifact, cut=cut).fingerprint for cut in cuts]
    assert len({*before, *after}) == 5
    assert before[0] == after[0], "of no windows"


def test_decoding_belongs_to_the_model(artifact: Artifact) -> None:
    decode = Inference.of(artifact, Limits(max_bytes=5)).decode(with_target=True)
    assert decode.with_target
    assert decode.limits.max_bytes == 5
    assert decode.preprocess.config == artifact.config  # type: ignore[attr-defined]


def sizes_table(
    lengths: list[int | None], sizes: list[int] | None = None, outputs: list[int] | None = None
) -> pa.Table:
    """What a batch is chosen by: samples of these lengths, and bytes in and out; null lengths are errors."""
    sizes = sizes or [1] * len(lengths)
    packed = [None if length is None else bytes(size) for length, size in zip(lengths, sizes, strict=True)]
    outputs = outputs or [0] * len(lengths)
    return pa.table({"length": lengths, "sample": pa.array(packed, pa.large_binary()), "output_bytes": outputs})


def test_batches_have_similar_lengths() -> None:
    assert list(batches(sizes_table([5, None, 1, 9, 2, None, 7]), 2)) == [(2, 4), (0, 6), (3,)]
    assert list(batches(sizes_table([None]), 2)) == []


def test_batches_of_large_samples_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BATCH_BYTES", 1000)
    size = 3
    table = sizes_table([1, 2, 3, 4, 5, 6, 7, 8], [1500, 500, 500, 1, 1, 999, 1, 2000])
    assert list(batches(table, size)) == [(0,), (1, 2), (3, 4), (5, 6), (7,)]
    table = sizes_table([1, 2, 3, 4], [10, 10, 10, 10])
    assert list(batches(table, size)) == [(0, 1, 2), (3,)]


def test_batches_are_larger_where_there_is_room() -> None:
    table = sizes_table([1] * 10)
    assert [len(batch) for batch in batches(table, 2, 4)] == [8, 2]
    large = sizes_table([1] * 10, [session.BATCH_BYTES // 2] * 10)
    assert [len(batch) for batch in batches(large, 2, 2)] == [4, 4, 2]
    outputs = sizes_table([1] * 10, outputs=[session.BATCH_OUTPUT_BYTES] * 10)
    assert [len(batch) for batch in batches(outputs, 8, 3)] == [3, 3, 3, 1]


def test_batches_of_large_outputs_are_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BATCH_OUTPUT_BYTES", 1000)
    size = 8
    table = sizes_table([1, 2, 3, 4, 5, 6], outputs=[400, 400, 400, 1500, 10, 10])
    assert list(batches(table, size)) == [(0, 1), (2,), (3,), (4, 5)]
    table = sizes_table([1, 2, 3, 4], outputs=[10, 10, 10, 334])
    assert list(batches(table, size)) == [(0, 1, 2), (3,)], "all are made as long as the longest"


DIES = """
import os, sys
from pathlib import Path
import pyarrow as pa
from pipelines.models.session import outcomes
from pipelines.models.suspects import Note

def make(rows):
    if set(rows) & {4}:
        os._exit(9)
    return rows

def work(rows):
    return [10 * row for row in rows]

columns = {"length": range(6), "sample": [b"x"] * 6, "output_bytes": [0] * 6}
place = {"shard": ["a"] * 6, "index": range(6), "object": ["b"] * 6}
print(list(outcomes(pa.table({**columns, **place}), 2, make, work, Note(Path(sys.argv[1])), ahead=1)))
"""


def test_what_is_made_ahead_is_to_blame_for_its_own_death_alone(tmp_path: Path) -> None:
    for _ in range(20):
        done = subprocess.run(
            [sys.executable, "-c", DIES, str(tmp_path / "note")], cwd=tiny.ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode == 0:
            break
    told = "PredictionCrashed: the process that predicted this row died (2 times)"
    assert done.stdout.strip() == str([((0, 1), [0, 10]), ((2, 3), [20, 30]), ((4,), told), ((5,), [50])])


def test_what_a_night_needs_of_a_model_needs_no_torch(tmp_path: Path) -> None:
    """One that is there already, and whoever sends work to others, waits for no library that takes seconds."""
    nets = {"captioner": tiny.captioner(), "nowcaster": tiny.nowcaster(), "translator": tiny.translator()}
    for name, net in nets.items():
        artifacts.write(artifacts.make(net, net.decoding, {}, "Card.\n"), str(tmp_path / name))
    script = f"""
import sys
from pathlib import Path
import pipelines.nights.infer, pipelines.nights.commit
from pipelines.models import artifacts
from pipelines.models.session import Inference
for folder in sorted(Path({str(tmp_path)!r}).iterdir()):
    inference = Inference.of(artifacts.read(str(folder)))
    columns = inference.artifact.interface.payload_schema
    print(folder.name, len(inference.fingerprint), len(columns), inference.decode() is None)
print([name for name in ("torch", "mlflow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    columns = {name: len(HYBRIDS[name].payload_schema) for name in sorted(nets)}
    assert done.stdout.splitlines() == [*(f"{name} 64 {count} False" for name, count in columns.items()), "[]"]
