"""Whether all nodes of a cluster see what lies on this machine's disk: else each would write to a disk of its own."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hybrid_models.errors import UsageError
from pipelines import storage

log = logging.getLogger(__name__)
T = TypeVar("T")
SECONDS = 60.0
"""For so long a node is waited for: one that is busy, or has just gone, says nothing."""


def check(nodes: Collection[str], reads: str, folder: str, probe: str) -> None:
    """Refuses a folder, or something to read, on a disk that not all nodes of the cluster have. Of object stores
    nothing is asked, nor where there is no other node than this one.

    Raises:
        UsageError: names the node and the address.
    """
    others = set(nodes) - {ray.get_runtime_context().get_node_id()}
    local = [uri for uri in (reads, folder) if storage.is_local(uri)]
    if not others or not local:
        return
    file = storage.join(storage.absolute(folder), f".{probe}.{secrets.token_hex(4)}")
    paths = [storage.absolute(reads)] if reads in local and storage.exists(reads) else []  # it may just have gone
    if folder in local:
        storage.write_bytes(file, b"")
        paths.append(file)
    try:
        answers = ask(others, partial(_missing, paths))
    finally:
        if folder in local:
            storage.delete(file, storage.anything)
    for host, missing in answers:
        if not missing:
            continue
        uri = folder if file in missing else reads
        raise UsageError(
            f"node {host} of the cluster does not see {uri}, which is on a disk: "
            "give an address that all nodes reach, such as s3://…"
        )


def ask(nodes: Collection[str], question: Callable[[], T]) -> list[T]:
    """The answers of these nodes to a question, without those of nodes that do not answer.

    Raises:
        UsageError: as the question raised it on a node.
    """
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
    answers = [each.remote(question) for each in asked]
    told, silent = ray.wait(answers, num_returns=len(answers), timeout=SECONDS)
    for answer in silent:
        ray.cancel(answer, force=True)
    found: list[T] = []
    for answer in told:
        try:
            found.append(ray.get(answer))
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), UsageError):
                raise cause from None
            log.warning("a node could not be asked: %s", str(error).splitlines()[0])
    return found


def _answer(question: Callable[[], T]) -> T:
    return question()


def _missing(paths: Collection[str]) -> tuple[str, list[str]]:
    return socket.gethostname(), [path for path in paths if not Path(path).exists()]
