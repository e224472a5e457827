"""`hybrid report`: one page about a night, for the morning."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.command.options import Mlflow, MlflowOptions, check_ds
from pipelines import places, storage
from pipelines.reading.sandbox import jail
from pipelines.storage import seal

log = logging.getLogger(__name__)
EXAMPLES = 6
WAY_OUT = "move it, give another --out, or replace it by `hybrid report --overwrite`"


@dataclass(frozen=True)
class ReportOptions:
    """What `hybrid report` needs to know."""

    ds: str
    """The night, YYYY-MM-DD."""
    tables: str
    """URI of the folder of tables."""
    out: str = ""
    """URI of the page; TABLES/reports/DS.html by default."""
    overwrite: bool = False
    """Replace the file at --out, whatever it is; without it only a page that this program wrote is replaced."""
    examples: int = EXAMPLES
    """Rows of each table to look at, at most."""
    tracking: Mlflow = field(default_factory=MlflowOptions)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, writes the page."""
    options = cli.parse(ReportOptions, argv, "hybrid report", "Write a page about a night: one HTML file.")
    check_ds(options.ds)
    jail.ensure()
    if options.out:
        from pipelines.nights import ownership  # a help text does not wait for it

        written = [storage.join(options.tables, name) for name in ownership.names(options.tables)]
        places.check_outside("out", options.out, written, "the table")
    if options.examples < 0:
        raise UsageError(f"--examples is {options.examples}: it must be 0 or more")
    place = storage.beside(options.out) if options.out else page_of(options.tables, options.ds)
    return write(options.tables, options.ds, place, options.tracking.uri, options.examples, options.overwrite)


def page_of(tables_uri: str, ds: str) -> str:
    """Address of the page about a date beside its tables."""
    return storage.join(storage.absolute(tables_uri), "reports", f"{ds}.html")


def write(
    tables_uri: str, ds: str, place: str, tracking_uri: str, examples: int = EXAMPLES, overwrite: bool = False
) -> dict[str, Any]:
    """Writes the page of a night; returns where it is and what it says.

    Raises:
        UsageError: a file is at `place` that is no unchanged page of this program, and `overwrite` is not set.
    """
    is_own = storage.anything if overwrite else seal.is_sealed
    storage.check_replaceable(place, is_own, WAY_OUT)
    from pipelines.nights import ownership, report  # drawing takes half a second to import

    page, sections = report.report(tables_uri, ownership.names(tables_uri), ds, tracking_uri, examples)
    storage.write_bytes(place, seal.sealed(page.encode()), is_own, WAY_OUT)
    log.info("the page about %s: %s", ds, place)
    told = {section.table: {"rows": section.rows, "errors": section.errors} for section in sections}
    return {"ds": ds, "out": place, "tables": told}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
