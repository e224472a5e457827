import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.reading.samples import pack
from pipelines.staging.pieces import Piece
from pipelines.training import batches
from pipelines.training.batches import CHUNK_BATCHES, PreparedSamples, plan_epoch

LENGTHS = np.random.default_rng(0).integers(1, 200, 1003)


@pytest.mark.parametrize(("rows", "batch_size"), [(1003, 16), (64, 64), (65, 64), (127, 64), (3, 64), (1, 1), (7, 1)])
def test_every_sample_is_in_exactly_one_batch(rows: int, batch_size: int) -> None:
    plan = plan_epoch(LENGTHS[:rows], batch_size, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(rows))
    sizes = [len(batch) for batch in plan]
    assert max(sizes) - min(sizes) <= 1
    if rows >= batch_size:
        assert batch_size <= min(sizes)
        assert len(plan) == rows // batch_size
    else:
        assert len(plan) == 1


def test_the_plan_is_the_same_for_the_same_seed_and_epoch_only() -> None:
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_epoch(LENGTHS, 16, seed, epoch)]

    assert plan(1, 3) == plan(1, 3)
    assert plan(1, 3) != plan(1, 4)
    assert plan(1, 3) != plan(2, 3)


def test_samples_of_similar_length_come_together_and_batches_in_any_order() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, CHUNK_BATCHES * 16)  # one chunk: sorted as a whole
    plan = plan_epoch(lengths, 16, seed=0, epoch=0)
    by_mean = sorted(plan, key=lambda batch: float(lengths[batch].mean()))
    assert np.concatenate([lengths[batch] for batch in by_mean]).tolist() == sorted(lengths.tolist())
    longest = [int(lengths[batch].max()) for batch in plan]
    assert longest != sorted(longest)


def stage(folder: Path, name: str, rows: Sequence[int | None], places: Sequence[tuple[str, int]] = ()) -> Piece:
    """A staged file whose rows hold these numbers; None is an error row. Their shards and indices are told, or one
    shard's of the file's name."""
    told = places or [(name, index) for index in range(len(rows))]
    table = pa.table(
        {
            "shard": [shard for shard, _ in told],
            "index": pa.array([index for _, index in told], pa.int64()),
            "error": pa.array([None if row is not None else "X: y" for row in rows], pa.string()),
            "length": pa.array(rows, pa.int64()),
            "sample": pa.array(
                [None if row is None else pack({"n": np.arange(row), "length": np.asarray(row)}) for row in rows],
                pa.large_binary(),
            ),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    uri = str(folder / name)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    return Piece(storage.info(uri), 0, len(rows), end=True)


def test_samples_are_in_the_order_of_their_shards_however_they_were_staged(tmp_path: Path) -> None:
    """A unit's shards are chosen by a hash of whole addresses: elsewhere, the same data are staged otherwise."""
    whole = {("a", 0): 4, ("a", 1): 2, ("a", 2): None, ("a", 3): 9, ("b", 0): 7, ("c", 0): 5, ("c", 1): 8}
    for number, pieces in enumerate(
        (
            [[("a", 0), ("a", 1), ("a", 2), ("a", 3)], [("b", 0)], [("c", 0), ("c", 1)]],
            [[("b", 0), ("c", 0)], [("c", 1)], [("a", 2), ("a", 3)], [("a", 0), ("a", 1)]],
            [[("c", 0), ("c", 1)], [("a", 2)], [("a", 3), ("b", 0)], [("a", 0), ("a", 1)]],
        )
    ):
        staged = [
            stage(tmp_path, f"{number}-{k}", [whole[place] for place in places], places)
            for k, places in enumerate(pieces)
        ]
        samples = PreparedSamples(staged, str(tmp_path))
        assert samples.lengths.tolist() == [4, 2, 9, 7, 5, 8]
        assert [int(samples[index]["length"]) for index in range(len(samples))] == [4, 2, 9, 7, 5, 8]
        samples.remove()
    nothing = PreparedSamples([stage(tmp_path, "bad", [None])], str(tmp_path))
    assert len(nothing) == 0
    nothing.remove()


def test_prepared_samples_are_the_good_rows_of_the_pieces(tmp_path: Path) -> None:
    pieces = [
        stage(tmp_path, "b", [4, None, 2]),
        stage(tmp_path, "a", [None]),
        stage(tmp_path, "c", [7]),
    ]
    samples = PreparedSamples(pieces, str(tmp_path))
    assert len(samples) == 3
    assert samples.lengths.tolist() == [4, 2, 7]
    assert [samples[i]["n"].tolist() for i in range(3)] == [list(range(n)) for n in (4, 2, 7)]
    samples.remove()
    assert not samples.folder.exists()
    assert samples[2]["n"].tolist() == list(range(7)), "an open map stays valid"


@pytest.mark.parametrize(("most", "together"), [(1 << 30, batches.READERS), (1, 1)])
def test_pieces_are_read_side_by_side_as_far_as_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, together: int
) -> None:
    """All that may be read at once wait for each other, and their rows come in the pieces' order."""
    monkeypatch.setattr(batches, "READ_BYTES", most)
    pieces = [stage(tmp_path, f"{number:02d}", [number + 1]) for number in range(2 * batches.READERS)]
    meeting, open_input = threading.Barrier(together), storage.open_input

    def met(uri: str) -> BinaryIO:
        meeting.wait(20)
        return open_input(uri)

    monkeypatch.setattr(storage, "open_input", met)
    samples = PreparedSamples(pieces, str(tmp_path))
    assert samples.lengths.tolist() == list(range(1, len(pieces) + 1))
    samples.remove()


def test_a_piece_that_is_gone_leaves_no_copy(tmp_path: Path) -> None:
    pieces = [stage(tmp_path, name, [3]) for name in ("a", "b", "c")]
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError, match=r"/b$"):
        PreparedSamples(pieces, str(tmp_path))
    pieces[1] = stage(tmp_path, "b", [3])
    samples = PreparedSamples(pieces, str(tmp_path))
    assert len(samples) == 3
    samples.remove()


def test_the_copy_is_shared_until_the_pieces_change(tmp_path: Path) -> None:
    first = PreparedSamples([stage(tmp_path, "a", [4, 2])], str(tmp_path))
    copy = first.folder / "samples.arrow"
    written = copy.stat().st_mtime_ns
    piece = Piece(storage.info(str(tmp_path / "a")), 0, 2, end=True)
    assert PreparedSamples([piece], str(tmp_path)).folder == first.folder
    assert copy.stat().st_mtime_ns == written, "a second worker reads the same file"
    changed = PreparedSamples([stage(tmp_path, "a", [5, 2, 9])], str(tmp_path))
    assert changed.lengths.tolist() == [5, 2, 9]
    other = PreparedSamples([piece], "another run")
    assert len({first.folder, changed.folder, other.folder}) == 3
    for samples in (first, changed, other):
        samples.remove()
