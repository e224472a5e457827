"""`hybrid tables`: the nights that the tables hold; `tidy` frees the space of what nobody needs, `restore` brings an
earlier state back, `compact` puts the rows of a night into fewer files, `export` copies current files elsewhere.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.command.options import FLAT, check_ds
from pipelines import places, storage
from pipelines.nights.rules import Retention

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

    from pipelines.nights.compaction import Compacted
    from pipelines.nights.tables import AsOf
    from pipelines.nights.upkeep import Tidied

log = logging.getLogger(__name__)


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
    retention: Annotated[Retention, FLAT] = field(default_factory=Retention)
    compact: bool = False
    """Put the rows of nights into fewer files first, as `hybrid tables compact` does, of all tables."""
    dry_run: bool = False
    """Write and remove nothing; the files that would be removed are written to stdout, one a line."""


@dataclass(frozen=True)
class RestoreOptions:
    """What `hybrid tables restore` needs to know."""

    tables: str
    """URI of the folder of tables."""
    as_of: str
    """When the table was as it shall be again: a moment such as 2026-01-31T06:00 (UTC), or a version."""
    ds: str = ""
    """The night to bring back, YYYY-MM-DD; without one the whole table."""


@dataclass(frozen=True)
class CompactOptions:
    """What `hybrid tables compact` needs to know."""

    tables: str
    """URI of the folder of tables."""
    ds: str = ""
    """The night, YYYY-MM-DD; without one all of them. One is rewritten if it gets half as many files, or fewer, or if
    32 small ones are put together."""
    dry_run: bool = False
    """Write nothing: say which nights would have how many files."""


@dataclass(frozen=True)
class ExportOptions:
    """What `hybrid tables export` needs to know."""

    tables: str
    """URI of the folder of tables."""
    out: str
    """URI of the folder to copy to, as OUT/TABLE/ds=DATE/NAME.parquet; files of others there are never replaced."""
    table: str = ""
    """Name of the table; all tables by default."""
    ds: str = ""
    """The night, YYYY-MM-DD; all nights by default."""


def main(argv: Sequence[str]) -> dict[str, Any] | None:
    """The nights on stdout and nothing else; or a summary of what was removed, brought back or rewritten."""
    if argv and not argv[0].startswith("-"):
        verb, rest = cli.positional(argv, "verb", list(VERBS), "hybrid tables")
        return VERBS[verb](rest)
    options = cli.parse(
        TablesOptions, argv, "hybrid tables",
        "List the nights of the tables; `hybrid tables tidy` frees space, `hybrid tables restore` brings a state back, "
        "`hybrid tables compact` puts nights into fewer files, `hybrid tables export` copies them for other readers.",
    )  # fmt: skip
    from jobs.command.writers import WRITERS, show
    from pipelines.nights.tables import parse_as_of

    as_of = parse_as_of(options.as_of) if options.as_of else None
    found, others, damaged = existing(options.tables, as_of)
    rows = [row for name, table in found.items() for row in nights(name, table)]
    rows += [{"table": name, "note": str(error)} for name, error in (others | damaged).items()]
    show(WRITERS[options.format](listed(rows)))
    return None


def listed(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Nights, and tables of which none are told, with the columns that are shown."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("table", pa.string()),
            ("version", pa.int64()),
            ("ds", pa.string()),
            ("rows", pa.int64()),
            ("bad", pa.int64()),  # of them, where the log tells
            ("files", pa.int64()),
            ("bytes", pa.int64()),
            ("written", pa.timestamp("s")),
            ("note", pa.string()),  # why a table's nights are not told
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


Problems = dict[str, UsageError | storage.StorageError]
"""By a table's name."""


def existing(uri: str, as_of: AsOf | None = None) -> tuple[dict[str, DeltaTable], Problems, Problems]:
    """The tables at a URI by name; why others there are none of ours; and why others cannot be read.

    Raises:
        UsageError: there are none.
        StorageError: the store kept failing.
    """
    from pipelines.nights import ownership, tables

    found: dict[str, DeltaTable] = {}
    others: Problems = {}
    damaged: Problems = {}
    for name in ownership.names(uri):
        place = storage.join(uri, name)
        try:
            table = tables.open_table(place, as_of)
        except (UsageError, storage.StorageError) as error:
            damaged[name] = error
            continue
        try:
            if table is None:
                ownership.check_folder(place)
            else:
                ownership.check_ours(table, place)
                found[name] = table
        except (UsageError, storage.StorageError) as error:
            others[name] = error
    if not found and (problems := damaged | others):
        raise next(iter(problems.values()))
    if not found:
        raise UsageError(f"no tables at {uri}: `hybrid infer` writes {', '.join(TABLES.values())}")
    return found, others, damaged


def nights(name: str, table: DeltaTable) -> Iterator[dict[str, Any]]:
    """The nights of a table as rows of what `hybrid tables` shows."""
    from pipelines.nights import tables

    for night in tables.nights(table):
        written = night.written.replace(tzinfo=None, microsecond=0)
        yield {"table": name, "version": table.version(), **vars(night), "written": written}


