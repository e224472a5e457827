"""Prepared samples, read for a training: what is known of all of them, and a node's own copy of those that it reads.

The driver reads of the staged pieces how long the samples are, which is all that a plan of epochs needs
(`training.batches.plan_epoch`). Nodes copy the pieces that their workers' shares of batches are in, and map them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Sample
from pipelines import storage
from pipelines.reading.samples import unpack
from pipelines.secrets import shown
from pipelines.staging.pieces import Piece

READERS, READ_BYTES = 16, 256 << 20
"""So many pieces, and about so many bytes of them, are read at once."""
LENGTH = "length"  # of a sample; null in rows that have none
SAMPLE = pa.schema([pa.field("sample", pa.large_binary())])
COPIED = b"pieces"
"""In the schema of a copy: the numbers of the pieces that it has, as little-endian int64."""


@dataclass(frozen=True)
class SampleIndex:
    """The good samples of some staged pieces, without the samples.

    These are in the order of their shards' addresses, however they were staged: the same data elsewhere train alike.
    """

    pieces: Sequence[Piece]
    """In an order drawn by chance: workers take neighbours, who shall not be those of one class, day or event."""
    starts: np.ndarray
    """[pieces + 1] the place of each piece's first sample, if the pieces lay end to end, and of what follows."""
    places: np.ndarray
    """[samples] the place of each sample there."""
    lengths: np.ndarray
    """[samples]"""

    @staticmethod
    def of(pieces: Sequence[Piece]) -> SampleIndex:
        """Reads it of the pieces, some at a time.

        Raises:
            FileNotFoundError: a piece is gone.
            StorageError: the store cannot be reached or refuses.
        """
        pieces = [pieces[number] for number in np.random.default_rng(0).permutation(len(pieces))]
        starts, lengths = [0], [np.empty(0, np.int64)]
        runs: list[tuple[str, int, np.ndarray]] = []
        for rows in _read_ahead(pieces, lambda piece: _good_rows(piece, [LENGTH, "shard", "index"])):
            runs += _runs(rows, starts[-1])
            starts.append(starts[-1] + len(rows))
            lengths.append(rows[LENGTH].to_numpy())
        ordered = [own for _, _, own in sorted(runs, key=lambda run: run[:2])]
        places = np.concatenate([np.empty(0, np.int64), *ordered])
        return SampleIndex(pieces, np.asarray(starts), places, np.concatenate(lengths)[places])

    def __len__(self) -> int:
        return len(self.places)

    @property
    def counts(self) -> np.ndarray:
        """[pieces] how many samples each has."""
        return np.diff(self.starts)

    def pieces_of(self, numbers: np.ndarray) -> np.ndarray:
        """The number of the piece that each of these samples is in."""
        pieces: np.ndarray = np.searchsorted(self.starts, self.places[numbers], side="right") - 1
        return pieces


