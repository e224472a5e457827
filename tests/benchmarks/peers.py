"""What is measured against: earlier commits of this project, other people's programs in their own environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.cluster.connection import ALLOCATOR
from tests import tiny

FIRST = "febd741"
"""The commit that the goals were set against."""
ENVIRONMENTS = tiny.ROOT / ".venv" / "peers"


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with an earlier commit's files.

    Raises:
        subprocess.CalledProcessError: the history has no such commit (`git fetch --unshallow` brings it).
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / revision
        git("worktree", "add", "--quiet", "--detach", str(path), revision)
        try:
            yield path
        finally:
            git("worktree", "remove", "--force", str(path))


def git(*words: str) -> str:
    """What git says in this project's folder."""
    return subprocess.run(["git", *words], cwd=tiny.ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment with these packages, made once and kept in `.venv/peers/`."""
    folder = ENVIRONMENTS / name
    python, done = folder / "bin" / "python", folder / ".ready"
    if not done.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        env = {**os.environ, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True, env=env)
        done.touch()
    return python


def answer(script: Path, question: Any, python: Path | None = None, tree: Path = tiny.ROOT) -> Any:
    """What a script prints in its last line, JSON, for a question that it reads as JSON.

    Args:
        script: run with `python`, this one by default.
        tree: a checkout of this project, whose packages the script imports.
    """
    env = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [str(python or sys.executable), str(script)], cwd=tree, env=env, input=json.dumps(question),
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def finish(command: list[str], cwd: Path, env: dict[str, str]) -> None:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
