"""How long `make setup` takes in a fresh clone of the last commit, where packages are in their caches: `ROUNDS` times
with `--full`, in turn with pip's way, and medians count; once without. What fills the caches goes before them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row, in_turn

ROUNDS = 3
LAST_STEP = "import pipelines.reading.sandbox.child, av, h5netcdf, pandas, PIL.Image, torch"
"""As `infra/setup.sh` ends: what is imported is compiled."""


def seconds(scratch: Path, *commands: list[str]) -> float:
    """Of commands one after another in a fresh clone."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        subprocess.run(["git", "clone", "--quiet", str(tiny.ROOT), folder], check=True)
        began = time.perf_counter()
        for words in commands:
            peers.finish(words, Path(folder), peers.clean())
        return time.perf_counter() - began


def ways(full: bool) -> dict[str, list[list[str]]]:
    """The commands of each."""
    python = os.path.realpath(sys.executable)
    found = {"ours": [["make", "setup", f"PYTHON={python}"]]}
    if full:
        pip = [".venv/bin/python", "-m", "pip", "install", "--quiet", "-c", "requirements.lock", "-e", ".[dev,s3]"]
        found["pip"] = [[python, "-m", "venv", ".venv"], pip, [".venv/bin/python", "-c", LAST_STEP]]
    return found


def rows(full: bool, scratch: Path) -> list[Row]:
    """A row, and one beside pip's."""
    measures = {name: partial(seconds, scratch, *commands) for name, commands in ways(full).items()}
    for fill in measures.values():
        fill()
    found = in_turn(ROUNDS if full else 1, measures)
    made = [Row("`make setup`", found["ours"], "s", goal=45)]
    if full:
        made.append(Row("`make setup`", found["ours"], "s", found["pip"], "pip"))
    return made
