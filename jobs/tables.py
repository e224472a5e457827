"""`hybrid tables`: the nights that the tables hold; `hybrid tables tidy`: free the space of what nobody needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from deltalake import DeltaTable

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from jobs import cli
from jobs.query import WRITERS
from pipelines import storage, tables
from pipelines.tables import AsOf, parse_as_of

SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("version", pa.int64()),
        ("ds", pa.string()),
        ("rows", pa.int64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("written", pa.timestamp("s")),
    ]
)


@dataclass(frozen=True)
class TablesOptions:
    """What `hybrid tables` needs to know."""

    tables: str
    """URI of the folder of tables."""
    as_of: str = ""
    """The tables as they were: a moment such as 2026-01-31T06:00 (UTC), or a version that all of them have."""
    format: Literal["table", "csv", "json"] = "table"
    """How the nights are written; json is one object a line."""


@dataclass(frozen=True)
class TidyOptions:
    """What `hybrid tables tidy` needs to know."""

    tables: str
    """URI of the folder of tables."""
    retain_hours: int = 168
    """Files that a version of the last so many hours needs are kept, and so are younger ones."""


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """The nights on stdout and nothing else; or a summary of what was removed."""
    if argv and argv[0] == "tidy":
        tidying = cli.parse(TidyOptions, argv[1:], "hybrid tables tidy", "Remove files that no version needs any more.")
        return tidy(tidying)
    options = cli.parse(
        TablesOptions, argv, "hybrid tables", "List the nights of the tables; `hybrid tables tidy` frees space."
    )
    as_of = parse_as_of(options.as_of) if options.as_of else None
    rows = [row for name, table in existing(options.tables, as_of) for row in nights(name, table)]
    sys.stdout.buffer.write(WRITERS[options.format](pa.Table.from_pylist(rows, schema=SCHEMA)))
    sys.stdout.flush()
    return None


def existing(uri: str, as_of: AsOf | None = None) -> list[tuple[str, DeltaTable]]:
    """The tables at a URI, by name.

    Raises:
        UsageError: there are none.
    """
    opened = ((name, tables.open_table(storage.join(uri, name), as_of)) for name in TABLES.values())
    found = [(name, table) for name, table in opened if table is not None]
    if not found:
        raise UsageError(f"no tables at {uri}: `hybrid infer` writes {', '.join(TABLES.values())}")
    return found


def nights(name: str, table: DeltaTable) -> Iterator[dict[str, Any]]:
    """The nights of a table as rows of `SCHEMA`."""
    for night in tables.nights(table):
        written = night.written.replace(tzinfo=None, microsecond=0)
        yield {"table": name, "version": table.version(), **vars(night), "written": written}


def tidy(options: TidyOptions) -> dict[str, Any]:
    """Removes what no version of the last hours needs; returns files and bytes by table."""
    cli.check_retain_hours(options.retain_hours)
    freed = {}
    for name, _ in existing(options.tables):
        uri = storage.join(options.tables, name)
        before = sum(file.size for file in storage.list_files(uri))
        removed = tables.tidy(uri, options.retain_hours)
        after = sum(file.size for file in storage.list_files(uri))
        freed[name] = {"files": len(removed), "bytes": before - after}
    return {"tables": options.tables, "removed": freed}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
