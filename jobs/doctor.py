"""`hybrid doctor`: what a night needs around it, and whether it is there."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.command.errors import EndedError
from pipelines import storage
from pipelines.cluster import logs
from pipelines.models import server
from pipelines.reading.sandbox import jail as cell
from pipelines.secrets import shown

PACKAGE = "hybrid-pipelines"
SHOWN = ("ray", "torch", "mlflow", "deltalake", "pyarrow", "duckdb")
State = Literal["ok", "note", "warn", "failed"]
GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")
SMALL_MEMORY = 4 * GIB
"""A model process and Ray beside it want this much."""
SMALL_SHARED_MEMORY = GIB
"""Ray keeps blocks there; Docker gives 64 MiB unless it is told otherwise."""


@dataclass(frozen=True)
class DoctorOptions:
    """What `hybrid doctor` needs to know."""

    tables: str = ""
    """URI of a folder of tables, to see whether it can be written."""
    storage: str = ""
    """URI of a folder for runs and features, to see whether it can be written."""
    mlflow: str = ""
    """MLflow tracking URI; MLFLOW_TRACKING_URI by default."""


@dataclass(frozen=True)
class Check:
    """What was looked at.

    Args:
        name: of the thing.
        state: `note` is worth knowing, `warn` is a risk; neither stops a night.
        text: what was found, or what is wrong; without passwords.
    """

    name: str
    state: State
    text: str


def main(argv: Sequence[str]) -> dict[str, Any]:
    """One line for each check on stderr; the summary has them all."""
    options = cli.parse(
        DoctorOptions, argv, "hybrid doctor", "Check what is around a night: packages, the jail, stores, MLflow, Ray."
    )
    found = []
    for check in checks(options):
        print(logs.escaped(f"{check.state:<6}  {check.name}: {check.text}"), file=sys.stderr, flush=True)
        found.append(check)
    failed = [check.name for check in found if check.state == "failed"]
    summary = {"checks": [asdict(check) for check in found], "failed": failed}
    if failed:
        raise EndedError(cli.FAILED, f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}", summary)
    return summary


def checks(options: DoctorOptions) -> Iterator[Check]:
    """All of them, each when it has been made."""
    yield Check("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.release()}")
    yield tried("packages", packages)
    yield tried("jail", jail)
    yield memory("memory", *main_memory(CGROUP), SMALL_MEMORY)
    yield tried("shared memory", shared_memory)
    for name, uri in (("tables", options.tables), ("storage", options.storage)):
        if uri:
            yield tried(name, partial(writable, name, uri))
    yield tried("MLflow", partial(mlflow, options.mlflow))
    yield tried("Ray", ray_cluster)


def tried(name: str, check: Callable[[], Check]) -> Check:
    """The check, or what it failed with: whatever that is, the others are worth knowing."""
    try:
        return check()
    except Exception as error:
        text = str(error) if isinstance(error, UsageError | ConnectionError) else cli.described(cli.root_cause(error))
        return Check(name, "failed", shown((text.strip().splitlines() or [type(error).__name__])[0]))


def packages() -> Check:
    """Whether all that this package needs is installed, in versions that it works with."""
    state: State = "ok"
    own = ""
    try:
        needed = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:  # only its source is here, sent by `hybrid submit`
        needed, state, own = list(map(Requirement, SHOWN)), "note", f"; {PACKAGE} itself is not installed"
    wrong = [text for one in needed if (text := unmet(one))]
    if wrong:
        return Check("packages", "failed", "; ".join(wrong))
    return Check("packages", state, ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN) + own)


def unmet(requirement: Requirement) -> str:
    """Why a requirement is not met; empty if it is, or if it is another installation's."""
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return ""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed: pip install '{requirement}'"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} does not do: pip install '{requirement}'"


def jail() -> Check:
    """What holds the process that decodes strangers' files."""
    mode = cell.wanted_mode()
    why = cell.shortcoming(mode)
    state: State = "ok" if not why else "failed" if mode == "required" else "warn"
    return Check("jail", state, f"{cell.in_force(mode)}{why and f': {why}'}; HYBRID_JAIL={mode}")


def shared_memory() -> Check:
    """Where Ray keeps what processes share."""
    shared = shutil.disk_usage("/dev/shm")
    return memory("shared memory", shared.total, shared.free, SMALL_SHARED_MEMORY)


def main_memory(cgroup: Path) -> tuple[int, int]:
    """Bytes in all, and free: the machine's, or what its container may have of them.

    Args:
        cgroup: the container's own folder of control files (cgroup v2), if it is in one.
    """
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is none, or `max`
        return total, free
    used -= int(stat.get("inactive_file", 0))  # read once, and given back when there is need
    return min(total, limit), max(0, min(free, limit - used))


def memory(name: str, total: int, free: int, small: int) -> Check:
    """Sizes in bytes; a note where there is less than `small` in all."""
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free"
    if total < small:
        return Check(name, "note", f"{text}; less than {small / GIB:.0f} GiB is little")
    return Check(name, "ok", text)


def writable(name: str, uri: str) -> Check:
    """Writes and removes a small object.

    Raises:
        UsageError: it cannot be written.
    """
    storage.check_writable(uri)
    return Check(name, "ok", f"{shown(uri)} can be written")


def mlflow(uri: str) -> Check:
    """Asks MLflow for one experiment.

    Raises:
        UsageError: MLflow refuses.
        ConnectionError: it is not there.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return Check("MLflow", "note", "MLFLOW_TRACKING_URI is not set: jobs write to mlflow.db where they are started")
    try:
        server.check_there(uri)
    except UsageError as error:
        return Check("MLflow", "note", f"{error}: the first training makes it")
    try:
        server.client(uri).search_experiments(max_results=1)
    except server.unreachable() as error:
        raise server.refused("list experiments", uri, error) from None
    return Check("MLflow", "ok", f"{shown(uri)} answers")


def ray_cluster() -> Check:
    """Connects to the cluster that RAY_ADDRESS names, as a job does; starts none."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return Check("Ray", "note", "RAY_ADDRESS is not set: jobs start Ray where they are started")
    import ray

    from pipelines.cluster import connection

    connection.knock(address, patience=0)
    with connection.connect():
        nodes = sum(node["Alive"] for node in ray.nodes())
        has = ray.cluster_resources()
    return Check("Ray", "ok", f"{address}: nodes {nodes}, CPUs {has.get('CPU', 0):.0f}, GPUs {has.get('GPU', 0):.0f}")


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
