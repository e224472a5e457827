"""How long a newcomer waits for `hybrid demo`: once, since it takes minutes; with `--full` that of the commit
which goals were set against, too, its own files with this environment's packages."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row

WHAT = "`hybrid demo` from nothing"


def rows(full: bool, scratch: Path) -> list[Row]:
    """A row, and one beside the earlier commit's."""
    ours = seconds(tiny.ROOT, "jobs.command.cli", scratch / "ours")
    made = [Row(WHAT, ours, "s", goal=130)]
    if full:
        with peers.checkout(peers.BASELINE) as tree:
            before = seconds(tree, "jobs.cli", scratch / "before")
        made.append(Row(WHAT, ours, "s", before, f"commit {peers.BASELINE}"))
    return made


def seconds(tree: Path, module: str, folder: Path) -> float:
    """Of the wall clock, until the demo of a checkout has ended well."""
    folder.mkdir()
    began = time.perf_counter()
    argv = [sys.executable, "-m", module, "demo", "--out", str(folder / "demo-out")]
    peers.finish(argv, folder, peers.clean(PYTHONPATH=str(tree)))
    return time.perf_counter() - began
