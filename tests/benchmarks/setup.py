"""How long `make setup` takes in a fresh clone where packages are in their caches; with `--full`, pip's way, too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row


def seconds(folder: Path, *commands: list[str]) -> float:
    """Of commands one after another in a fresh clone."""
    subprocess.run(["git", "clone", "--quiet", str(tiny.ROOT), str(folder)], check=True)
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")}
    began = time.perf_counter()
    for words in commands:
        peers.finish(words, folder, env)
    return time.perf_counter() - began


def rows(full: bool, scratch: Path) -> list[Row]:
    """One row, of the second of two set-ups: the first fills the cache."""
    python = os.path.realpath(sys.executable)
    make = ["make", "setup", f"PYTHON={python}"]
    seconds(scratch / "first", make)
    ours = seconds(scratch / "second", make)
    made = [Row("`make setup`", ours, "s", goal=45)]
    if full:
        pip = [".venv/bin/python", "-m", "pip", "install", "--quiet", "-c", "requirements.lock", "-e", ".[dev,s3]"]
        reference = seconds(scratch / "third", [python, "-m", "venv", ".venv"], pip)
        made.append(Row("`make setup`", ours, "s", reference, "pip"))
    return made
