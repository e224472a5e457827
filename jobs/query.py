"""`hybrid query "SQL"`: ask the tables.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any, Literal

import tyro

from hybrid_models.errors import UsageError
from jobs.command import cli
from pipelines import places, storage
from pipelines.nights.rules import QueryLimits

WAY_OUT = "give another --out, or replace it with --overwrite"
ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}


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
    format: Literal["auto", "table", "csv", "json", "parquet"] = "auto"
    """How the rows are written; json is one object a line, table shows people the first ones. By default it is table,
    and with --out what that ends with: .csv, .json, .jsonl or .parquet."""
    raw: bool = False
    """CSV with texts as they are; otherwise those that a spreadsheet would run (= + - @ ...) get an apostrophe."""
    out: str = ""
    """URI to write the rows to instead of stdout (needed for parquet)."""
    overwrite: bool = False
    """Replace the file at --out, whatever it is."""
    limits: QueryLimits = field(default_factory=QueryLimits)


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """Rows on stdout and nothing else; with --out the rows go there and the summary to stdout."""
    options = cli.parse(QueryOptions, argv, "hybrid query", "Ask SQL (DuckDB) about the tables: captions, nowcasts …")
    form = form_of(options)
    if form == "parquet" and not options.out:
        raise UsageError("--format parquet needs --out: Parquet is not for a terminal")
    if options.raw and form != "csv":
        raise UsageError(f"--raw is about --format csv: {form} has texts as they are")
    if options.overwrite and not options.out:
        raise UsageError("--overwrite is about --out: without it, rows go to stdout")
    is_own = storage.anything if options.overwrite else storage.nothing
    from jobs.command.writers import WRITERS, raw_csv, show
    from pipelines.nights import ownership, query
    from pipelines.nights.tables import parse_as_of

    as_of = parse_as_of(options.as_of) if options.as_of else None
    if options.out:
        written = [storage.join(options.tables, name) for name in ownership.names(options.tables)]
        places.check_outside("out", options.out, written, "the table")
        storage.check_replaceable(storage.beside(options.out), is_own, WAY_OUT)
    names = asked(options.sql, ownership.names(options.tables))
    with query.memory_bounded(options.limits):
        rows = query.query(options.sql, options.tables, names, as_of, limits=options.limits)
    content = raw_csv(rows) if options.raw else WRITERS[form](rows)
    if options.out:
        storage.write_bytes(storage.beside(options.out), content, is_own, WAY_OUT)
        return {"rows": len(rows), "columns": rows.column_names, "out": options.out}
    show(content)
    return None


def form_of(options: QueryOptions) -> str:
    """How the rows are written. A table for people leaves rows and columns out: a file has all of them.

    Raises:
        UsageError: nothing tells.
    """
    if not options.out:
        return "table" if options.format == "auto" else options.format
    form = ENDINGS.get(PurePath(options.out).suffix.lower()) if options.format == "auto" else options.format
    if form == "table":
        raise UsageError("--format table leaves rows out, and is for a terminal: write csv, json or parquet to --out")
    if form is None:
        raise UsageError(
            f"--out {options.out} needs --format csv, json or parquet, or to end with .csv, .json or .parquet"
        )
    return str(form)


def asked(sql: str, names: Sequence[str]) -> list[str]:
    """The tables whose names are in a statement, or all of them: those that are not asked need not be opened."""
    return [name for name in names if name in sql.lower()] or list(names)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
