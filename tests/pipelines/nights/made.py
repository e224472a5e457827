"""Tables that tests make, and what they say."""

import io
import json
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.transaction import AddAction

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, tables
from pipelines.staging.pieces import Piece, later_columns, list_pieces, tiling
from tests.pipelines.staging.test_pieces import SCHEMA
from tests.pipelines.staging.test_sink import stage

RUN = {"run_id": "r"}
ONE, TWO, THREE = "111111111111", "222222222222", "333333333333"
"""Fingerprints."""


def night(uri: str, fingerprint: str, *blocks: pa.Table, ds: str = "2026-01-01") -> list[Piece]:
    folder = storage.join(uri, f"ds={ds}", fingerprint)
    stage(folder, *blocks)
    return [piece for pieces in list_pieces(folder).values() for piece in tiling(pieces) or []]


def read(uri: str, ds: str = "2026-01-01") -> list[str]:
    return sorted(DeltaTable(uri).to_pyarrow_table(filters=[("ds", "=", ds)])["sample_id"].to_pylist())


def refusal(uri: str, schema: pa.Schema = SCHEMA) -> str:
    """How a night is refused, which leaves everything as it is."""
    before = storage.list_all(uri)
    with pytest.raises(UsageError) as caught:
        ownership.check(uri, schema)
    assert "\n" not in str(caught.value)
    assert storage.list_all(uri) == before
    return str(caught.value)


def commit_as_before(uri: str, pieces: list[Piece], name: str | None = None, schema: pa.Schema = SCHEMA) -> None:
    """A night of the version that marked no table, had none of the later columns, and told nothing in a footer."""
    before = pa.schema([field for field in schema if field.name not in later_columns(schema)])
    delta_schema = before.append(pa.field("ds", pa.string()))
    for piece in pieces:
        old = pq.read_table(io.BytesIO(storage.read_bytes(piece.file.uri))).select(before.names)
        old = old.replace_schema_metadata(None)
        buffer = io.BytesIO()
        pq.write_table(old, buffer, compression="zstd")
        storage.write_bytes(piece.file.uri, buffer.getvalue(), storage.anything)
    root = storage.absolute(uri) + "/"
    actions = [
        AddAction(
            piece.file.uri.removeprefix(root), storage.info(piece.file.uri).size, {"ds": "2026-01-01"},
            int(time.time() * 1000), True, json.dumps({"numRecords": piece.rows}),
        )
        for piece in pieces
    ]  # fmt: skip
    delta = DeltaTable.create(uri, delta_schema, mode="ignore", partition_by=["ds"], name=name)
    properties = CommitProperties({"ds": "2026-01-01", **RUN}, app_transactions=[Transaction("ds=2026-01-01", 1)])
    delta.create_write_transaction(
        actions, "overwrite", delta_schema, ["ds"], [("ds", "=", "2026-01-01")], commit_properties=properties
    )


def meanwhile(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    """Does something else after the next commit has looked at its night, and before it commits."""
    looked = tables.night_files

    def look(delta: DeltaTable, ds: str = "") -> set[str]:
        files = looked(delta, ds)
        monkeypatch.setattr(commit, "night_files", looked)
        work()
        return files

    monkeypatch.setattr(commit, "night_files", look)
