"""What is measured against: an earlier commit of this project, other people's programs in their own environments."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.cluster.connection import worker_env
from pipelines.models import artifacts
from tests import tiny

BASELINE = "febd741"
"""The commit that the goals were set against."""
ENVIRONMENTS = tiny.ROOT / ".venv" / "peers"
REQUIREMENTS = {
    # The last two are what JoeyNMT needs and does not ask for, or no longer works with.
    "joeynmt": ("joeynmt==2.3.0", f"torch=={version('torch').split('+')[0]}", "importlib_metadata", "numpy<2"),
    "pysteps": ("pysteps==1.21.5", "opencv-python-headless", "numpy<2.3"),
    "webdataset": ("webdataset==1.0.2", "braceexpand==0.1.7"),
    "daft": ("daft==0.7.26",),
}
WITH_OURS = {"webdataset", "daft"}
"""Peers that run our model: their environments see the packages of this one, which has all else that they need, in the
versions that ours runs with."""
LATER_FIELDS = {"attention", "cell", "temporal", "sampling", "fps"}
"""Of configurations: what the baseline does not know, and does as today's defaults do."""
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""
OURS_TO_CHOOSE = (
    "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL",
)  # fmt: skip
"""Variables that would send a benchmark's jobs, models or packages elsewhere."""


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with an earlier commit's files.

    Raises:
        RuntimeError: the history has no such commit (`git fetch --unshallow` brings it).
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["git", "archive", revision], cwd=tiny.ROOT, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"commit {revision} is not here: git fetch --unshallow: {done.stderr.decode()}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


def git(*words: str) -> str:
    """What git says in this project's folder."""
    return subprocess.run(["git", *words], cwd=tiny.ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def is_ready(name: str) -> bool:
    """Whether the virtual environment of a peer is there, with what is asked for now."""
    done = ENVIRONMENTS / name / ".ready"
    return done.exists() and done.read_text() == "\n".join(REQUIREMENTS[name])


def environment(name: str) -> Path:
    """The Python of a virtual environment with a peer's packages, kept in `.venv/peers/` while the same are asked for.

    Raises:
        RuntimeError: they cannot be installed.
    """
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not is_ready(name):
        uv = str(Path(sys.executable).with_name("uv"))
        env = {**clean(), "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        finish([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], tiny.ROOT, env)
        alone = ["--no-deps"] if name in WITH_OURS else []
        finish([uv, "pip", "install", "--quiet", "--python", str(python), *alone, *REQUIREMENTS[name]], tiny.ROOT, env)
        if name in WITH_OURS:
            (packages,) = folder.glob("lib/python*/site-packages")
            (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / ".ready").write_text("\n".join(REQUIREMENTS[name]))
    return python


def versions(name: str) -> dict[str, str]:
    """Of the packages that a peer's environment was made for, as they are there."""
    asked = [re.split("[<=>]", requirement)[0] for requirement in REQUIREMENTS[name]]
    return dict(json.loads(finish([str(environment(name)), "-c", VERSIONS, *asked], tiny.ROOT, clean())))


def for_both(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """An artifact's files as the baseline can read them, too."""
    meta = json.loads(files[artifacts.CONFIG])
    meta["config"] = {name: value for name, value in meta["config"].items() if name not in LATER_FIELDS}
    return {**files, artifacts.CONFIG: json.dumps(meta).encode()}


def clean(**env: str) -> dict[str, str]:
    """This process's environment without `OURS_TO_CHOOSE`, and with these."""
    return {key: value for key, value in os.environ.items() if key not in OURS_TO_CHOOSE} | env


def answer(script: Path, question: Any, peer: str | None = None) -> Any:
    """What a script prints in its last line, JSON, for a question that it reads as JSON: in the environment of a peer,
    or in this one; with a worker's settings, and with this checkout where its packages are there.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    python = str(environment(peer)) if peer else sys.executable
    ours = {"PYTHONPATH": str(tiny.ROOT)} if peer is None or peer in WITH_OURS else {}
    env = clean(**worker_env(), **ours)
    return json.loads(finish([python, str(script)], tiny.ROOT, env, json.dumps(question)).strip().splitlines()[-1])


def finish(command: list[str], cwd: Path, env: dict[str, str], said: str = "") -> str:
    """Runs a command, to which `said` is said, to its end; returns what it prints.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(command, cwd=cwd, env=env, input=said, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
