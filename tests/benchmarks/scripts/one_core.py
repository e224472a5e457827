"""A verb on one core: its processes are kept there, and the cluster that it starts shares out one CPU. Asked by
`tests.benchmarks.fitting`."""

from __future__ import annotations

import importlib
import os
import sys

from jobs.command import cli
from pipelines.cluster import connection


def main() -> None:
    """As `hybrid VERB …`."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    verb, *rest = sys.argv[1:]
    with connection.connect(cpus=1):
        cli.run(importlib.import_module(f"jobs.{verb}").main, rest)


if __name__ == "__main__":
    main()
