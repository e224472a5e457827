"""How long `make setup` takes in a fresh clone of the last commit, where packages are in their caches; with `--full`,
pip's way, too. Each is the second of two: the first fills a cache. Once: it takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row

LAST_STEP = "import pipelines.reading.sandbox.child, av, h5netcdf, pandas, PIL.Image, torch"
"""As `infra/setup.sh` ends: what is imported is compiled."""


def seconds(folder: Path, *commands: list[str]) -> float:
    """Of commands one after another in a fresh clone."""
    subprocess.run(["git", "clone", "--quiet", str(tiny.ROOT), str(folder)], check=True)
    began = time.perf_counter()
    for words in commands:
        peers.finish(words, folder, peers.clean())
    return time.perf_counter() - began


def rows(full: bool, scratch: Path) -> list[Row]:
    """One row."""
    python = os.path.realpath(sys.executable)
    make = ["make", "setup", f"PYTHON={python}"]
    seconds(scratch / "first", make)
    ours = seconds(scratch / "second", make)
    made = [Row("`make setup`", ours, "s", goal=45)]
    if full:
        pip = [".venv/bin/python", "-m", "pip", "install", "--quiet", "-c", "requirements.lock", "-e", ".[dev,s3]"]
        loaded = [".venv/bin/python", "-c", LAST_STEP]
        for name in ("third", "fourth"):
            reference = seconds(scratch / name, [python, "-m", "venv", ".venv"], pip, loaded)
        made.append(Row("`make setup`", ours, "s", reference, "pip"))
    return made
