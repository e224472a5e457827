"""`hybrid tidy`: free what is kept for reuse and needed by no run, model or night any more."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.command import cli
from jobs.command.options import Mlflow, MlflowOptions
from pipelines import storage
from pipelines.models import registry, server
from pipelines.secrets import shown

REGISTERED = re.compile(r"models:/(?P<name>[^/]+)/\d+")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TidyOptions:
    """What `hybrid tidy` needs to know. Tables have their own: `hybrid tables tidy`."""

    storage: str
    """URI below which runs, features and evaluations are kept; a folder of tables has evaluations, too."""
    dry_run: bool = False
    """Remove nothing; the files that would be removed are written to stdout, one a line."""
    tracking: Mlflow = field(default_factory=MlflowOptions)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Removes what nobody needs; returns files and bytes by kind, and who needs the rest."""
    options = cli.parse(
        TidyOptions, argv, "hybrid tidy", "Free features, records and checkpoints that no run or model needs any more."
    )
    from pipelines.training import leftovers  # with what reads shards; a help text does not wait for it

    needs = needed_by(options.tracking.uri)
    found = leftovers.find(options.storage, needs)
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for folder in found:
        if folder.needed_by:
            log.info("%s is needed by %s", folder.uri, folder.needed_by)
            continue
        gone = folder.files if options.dry_run else leftovers.remove(folder, needs)
        if options.dry_run:
            print("".join(f"{file.uri}\n" for file in gone), end="")
        files[folder.kind] += len(gone)
        sizes[folder.kind] += sum(file.size for file in gone)
    return {
        "storage": storage.absolute(options.storage),
        "dry_run": options.dry_run,
        "removed": {kind: {"files": files[kind], "bytes": sizes[kind]} for kind in leftovers.KINDS},
        "needed": {folder.uri: folder.needed_by for folder in found if folder.needed_by},
        "mlflow": shown(options.tracking.uri),
    }


def needed_by(tracking_uri: str) -> Callable[[str], str]:
    """Who needs what a model has marked: itself, while it bears an alias, or somebody who knows a model of that name.

    Raises:
        UsageError: there is no such MLflow.
        ConnectionError: it cannot be reached.
    """
    server.check_there(tracking_uri)
    names = registry.kinds(tracking_uri)
    in_use = {
        f"models:/{version.name}/{version.version}"
        for version in registry.versions(tracking_uri, list(names))
        if version.aliases
    }

    def needs(model: str) -> str:
        registered = REGISTERED.fullmatch(model)
        if registered and registered["name"] not in names:
            return f"{model}, which this MLflow does not know"
        return model if model in in_use else ""

    return needs


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