def tidy(argv: Sequence[str]) -> dict[str, Any]:
    """Removes what no version of the last hours needs, of nights in fewer files if that is asked for; returns files and
    bytes by table, and what was left alone.

    Raises:
        EndedError: some could not be tidied, which hinders no other.
    """
    options = cli.parse(TidyOptions, argv, "hybrid tables tidy", "Remove files that no version needs any more.")
    options.retention.check()
    from pipelines.nights import compaction, upkeep

    found, others, damaged = existing(options.tables)
    for name, note in others.items():
        log.warning("%s is left alone: %s", name, note)
    compacted, tidied = {}, {}
    failed: dict[str, Exception] = {**damaged}
    for name in found:
        uri = storage.join(options.tables, name)
        try:
            if options.compact:
                compacted[name] = _gained(compaction.compact(uri, dry_run=options.dry_run))
            tidied[name] = upkeep.tidy(uri, options.retention.retain_hours, options.dry_run)
        except Exception as error:  # whatever it is, other tables are still to be tidied
            failed[name] = error
    outcomes = {name: cli.outcome(error) for name, error in failed.items()}
    for name, (_, problem) in outcomes.items():
        log.error("%s is not tidied: %s", name, problem, exc_info=cli.traced(failed[name]))
    if options.dry_run:
        for table in tidied.values():
            for file in table.removed:
                print(file.uri)
    counts = {name: _counts(table) for name, table in tidied.items()}
    summary = {
        "tables": options.tables,
        "dry_run": options.dry_run,
        "compacted": compacted,
        "removed": counts,
        "skipped": {name: str(error) for name, error in others.items()}
        | {name: problem for name, (_, problem) in outcomes.items()},
    }
    if outcomes:
        code, problem = min(outcomes.values(), key=lambda each: cli.CODES.index(each[0]))
        raise EndedError(code, f"{len(tidied)} of {len(tidied) + len(failed)} tables are tidied; {problem}", summary)
    return summary


def _gained(done: Compacted) -> dict[str, int]:
    return {
        "nights": len(done.nights),
        "files": sum(night.files for night in done.nights),
        "files_after": sum(night.files_after for night in done.nights),
        "nights_skipped": len(done.skipped),
    }


def _counts(tidied: Tidied) -> dict[str, int]:
    return {"files": len(tidied.removed), "bytes": tidied.bytes, "files_unknown": len(tidied.unknown)}


def named(argv: Sequence[str], verb: str) -> tuple[str, list[str]]:
    """The table that comes first, one of those that hybrids write by default or of those at `--tables`, and the rest.

    Raises:
        UsageError: it is missing or unknown; lists the tables.
    """
    known = list(TABLES.values())
    if uri := cli.peek(argv, "--tables"):
        from pipelines.nights import ownership

        known = ownership.names(uri)
    elif argv and not argv[0].startswith("-") and argv[0] not in known:
        raise UsageError(f"unknown table '{argv[0]}': use {', '.join(known)}, or tell by `tables` where it is")
    return cli.positional(argv, "table", known, f"hybrid tables {verb}")


def restore(argv: Sequence[str]) -> dict[str, Any]:
    """Brings a table or a night of it back as it was; returns the new version."""
    name, rest = named(argv, "restore")
    options = cli.parse(
        RestoreOptions,
        rest,
        f"hybrid tables restore {name}",
        f"Bring back what `{name}` was, in one commit.",
    )
    from pipelines.nights import commit
    from pipelines.nights.tables import parse_as_of

    version = commit.restore(storage.join(options.tables, name), parse_as_of(options.as_of), options.ds)
    return {"table": name, "ds": options.ds or None, "changed": version is not None, "version": version}


def compact(argv: Sequence[str]) -> dict[str, Any]:
    """Puts the rows of nights into fewer files; returns the nights that gain, and those that cannot be rewritten."""
    name, rest = named(argv, "compact")
    options = cli.parse(
        CompactOptions,
        rest,
        f"hybrid tables compact {name}",
        f"Put the rows of nights of `{name}` into fewer files, which the same nights, inferred again, use.",
    )
    if options.ds:
        check_ds(options.ds)
    from pipelines.nights import compaction

    done = compaction.compact(storage.join(options.tables, name), options.ds, options.dry_run)
    return {"table": name, "tables": options.tables, "dry_run": options.dry_run, **asdict(done)}


def export(argv: Sequence[str]) -> dict[str, Any]:
    """Copies the current files of tables to a plain folder; returns the number of files by table."""
    options = cli.parse(
        ExportOptions, argv, "hybrid tables export", "Copy current files to a folder, for readers without Delta Lake."
    )
    if options.ds:
        check_ds(options.ds)
    from pipelines.nights import tables

    found, others, damaged = existing(options.tables)
    names = [options.table] if options.table else [*found, *damaged]
    for name in names:
        if name not in found:
            unknown = UsageError(f"unknown table '{name}': use {', '.join(found)}")
            raise (others | damaged).get(name, unknown)
        places.check_outside("out", storage.join(options.out, name), [storage.join(options.tables, name)], "the table")
    storage.check_writable(options.out)
    out, files = storage.absolute(options.out), dict[str, int]()
    for name in names:
        uri = storage.join(storage.absolute(options.tables), name)
        files[name] = len(tables.export(found[name], uri, options.ds, storage.join(out, name)))
    if not any(files.values()):
        raise UsageError(f"no rows of {options.ds}: `hybrid tables --tables {options.tables}` lists nights")
    return {"tables": options.tables, "ds": options.ds or None, "out": out, "files": files}


VERBS: Mapping[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "tidy": tidy,
    "restore": restore,
    "compact": compact,
    "export": export,
}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
