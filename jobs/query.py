"""`hybrid query "SQL"`: ask the tables.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from hybrid_models.errors import UsageError
from jobs.command import cli
from pipelines import places, storage
from pipelines.nights.rules import QueryLimits


@dataclass(frozen=True)
class QueryOptions:
    """What `hybrid query` needs to know."""

    sql: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SQL")]
    """One SELECT over the views captions, nowcasts, actions, translations and tables of other names (good rows), and
    captions_all … (error rows, too)."""
    tables: str
    """URI of the folder of tables."""
    as_of: str = ""
    """The tables as they were: a moment such as 2026-01-31T06:00 (UTC), or a version, if one table is asked."""
    format: Literal["table", "csv", "json", "parquet"] = "table"
    """How the rows are written; json is one object a line."""
    raw: bool = False
    """CSV with texts as they are; otherwise those that a spreadsheet would run (= + - @ ...) get an apostrophe."""
    out: str = ""
    """URI to write the rows to instead of stdout (needed for parquet)."""
    limits: QueryLimits = field(default_factory=QueryLimits)


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Rows on stdout and nothing else; with --out the rows go there and the summary to stdout."""
    options = cli.parse(QueryOptions, argv, "hybrid query", "Ask SQL (DuckDB) about the tables: captions, nowcasts …")
    if options.format == "parquet" and not options.out:
        raise UsageError("--format parquet needs --out: Parquet is not for a terminal")
    if options.raw and options.format != "csv":
        raise UsageError(f"--raw is about --format csv: {options.format} has texts as they are")
    from jobs.command.writers import WRITERS, raw_csv
    from pipelines.nights import ownership, query
    from pipelines.nights.tables import parse_as_of

    as_of = parse_as_of(options.as_of) if options.as_of else None
    if options.out:
        written = [storage.join(options.tables, name) for name in ownership.names(options.tables)]
        places.check_outside("out", options.out, written, "the table")
    names = asked(options.sql, ownership.names(options.tables))
    rows = query.query(options.sql, options.tables, names, as_of, limits=options.limits)
    content = raw_csv(rows) if options.raw else WRITERS[options.format](rows)
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


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
