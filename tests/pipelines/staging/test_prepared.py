"""What is known of prepared samples, and a node's copy of those it reads."""

import os
import stat
import tempfile
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.reading.samples import pack
from pipelines.staging import prepared
from pipelines.staging.pieces import Piece
from pipelines.staging.prepared import PreparedSamples, SampleIndex


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
    storage.write_bytes(uri, sink.getvalue().to_pybytes(), storage.anything)
    return Piece(storage.info(uri), 0, len(rows), end=True)


def copied(pieces: Sequence[Piece], owner: str) -> PreparedSamples:
    """All samples of these pieces."""
    samples = PreparedSamples(SampleIndex.of(pieces), owner)
    samples.fetch(np.arange(len(samples)))
    return samples


def read(samples: PreparedSamples) -> list[int]:
    """The lengths that the samples themselves tell."""
    return [int(samples[number]["length"]) for number in range(len(samples))]


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
        samples = copied(staged, str(tmp_path))
        assert samples.index.lengths.tolist() == [4, 2, 9, 7, 5, 8]
        assert read(samples) == [4, 2, 9, 7, 5, 8]
        samples.remove()
    nothing = copied([stage(tmp_path, "bad", [None])], str(tmp_path))
    assert len(nothing) == 0
    nothing.remove()


def test_prepared_samples_are_the_good_rows_of_the_pieces(tmp_path: Path) -> None:
    pieces = [
        stage(tmp_path, "b", [4, None, 2]),
        stage(tmp_path, "a", [None]),
        stage(tmp_path, "c", [7]),
    ]
    index = SampleIndex.of(pieces)
    assert dict(zip(index.pieces, index.counts.tolist(), strict=True)) == dict(zip(pieces, (2, 0, 1), strict=True))
    assert index.starts.tolist() == [0, *np.cumsum(index.counts)]
    assert index.lengths.tolist() == [4, 2, 7]
    assert [index.pieces[number] for number in index.pieces_of(np.arange(3))] == [pieces[0], pieces[0], pieces[2]]
    first = index.starts[index.pieces.index(pieces[0])]
    assert index.places[:2].tolist() == [first, first + 1]
    samples = copied(pieces, str(tmp_path))
    assert len(samples) == 3
    assert [samples[i]["n"].tolist() for i in range(3)] == [list(range(n)) for n in (4, 2, 7)]
    samples.remove()
    assert not samples.folder.exists()
    assert samples[2]["n"].tolist() == list(range(7)), "an open map stays valid"


def test_neighbours_in_the_files_are_not_neighbours_in_the_data(tmp_path: Path) -> None:
    """Where the data are sorted, a worker's part of them is not one end."""
    pieces = [stage(tmp_path, f"{number:03d}", [number + 1] * 3) for number in range(120)]
    index = SampleIndex.of(pieces)
    assert index.lengths.tolist() == sorted(index.lengths.tolist())
    by_place = index.lengths[np.argsort(index.places)]
    for part in np.array_split(by_place, 4):
        assert 45 < part.mean() < 76
    again = SampleIndex.of(pieces)
    assert again.places.tolist() == index.places.tolist(), "the same for a training that goes on"


def test_a_node_copies_the_pieces_that_its_workers_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they fetch, and in whatever order, each piece comes once, and each sample is itself."""
    rng = np.random.default_rng(3)
    lengths = rng.permutation(np.arange(1, 41)).tolist()
    cuts = [0, 5, 6, 15, 15, 22, 31, 40]
    pieces = [
        stage(tmp_path, f"{number}", lengths[first:stop], [("s", index) for index in range(first, stop)])
        for number, (first, stop) in enumerate(pairwise(cuts))
    ]
    index, owner = SampleIndex.of(pieces), str(tmp_path)
    opened: list[str] = []
    open_input = storage.open_input

    def noted(uri: str) -> BinaryIO:
        opened.append(uri)
        return open_input(uri)

    monkeypatch.setattr(storage, "open_input", noted)
    workers = [PreparedSamples(index, owner) for _ in range(2)]
    assert not opened, "nothing is copied that nobody fetched"
    with pytest.raises(AssertionError, match="sample 3 was not fetched"):
        workers[0][3]
    have: list[set[int]] = [set(), set()]
    for _ in range(12):
        for worker, known in zip(workers, have, strict=True):
            wanted = rng.choice(len(lengths), rng.integers(0, 4), replace=False)
            worker.fetch(wanted)
            known |= set(wanted.tolist())
            assert [int(worker[number]["length"]) for number in known] == [lengths[number] for number in known]
    assert sorted(opened) == sorted(set(opened)), "each piece once, whichever worker asked for it"
    needed = {index.pieces[piece].file.uri for piece in index.pieces_of(np.array(sorted(set.union(*have))))}
    assert set(opened) == needed
    workers[0].remove()


@pytest.mark.parametrize(("most", "together"), [(1 << 30, prepared.READERS), (1, 1)])
def test_pieces_are_read_side_by_side_as_far_as_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, together: int
) -> None:
    """All that may be read at once wait for each other, and their rows come in the pieces' order."""
    monkeypatch.setattr(prepared, "READ_BYTES", most)
    pieces = [stage(tmp_path, f"{number:02d}", [number + 1]) for number in range(2 * prepared.READERS)]
    meeting, open_input = threading.Barrier(together), storage.open_input

    def met(uri: str) -> BinaryIO:
        meeting.wait(20)
        return open_input(uri)

    monkeypatch.setattr(storage, "open_input", met)
    samples = copied(pieces, str(tmp_path))
    assert samples.index.lengths.tolist() == read(samples) == list(range(1, len(pieces) + 1))
    samples.remove()


