"""`hybrid query "SQL"`: ask the tables."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import tyro

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from jobs import cli
from pipelines import query, storage
from pipelines.tables import parse_as_of

Format = Literal["table", "csv", "json", "parquet"]


@dataclass(frozen=True)
class QueryOptions:
    """What `hybrid query` needs to know."""

    sql: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SQL")]
    """One SELECT over the views captions, nowcasts, translations (good rows) and captions_all … (error rows, too)."""
    tables: str
    """URI of the folder of tables."""
    as_of: str = ""
    """The tables as they were: a moment such as 2026-01-31T06:00 (UTC), or a version, if one table is asked."""
    format: Format = "table"
    """How the rows are written; json is one object a line."""
    out: str = ""
    """URI to write the rows to instead of stdout (needed for parquet)."""


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Rows on stdout and nothing else; with --out the rows go there and the summary to stdout."""
    options = cli.parse(QueryOptions, argv, "hybrid query", "Ask SQL (DuckDB) about captions, nowcasts, translations.")
    if options.format == "parquet" and not options.out:
        raise UsageError("--format parquet needs --out: Parquet is not for a terminal")
    as_of = parse_as_of(options.as_of) if options.as_of else None
    rows = query.query(options.sql, options.tables, asked(options.sql, list(TABLES.values())), as_of)
    content = WRITERS[options.format](rows)
    if options.out:
        storage.write_bytes(options.out, content)
        return {"rows": len(rows), "columns": rows.column_names, "out": options.out}
    _show(content)
    return None


def _show(content: bytes) -> None:
    """To stdout; a reader that ends early, such as `head`, has what it wants."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes what is left when it ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def asked(sql: str, names: Sequence[str]) -> list[str]:
    """The tables whose names are in a statement, or all of them: those that are not asked need not be opened."""
    return [name for name in names if name in sql.lower()] or list(names)


def _table(rows: pa.Table) -> bytes:
    return (query.render(rows) + "\n").encode()


def _csv(rows: pa.Table) -> bytes:
    """CSV knows no lists: they are written as JSON."""
    nested = [i for i, field in enumerate(rows.schema) if pa.types.is_nested(field.type)]
    for i in nested:
        texts = [None if value is None else json.dumps(value, default=str) for value in rows.column(i).to_pylist()]
        rows = rows.set_column(i, rows.schema.field(i).name, pa.array(texts, pa.string()))
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(rows, buffer)
    return buffer.getvalue()


def _json(rows: pa.Table) -> bytes:
    lines = [json.dumps(row, default=_plain, ensure_ascii=False) + "\n" for row in rows.to_pylist()]
    return "".join(lines).encode()


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _parquet(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    return buffer.getvalue()


WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
