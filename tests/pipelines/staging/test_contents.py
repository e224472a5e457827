"""What is in pieces, without reading their rows."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.staging import contents
from pipelines.staging.contents import FOOTER_BYTES, Contents, Staged
from pipelines.staging.pieces import Piece, later_columns, list_pieces
from tests import tiny
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows

TORN = ["ReadError: torn", None, "ReadError: torn", "X: y"]


def put(place: str, name: str, table: pa.Table) -> Piece:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(place, name), buffer.getvalue().to_pybytes())
    return Piece(storage.info(storage.join(place, name)), 0, len(table), True)


@contextmanager
def no_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(contents, "_read", pytest.fail)
        yield


def torn() -> pa.Table:
    fields = ['{"city": "Ulm"}', None, '{"street": null, "city": ""}', "{}"]
    return pa.table({"error": TORN, "lost_rows": [63, None, 0, None], "fields": fields})


def test_rows_that_are_lost_with_an_error_are_counted() -> None:
    assert Contents.of(torn()) == Contents(Counter(ReadError=65, X=1), 63, frozenset({"city", "street"}))
    before = pa.table({"error": ["X: z", None]})  # of a version that did not know of the others
    assert Contents.of(before) == Contents(Counter(X=1))
    assert later_columns(SCHEMA) == {"lost_rows", "object", "fields", "start_seconds", "end_seconds"}
    assert all(SCHEMA.field(name).nullable for name in later_columns(SCHEMA))
    assert (Contents.of(torn()).bad, Contents.of(before).bad, Contents().bad) == (3, 1, 0)


@pytest.mark.parametrize("fields", ["5", "[[1]]", '"city"', "{", "[" * 100_000, "null"])
def test_fields_that_are_none_are_not_counted(fields: str) -> None:
    """A child that a file has taken over may write anything."""
    table = pa.table({"error": ["X: y", None], "fields": ['{"city": 1}', fields]})
    assert Contents.of(table) == Contents(Counter(X=1), 0, frozenset({"city"}))


def test_a_footer_tells_what_its_rows_would(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Contents.of(torn())
    bytes_ = pa.array([np.random.default_rng(row).bytes(2 * FOOTER_BYTES) for row in range(4)])
    table = torn().append_column("frames", bytes_).replace_schema_metadata({"decoding": "beam 3"})
    pieces = [put(place, f"{number}.parquet", found.noted(table)) for number in range(3)]
    assert min(piece.file.size for piece in pieces) > 4 * FOOTER_BYTES
    with no_rows_are_read(monkeypatch):
        whole = contents.total(pieces)
    assert whole == Contents(Counter(ReadError=195, X=3), 189, frozenset({"city", "street"}))
    with storage.open_input(pieces[0].file.uri) as stream:
        assert (pq.read_schema(stream).metadata or {})[b"decoding"] == b"beam 3", "what stood there before"


def test_rows_are_read_where_a_footer_does_not_tell(place: str) -> None:
    """Pieces of earlier versions, notes of another kind, and footers longer than what is asked for."""
    plain = put(place, "plain.parquet", torn())
    other = put(place, "other.parquet", torn().replace_schema_metadata({contents.NOTE: b'{"errors": 3}'}))
    long = Contents.of(torn()).noted(torn().replace_schema_metadata({"note": "x" * 2 * FOOTER_BYTES}))
    pieces = [plain, other, put(place, "long.parquet", long)]
    assert contents.total(pieces) == Contents(Counter(ReadError=195, X=3), 189, frozenset({"city", "street"}))
    assert contents.total([]) == Contents()


def test_what_was_just_written_is_not_looked_at(place: str) -> None:
    gone = Piece(storage.FileInfo(storage.join(place, "gone.parquet"), 9, ""), 0, 1, True)
    assert contents.total([gone], {("gone.parquet", 9): Contents(Counter(X=1), 4)}) == Contents(Counter(X=1), 4)
    for known in ({}, {("gone.parquet", 8): Contents()}):
        with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
            contents.total([gone], known)


def test_the_sinks_files_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path)
    tiny.stage(folder, SCHEMA, A, rows(A, 0, 3, 2, "X: y"))
    tiny.stage(folder, SCHEMA, B, rows(B, 0, 2, 1))
    with no_rows_are_read(monkeypatch):
        assert contents.total([piece for own in list_pieces(folder).values() for piece in own]).errors == {"X": 3}


def test_tasks_add_up() -> None:
    whole = Staged(actors=2)
    whole.add(Staged(3, 100, {"decode": 1.0, "predict": 2.0, "write": 0.5}, {("a", 100): Contents(Counter(X=1))}))
    whole.add(Staged(2, 10, {"decode": 0.5, "predict": 1.0, "write": 0.25}, {("b", 10): Contents()}))
    assert (whole.rows, whole.bytes, whole.actors) == (5, 110, 2)
    assert whole.seconds == {"decode": 1.5, "predict": 3.0, "write": 0.75}
    assert whole.contents == {("a", 100): Contents(Counter(X=1)), ("b", 10): Contents()}
