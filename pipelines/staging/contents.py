"""What is in a piece, as its footer tells: nobody reads the rows of a night to know how many of them are bad."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.reading.objects import OF_THE_MOMENT
from pipelines.staging.pieces import Piece

NOTE = b"hybrid.contents"
"""Key of a footer's metadata."""
FOOTER_BYTES = 32 << 10
"""So much of a file's end is asked for at once; most footers are a fifth of it."""
READERS = 16
TOLD_BY = ("error", "lost_rows", "fields")
"""Columns that tell it; pieces of earlier versions lack the last two."""
STAGES = ("decode", "predict", "write")


@dataclass(frozen=True)
class Contents:
    """What rows are like."""

    errors: Counter[str] = field(default_factory=Counter)
    """How many by kind of error, those with no row of their own included."""
    lost: int = 0
    """How many have no row of their own: they are lost with one that says so."""
    fields: frozenset[str] = frozenset()
    """Which fields of the input were kept in some of them."""
    jails: frozenset[str] = frozenset()
    """The decoding jails in which the rows were decoded (`sandbox.jail.in_force`); unknown of earlier versions."""

    @property
    def bad(self) -> int:
        """How many of the rows are error rows."""
        return self.errors.total() - self.lost

    @classmethod
    def of(cls, rows: pa.Table) -> Contents:
        """Of rows with the columns `TOLD_BY`."""
        errors: Counter[str] = Counter()
        lost = 0
        told = rows.select([name for name in ("error", "lost_rows") if name in rows.column_names])
        for row in told.filter(rows["error"].is_valid()).to_pylist():
            beyond = row.get("lost_rows") or 0
            errors[kind_of(row["error"])] += 1 + beyond
            lost += beyond
        kept = rows["fields"].drop_null().to_pylist() if "fields" in rows.column_names else []
        return cls(errors, lost, frozenset().union(*map(_names, kept)))

    def noted(self, rows: pa.Table) -> pa.Table:
        """The same rows, in whose file this will stand."""
        known = {"errors": self.errors, "lost": self.lost, "fields": sorted(self.fields), "jails": sorted(self.jails)}
        note = json.dumps(known)
        return rows.replace_schema_metadata({**(rows.schema.metadata or {}), NOTE: note.encode()})

    @classmethod
    def told(cls, footer: bytes) -> Contents | None:
        """As the end of a file tells; None where it does not: an earlier version wrote it, or the end is too short."""
        try:
            return cls.noted_in(pq.read_metadata(pa.BufferReader(footer)))
        except (pa.ArrowInvalid, OSError):
            return None

    @classmethod
    def noted_in(cls, footer: pq.FileMetaData) -> Contents | None:
        """As a file's metadata tells; None where that does not."""
        try:
            known = json.loads((footer.metadata or {})[NOTE])
            jails = frozenset(known.get("jails", ()))
            return cls(Counter(known["errors"]), known["lost"], frozenset(known["fields"]), jails)
        except (KeyError, ValueError, TypeError, RecursionError):
            return None

    @classmethod
    def of_file(cls, data: bytes) -> Contents:
        """Of a whole file: as its end tells, or its rows where that does not."""
        return _of(pq.ParquetFile(pa.BufferReader(data)))


Known = dict[tuple[str, int], Contents]
"""By a file's name and size: a task that was taken for dead may have written another one of this name."""


@dataclass
class Staged:
    """What a computation put into its folder."""

    rows: int = 0
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """By stage, of all processes together."""
    contents: Known = field(default_factory=dict)
    """Of each file."""
    actors: int = 1
    """How many processes could have the model at a time; those that waited for nodes count, too."""

    def add(self, other: Staged) -> None:
        """Takes in what another task put there."""
        self.rows += other.rows
        self.bytes += other.bytes
        self.contents |= other.contents
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


def _names(text: str) -> frozenset[str]:
    """Of the fields in a JSON object, none if it is something else: the decoding child wrote it, which a file may have
    taken over."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(fields) if isinstance(fields, dict) else frozenset()


def kind_of(error: str) -> str:
    """`ImageDecodeError` of `ImageDecodeError: …`."""
    return error.split(":", 1)[0]


def total(pieces: Sequence[Piece], known: Known | None = None) -> Contents:
    """What is in these pieces together.

    Args:
        pieces: the files.
        known: what those that have just been written contain; of the others the footers are read, and the rows where
            these do not tell.

    Raises:
        FileNotFoundError: a file is gone.
        RuntimeError: a file is damaged.
        StorageError: the store kept failing.
    """
    return added(each(pieces, known))


def told_of(pieces: Sequence[Piece], known: Known) -> Contents:
    """What is in those of these pieces that have just been written; of others nothing is read."""
    return added(told for piece in pieces if (told := known.get(_key(piece))) is not None)


def each(pieces: Sequence[Piece], known: Known | None = None) -> list[Contents]:
    """What is in each of these pieces, as `total` has it."""
    known = known or {}
    found = [known.get(_key(piece)) for piece in pieces]
    others = [number for number, told in enumerate(found) if told is None]
    for number, end in zip(others, storage.read_ends([pieces[n].file for n in others], FOOTER_BYTES), strict=True):
        found[number] = None if end is None else Contents.told(end)
    with ThreadPoolExecutor(READERS) as threads:
        untold = [piece.file.uri for piece, told in zip(pieces, found, strict=True) if told is None]
        read = threads.map(_read, untold)
        return [next(read) if told is None else told for told in found]


def refused(pieces: Sequence[Piece]) -> dict[Piece, set[str]]:
    """Addresses of the objects that could not be read for a reason of the moment, of each of some pieces of one file;
    of none, if that has gone.

    Raises:
        RuntimeError: it is damaged.
        StorageError: the store kept failing.
    """
    uri = pieces[0].file.uri
    try:
        with storage.open_input(uri) as stream, undamaged(uri):
            rows = pq.read_table(stream, columns=["object", "error"])
    except FileNotFoundError:
        return {}
    return {piece: _refused(rows.slice(piece.pack.row, piece.rows) if piece.pack else rows) for piece in pieces}


def _refused(rows: pa.Table) -> set[str]:
    bad = rows.filter(rows["error"].is_valid()).to_pylist()
    return {row["object"] for row in bad if row["object"] and kind_of(row["error"]) in OF_THE_MOMENT}


def _key(piece: Piece) -> tuple[str, int]:
    return piece.file.name, piece.file.size


def added(parts: Iterable[Contents]) -> Contents:
    """What is in all of these together."""
    errors: Counter[str] = Counter()
    lost, fields, jails = 0, set[str](), set[str]()
    for part in parts:
        errors.update(part.errors)
        lost += part.lost
        fields |= part.fields
        jails |= part.jails
    return Contents(errors, lost, frozenset(fields), frozenset(jails))


def _read(uri: str) -> Contents:
    with storage.open_input(uri) as stream, undamaged(uri):
        return _of(pq.ParquetFile(stream))


@contextmanager
def undamaged(uri: str) -> Iterator[None]:
    """What pyarrow says of a file that it cannot read becomes one line, with the way out.

    Raises:
        RuntimeError: names the file.
    """
    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RuntimeError(f"{uri} is damaged ({reason}): take it away, and infer its night again") from None


def _of(file: pq.ParquetFile) -> Contents:
    return Contents.noted_in(file.metadata) or added(map(Contents.of, _some_rows(file)))


def _some_rows(file: pq.ParquetFile) -> Iterator[pa.Table]:
    for batch in file.iter_batches(columns=list(TOLD_BY)):
        yield pa.Table.from_batches([batch])