def test_a_piece_that_is_gone_leaves_no_copy(tmp_path: Path) -> None:
    pieces = [stage(tmp_path, name, [3]) for name in ("a", "b", "c")]
    index = SampleIndex.of(pieces)
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError, match=r"/b$"):
        SampleIndex.of(pieces)
    samples = PreparedSamples(index, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"/b$"):
        samples.fetch(np.arange(3))
    stage(tmp_path, "b", [3, 5])
    with pytest.raises(UsageError, match=r"/b' was written anew .* start it again with the same name"):
        samples.fetch(np.arange(3))
    stage(tmp_path, "b", [3])
    samples.fetch(np.arange(3))
    assert read(samples) == [3, 3, 3]
    samples.remove()


def test_a_copy_is_shared_until_the_pieces_change(tmp_path: Path) -> None:
    first = copied([stage(tmp_path, "a", [4, 2])], str(tmp_path))
    copy = first.folder / "000000.arrow"
    written = copy.stat().st_mtime_ns
    piece = Piece(storage.info(str(tmp_path / "a")), 0, 2, end=True)
    assert copied([piece], str(tmp_path)).folder == first.folder
    assert copy.stat().st_mtime_ns == written, "a second worker reads the same file"
    assert {path.name for path in first.folder.iterdir()} == {"000000.arrow", "lock"}
    changed = copied([stage(tmp_path, "a", [5, 2, 9])], str(tmp_path))
    assert read(changed) == [5, 2, 9]
    other = copied([Piece(storage.info(str(tmp_path / "a")), 0, 3, end=True)], "another run")
    assert len({first.folder, changed.folder, other.folder}) == 3
    for samples in (first, changed, other):
        samples.remove()


def test_copies_are_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an account on the node may know the folder's name, and have made it."""
    piece = stage(tmp_path, "a", [4, 2])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there"))
    samples = copied([piece], "run")
    private = samples.folder.parent
    assert private.parent == tmp_path / "there"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    private.chmod(0o777)
    assert read(copied([piece], "another run")) == [4, 2]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700, "an earlier version left it open to read"

    said = rf"^{private} is no folder of this user: remove it, or set TMPDIR to another place$"
    private.rename(tmp_path / "others")
    private.symlink_to(tmp_path / "others")
    with pytest.raises(UsageError, match=said):
        copied([piece], "run")
    private.unlink()
    private.touch()
    with pytest.raises(UsageError, match=said):
        copied([piece], "run")
    private.unlink()
    private.mkdir()
    monkeypatch.setattr(prepared, "_copies_of_this_user", lambda: private)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UsageError, match=said):
        copied([piece], "run")


@pytest.mark.parametrize("left", [0, 100])
def test_a_copy_that_a_power_failure_cut_off_is_made_again(tmp_path: Path, left: int) -> None:
    pieces = [stage(tmp_path, "a", [4, 2]), stage(tmp_path, "b", [7])]
    samples = copied(pieces, str(tmp_path))
    os.truncate(samples.folder / "000000.arrow", left)
    again = copied(pieces, str(tmp_path))
    assert again.folder == samples.folder
    assert read(again) == [4, 2, 7]
    assert {path.name for path in again.folder.iterdir()} == {"000000.arrow", "lock"}
    again.remove()
