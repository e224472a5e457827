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

log = logging.getLogger(__name__)
EXAMPLES = 6


@dataclass(frozen=True)
class ReportOptions:
    """What `hybrid report` needs to know."""

    ds: str
    """The night, YYYY-MM-DD."""
    tables: str
    """URI of the folder of tables."""
    out: str = ""
    """URI of the page; TABLES/reports/DS.html by default."""
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
    return write(options.tables, options.ds, options.out, options.tracking.uri, options.examples)


def write(tables_uri: str, ds: str, out: str, tracking_uri: str, examples: int = EXAMPLES) -> dict[str, Any]:
    """Writes the page of a night; returns where it is and what it says."""
    from pipelines.nights import ownership, report  # drawing takes half a second to import

    page, sections = report.report(tables_uri, ownership.names(tables_uri), ds, tracking_uri, examples)
    place = out or storage.join(tables_uri, "reports", f"{ds}.html")
    storage.write_bytes(place, page.encode())
    log.info("the page about %s: %s", ds, place)
    told = {section.table: {"rows": section.rows, "errors": section.errors} for section in sections}
    return {"ds": ds, "out": place, "tables": told}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
