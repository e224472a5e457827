"""How long a newcomer waits for `hybrid demo`: `ROUNDS` times with `--full`, in turn with that of the commit which
goals were set against, its own files with this environment's packages, and medians count; once without."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, in_turn

ROUNDS = 3
WHAT = "`hybrid demo` from nothing"


def seconds(tree: Path, module: str, scratch: Path) -> float:
    """Of the wall clock, until the demo of a checkout has ended well."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        began = time.perf_counter()
        argv = [sys.executable, "-m", module, "demo", "--out", f"{folder}/demo-out"]
        peers.finish(argv, Path(folder), peers.clean(PYTHONPATH=str(tree)))
        return time.perf_counter() - began


def rows(full: bool, scratch: Path) -> list[Row]:
    """A row, and one beside the earlier commit's."""
    with contextlib.ExitStack() as stack:
        measures = {"ours": partial(seconds, tiny.ROOT, "jobs.command.cli", scratch)}
        if full:
            tree = stack.enter_context(peers.checkout(peers.BASELINE))
            measures["before"] = partial(seconds, tree, "jobs.cli", scratch)
        found = in_turn(ROUNDS if full else 1, measures)
    made = [Row(WHAT, found["ours"], "s", goal=130)]
    if full:
        made.append(Row(WHAT, found["ours"], "s", found["before"], f"commit {peers.BASELINE}"))
    return made