class PreparedSamples:
    """The samples of an index, memory-mapped from copies that all workers of a node share.

    Args:
        index: of all samples.
        owner: whose copies they are; `remove` takes nothing from another owner.
    """

    def __init__(self, index: SampleIndex, owner: str) -> None:
        self.index = index
        self.folder = _copies_of_this_user() / _copy_name(index.pieces, owner)
        self._copies: list[pa.ChunkedArray] = []
        self._where: np.ndarray = np.full((len(index.pieces), 2), -1)  # of a piece: its copy, its first sample there

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Sample:
        """A sample that was fetched."""
        (piece,) = self.index.pieces_of(np.asarray([number]))
        copy, first = self._where[piece]
        assert copy >= 0, f"sample {number} was not fetched"
        row = first + self.index.places[number] - self.index.starts[piece]
        return unpack(self._copies[copy][int(row)].as_buffer().to_pybytes())

    def fetch(self, numbers: np.ndarray) -> None:
        """Copies the pieces with these samples to this node's disk, as far as no worker did so yet.

        Raises:
            FileNotFoundError: a piece is gone.
            StorageError: the store cannot be reached or refuses.
            UsageError: a piece has other rows than the index says; or the folder of copies is another user's.
        """
        wanted = np.unique(self.index.pieces_of(numbers))
        if (self._where[wanted, 0] >= 0).all():
            return
        _make_private(self.folder.parent)
        self.folder.mkdir(exist_ok=True)
        with FileLock(self.folder / "lock"):
            self._open_copies()
            missing = wanted[self._where[wanted, 0] < 0]
            if len(missing):
                _copy(self.index, missing, self._name(len(self._copies)))
                self._open_copies()

    def _name(self, copy: int) -> Path:
        return self.folder / f"{copy:06d}.arrow"

    def _open_copies(self) -> None:
        """Opens those that any worker of this node made since the last time."""
        while (path := self._name(len(self._copies))).exists():
            try:
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            except (pa.ArrowInvalid, OSError, KeyError):  # the machine went down before its disk had it all
                path.unlink()
                return
            numbers = np.frombuffer(table.schema.metadata[COPIED], "<i8")
            firsts = np.cumsum([0, *self.index.counts[numbers]])[:-1]
            self._where[numbers] = np.stack([np.full(len(numbers), len(self._copies)), firsts], axis=1)
            self._copies.append(table["sample"])

    def remove(self) -> None:
        """Deletes the node's copies; open maps stay valid until they are closed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _copies_of_this_user() -> Path:
    return Path(tempfile.gettempdir()) / f"hybrid-samples-{os.getuid()}"


def _make_private(folder: Path) -> None:
    """Makes a folder that nobody else can read or write. Anybody may know its name, and have made it before."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(f"{folder} is no folder of this user: remove it, or set TMPDIR to another place")
    folder.chmod(0o700)


def _copy_name(pieces: Sequence[Piece], owner: str) -> str:
    """Different for different files, or files of another state, so that a copy left by a killed run is never stale."""
    states = [owner, str(COPIED), *(f"{piece.file.uri} {piece.file.etag}" for piece in pieces)]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]


def _copy(index: SampleIndex, numbers: np.ndarray, path: Path) -> None:
    """Writes these pieces' good samples as an uncompressed Arrow file, some pieces in memory at a time."""
    unfinished = path.with_suffix(".unfinished")
    pieces = [index.pieces[number] for number in numbers]
    schema = SAMPLE.with_metadata({COPIED: numbers.astype("<i8").tobytes()})
    with pa.ipc.new_file(str(unfinished), schema) as writer:
        tables = _read_ahead(pieces, lambda piece: _good_rows(piece, [*SAMPLE.names, LENGTH]))
        for piece, count, rows in zip(pieces, index.counts[numbers], tables, strict=True):
            if len(rows) != count:
                advice = "start it again with the same name, and it goes on"
                raise UsageError(f"'{shown(piece.file.uri)}' was written anew while the training ran: {advice}")
            writer.write_table(rows.select(SAMPLE.names).cast(SAMPLE).replace_schema_metadata(schema.metadata))
    unfinished.rename(path)


def _read_ahead(pieces: Sequence[Piece], read: Callable[[Piece], pa.Table]) -> Iterator[pa.Table]:
    """What is read of each piece, in order; the next pieces are read meanwhile, side by side."""
    with ThreadPoolExecutor(READERS) as pool:
        pending: deque[tuple[int, Future[pa.Table]]] = deque()
        for piece in pieces:
            while pending and (len(pending) == READERS or _bytes(pending) + piece.file.size > READ_BYTES):
                yield pending.popleft()[1].result()
            pending.append((piece.file.size, pool.submit(read, piece)))
        while pending:
            yield pending.popleft()[1].result()


def _bytes(pending: Iterable[tuple[int, Future[pa.Table]]]) -> int:
    return sum(size for size, _ in pending)


def _good_rows(piece: Piece, columns: Sequence[str]) -> pa.Table:
    with storage.open_input(piece.file.uri) as stream:
        table = pq.read_table(stream, columns=list(columns), use_threads=False)
    return table.filter(table[LENGTH].is_valid())


def _runs(rows: pa.Table, start: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """Of each shard in a piece's rows, in which its own stand together: its address, its first index there, and the
    places of its rows, where the first one of all has the place `start`."""
    shards = rows["shard"].combine_chunks().dictionary_encode()
    codes, index = shards.indices.to_numpy(), rows["index"].to_numpy()
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    for first, stop in pairwise([*begins, len(codes)]):
        yield shards.dictionary[codes[first]].as_py(), int(index[first]), np.arange(start + first, start + stop)
