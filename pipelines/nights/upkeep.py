"""Upkeep of tables: files of our own making that no version needs any more are removed by name, and nothing else is."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

from pipelines import storage
from pipelines.nights import ownership, tables
from pipelines.staging.pieces import is_own
from pipelines.storage import StoredFile

log = logging.getLogger(__name__)
REMEMBERED_HOURS = 168
"""For so long delta-rs's checkpoints know of a file that it was removed; the log's own entries know it for longer."""


@dataclass(frozen=True)
class Tidied:
    """What tidying found in a table's folder."""

    removed: Sequence[StoredFile]
    """Files that no version needs, removed now, or to be removed."""
    unknown: Sequence[StoredFile]
    """Files that this program did not write and the table does not have: left."""

    @property
    def bytes(self) -> int:
        """Size of what is removed."""
        return sum(file.size for file in self.removed)


def tidy(uri: str, retain_hours: int, dry_run: bool = False) -> Tidied:
    """Removes pieces, by name, that no version within the last `retain_hours` needs.

    Younger ones are left, another job may be staging them; so is whatever else lies in the folder.

    Args:
        uri: the table.
        retain_hours: how long an earlier version can be read, and a piece wait for its commit.
        dry_run: remove nothing.

    Raises:
        UsageError: it is not one of our tables.
        StorageError: the store kept failing.
        DeltaError: it cannot be done now.
    """
    root = storage.absolute(uri) + "/"
    stored = {file.uri.removeprefix(root): file for file in storage.list_all(uri)}
    table = tables.open_table(uri)  # only now: what was committed before the listing is known to be in use
    if table is None:
        return Tidied([], [])
    ownership.check_ours(table, uri)
    before = datetime.now(UTC) - timedelta(hours=retain_hours)
    old = {path for path, file in stored.items() if is_own(path) and file.modified < before}
    removable = old & _idle(uri, retain_hours) if old else old
    if removable and retain_hours > REMEMBERED_HOURS:
        removable -= _removed_since(uri, table.version(), before)
    removed = [stored[path] for path in sorted(removable)]
    if not dry_run:
        for file in removed:
            storage.delete(file.uri)
    in_use = tables.night_files(table)
    unknown = [file for path, file in stored.items() if not (is_own(path) or path in in_use or ownership.is_log(path))]
    if unknown:
        log.warning("%s: %d files are none of this program's and left, such as %s", uri, len(unknown), unknown[0].uri)
    return Tidied(removed, unknown)


def _idle(uri: str, retain_hours: int) -> set[str]:
    """Paths of which the log says that no version needs them; nothing is removed."""

    def ask() -> set[str]:
        table = tables.open_table(uri)
        assert table is not None
        return set(table.vacuum(retain_hours, dry_run=True, enforce_retention_duration=False, full=True))

    return tables.patiently("tidy", uri, ask)


def _removed_since(uri: str, version: int, moment: datetime) -> set[str]:
    """Paths that commits after a moment took out of the table: versions before them need them."""
    removed: set[str] = set()
    for number in range(version, -1, -1):
        try:
            entries = [json.loads(line) for line in storage.read_text(tables.commit_uri(uri, number)).splitlines()]
        except FileNotFoundError:  # the log forgot it: no version before it can be read
            break
        written = next(entry["commitInfo"]["timestamp"] for entry in entries if "commitInfo" in entry)
        if written < moment.timestamp() * 1000:
            break
        removed |= {unquote(entry["remove"]["path"]) for entry in entries if "remove" in entry}
    return removed
