"""How long a newcomer waits for `hybrid demo`: once, since it takes minutes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.figures import Row


def rows(full: bool, scratch: Path) -> list[Row]:
    """One row."""
    script = str(Path(sys.executable).with_name("hybrid"))
    began = time.perf_counter()
    peers.finish([script, "demo", "--out", str(scratch / "demo-out")], scratch, peers.clean())
    return [Row("`hybrid demo` from nothing", time.perf_counter() - began, "s", goal=130)]
