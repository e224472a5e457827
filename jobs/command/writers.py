"""How rows are written to stdout or into a file: for people, and as CSV, JSON lines or Parquet."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from hybrid_models.errors import UsageError
from pipelines.cluster import logs
from pipelines.nights import query

FORMULA = r"^([=+\-@\t\r\n＝＋－＠])"
"""How texts begin that spreadsheets run."""


def _table(rows: pa.Table) -> bytes:
    return (query.render(rows) + "\n").encode()


def raw_csv(rows: pa.Table) -> bytes:
    """CSV knows no lists, structs and bytes: they are written as JSON and hex."""
    return _written_csv(query.as_text(rows))


def _csv(rows: pa.Table) -> bytes:
    """Texts that a spreadsheet would take for a formula get an apostrophe in front; numbers stay as they are."""
    texts = query.as_text(rows)
    columns = [_defused(column) if pa.types.is_string(column.type) else column for column in texts.columns]
    return _written_csv(pa.table(columns, names=_defused(pa.array(texts.column_names)).to_pylist()))


def _defused(texts: Any) -> Any:
    return pc.replace_substring_regex(texts, FORMULA, r"'\1")


def _written_csv(texts: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(texts, buffer)
    return buffer.getvalue()


def _json(rows: pa.Table) -> bytes:
    return "".join(f"{line}\n" for line in query.as_json(rows)).encode()


def _parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    try:
        pq.write_table(rows, buffer, compression="zstd")
    except pa.ArrowNotImplementedError as error:
        told = str(error).splitlines()[0]
        raise UsageError(f"Parquet cannot hold a column: {told}: cast it, such as `CAST(x AS VARCHAR)`") from None
    return buffer.getvalue()


WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}


def show(content: bytes) -> None:
    """Writes rows to stdout: byte by byte to a file or pipe, with control characters escaped to a terminal. A reader
    that ends early, such as `head`, has what it wants."""
    try:
        sys.stdout.buffer.write(logs.escaped(content.decode()).encode() if sys.stdout.isatty() else content)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes what is left when it ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
