"""`hybrid models`: the registered models, and which one the nights use."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.command import cli
from jobs.command.options import Mlflow, MlflowOptions
from pipelines.cluster import logs
from pipelines.models import registry, server
from pipelines.models.registry import Version

COLUMNS = ("model", "kind", "aliases", "created", "recipe", "data", "metrics", "promotion")


@dataclass(frozen=True)
class ModelsOptions:
    """What `hybrid models` needs to know."""

    format: Literal["text", "csv", "json"] = "text"
    """How they are written; json is one object a line."""
    tracking: Mlflow = field(default_factory=MlflowOptions)


def main(argv: Sequence[str]) -> None:
    """The versions on stdout, and nothing else."""
    options = cli.parse(ModelsOptions, argv, "hybrid models", "List the registered models.")
    uri = options.tracking.uri
    server.check_there(uri)
    kinds = registry.kinds(uri)
    rows = [row(version, kinds[version.name]) for version in registry.versions(uri, list(kinds))]
    if options.format == "text":
        print(logs.escaped("\n".join(map(text, rows))) or "no models: `hybrid train` registers them")
        return
    import pyarrow as pa  # lists for people do without it

    from jobs.command.writers import WRITERS, show

    table = pa.Table.from_pylist(rows, schema=pa.schema([pa.field(name, pa.string()) for name in COLUMNS]))
    show(WRITERS[options.format](table))


def text(row: Mapping[str, Any]) -> str:
    """A version for a terminal: some short lines, since a table of them would be cut off."""
    lines = [
        " ".join(filter(None, (row["model"], row["kind"], row["created"], row["aliases"]))),
        f"{row['recipe']} on {row['data']}",
        row["metrics"],
        row["promotion"],
    ]
    return "\n    ".join(filter(None, lines))


def row(version: Version, kind: str) -> dict[str, Any]:
    """A version as texts; metrics are those of its best epoch on validation data."""
    training = version.training
    found = training.get("metrics")
    numbers = {name: value for name, value in found.items() if _is_number(value)} if isinstance(found, dict) else {}
    metrics = {name.removeprefix("val_"): value for name, value in numbers.items()}
    return {
        "model": f"models:/{version.name}/{version.version}",
        "kind": kind,
        "aliases": " ".join(version.aliases),
        "created": version.created,
        "recipe": training.get("recipe"),
        "data": training.get("data"),
        "metrics": " ".join(f"{name}={value:.4g}" for name, value in metrics.items()),
        "promotion": _promotion(version.promotion),
    }


def _promotion(decision: Mapping[str, Any]) -> str | None:
    if not decision:
        return None
    forced, promoted = decision.get("forced"), decision.get("promoted")
    said = f"forced: {forced}" if forced else "promoted" if promoted else "refused"
    values = [decision.get(name) for name in ("candidate_value", "rival_value")]
    if "rival" not in decision or not all(map(_is_number, values)):
        return said
    value, rival = (f"{found:.4g}" for found in values)
    return f"{said}; {decision.get('metric')} {value}, {rival} of {decision['rival']}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
