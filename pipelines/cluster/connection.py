"""The Ray cluster: connecting, and how much of it a job takes."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from hybrid_models.errors import UsageError
from pipelines.cluster import logs

# glibc gives memory back to the system after every batch and faults it in again; kept, CPU inference is up to 3.5 times
# as fast (measured with EfficientNet-Lite0). Actors compute in a thread, whose own arena would ignore these settings
# above 64 MiB: one arena for all threads saves 15 % more. All are read when a process starts, from its environment.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
# Threads that wait by spinning starve the ones they wait for when cores are shared: two trainings on the same two cores
# run at a tenth of their speed. Threads that never spin train a third slower alone. So they spin for microseconds; for
# a third of that two trainings disturb each other less, but Ray gives cores to one of them, which is slower then.
SHARED_CORES = {"GOMP_SPINCOUNT": "3000"}
# What a cluster started here needs before it starts. Ray's own default stops a worker that idles for a second and
# starts a new one, at 0.7 s of CPU, for the next task; and nobody takes this machine away with notice, which a process
# of its own, at 1.2 s of CPU, would watch for. That more processes run than there are CPUs, since most of them wait, is
# meant; Ray tells of it on stdout, to each job.
LOCAL_CLUSTER = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
}
# Print the stack trace of an error that they raise, too; the error ends the job, whose last line says the cause.
TRACES = dict.fromkeys(
    ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state"), logging.CRITICAL
)
# Notes for whoever sets a cluster up or writes a pipeline, once a start: of its token, of bars that are off.
NOTES = dict.fromkeys(
    ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress"), logging.ERROR
)
PASSED_ON = (logs.FORMAT,)
"""Settings of this program that workers have from whoever started the job."""
STARTED_HERE = "HYBRID_CLUSTER"
"""Address of a cluster that `start` has made, whose workers have their environment from it."""
KNOCK_SECONDS, PATIENCE_SECONDS = 5.0, 30.0
WAITING_BYTES = 256 << 20  # a share of what may wait between two stages


_LEFT_TO_OTHERS: ContextVar[bool] = ContextVar("left_to_others", default=False)
_MADE: ContextVar[str] = ContextVar("made", default="")
"""Address of the cluster that this process has started."""


@contextmanager
def connect(quiet: bool = False, cpus: int | None = None) -> Iterator[None]:
    """A connection until the end of the block, as `start` makes it; one that is there is left alone."""
    with on_demand():
        start(quiet, cpus)
        yield


@contextmanager
def on_demand() -> Iterator[None]:
    """A connection that is made inside by `start`, if there is work for a cluster, ends with the outermost block."""
    if connected() or _LEFT_TO_OTHERS.get():
        yield
        return
    token = _LEFT_TO_OTHERS.set(True)
    try:
        yield
    finally:
        _LEFT_TO_OTHERS.reset(token)
        if connected():
            import ray

            ray.shutdown()


def for_others() -> dict[str, str]:
    """The environment by which another process connects to the cluster of this one: its address, a token, and whether
    its workers have their environment from it."""
    import ray

    own = {name: value for name, value in os.environ.items() if name.startswith("RAY_") and value}
    address = str(ray.get_runtime_context().gcs_address)
    made = {STARTED_HERE: address} if address in (_MADE.get(), os.environ.get(STARTED_HERE)) else {}
    return {"RAY_ADDRESS": address, **made, **own}


def side_by_side(jobs: int) -> int:
    """Of some jobs of one CPU, or of one GPU where there are any, how many the cluster has room for; at least one."""
    import ray

    there = ray.cluster_resources()
    return max(1, min(jobs, int(there.get("GPU", 0)) or int(there.get("CPU", 1))))


def connected() -> bool:
    """Whether this process is one of a cluster. Ray takes a second to load, which who has nothing for it need not wait
    for."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def start(quiet: bool = False, cpus: int | None = None) -> None:
    """Connects to the cluster that RAY_ADDRESS names, or starts one on this machine; leaves a running one alone.

    Args:
        quiet: what Ray's core writes to stderr is not for these eyes: lines of its start, and what it says of each
            actor, that its arguments lie in the object store (Ray Data puts them there itself, on the driver's node);
            nor what Ray Data says of jobs that wait for each other.
        cpus: of a cluster that is started here, to share out among its jobs; by default as many as there are.

    Raises:
        UsageError, ConnectionError: as `knock`.
    """
    if connected():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        knock(address, PATIENCE_SECONDS)
    for name, value in LOCAL_CLUSTER.items():
        os.environ.setdefault(name, value)
    import ray  # only now: some of these it reads as it is loaded

    for name, level in NOTES.items():
        logging.getLogger(name).setLevel(level)
    options: dict[str, Any] = {
        "address": address or "local",
        "configure_logging": True,
        "logging_level": logging.WARNING,
        "log_to_driver": os.environ.get("HYBRID_WORKER_LOGS") == "1",
    }
    given: dict[str, str] = {}
    if not address:
        options |= {"num_cpus": cpus, "include_dashboard": False}
        given = worker_env()  # all of Ray has it: with a runtime_env, workers would be others than those that wait
    elif address != os.environ.get(STARTED_HERE):
        options["runtime_env"] = {"env_vars": _without_the_jobs(worker_env())}
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # Ray's takes so long that its core aborts the process
        ray._private.utils.set_sigterm_handler = lambda handler: None
    with _core_output(is_dropped=quiet), _environment(given), own_signals():
        context: Any = ray.init(**options)
    if not address:
        _MADE.set(str(context.address_info["gcs_address"]))
    configure_data()
    if quiet:
        logging.getLogger("ray.data").setLevel(logging.ERROR)


def is_started_here() -> bool:
    """Whether the cluster was started on this machine for its own jobs: no node joins it."""
    return STARTED_HERE in for_others()


def check_grows(why: str) -> None:
    """Refuses to wait for nodes on a cluster that was started on this machine, which none join.

    Args:
        why: what asks for them, as the message begins.

    Raises:
        UsageError: it was.
    """
    if is_started_here():
        raise UsageError(f"{why}, but this machine has no GPU: leave it out, or name a cluster by RAY_ADDRESS")


def knock(address: str, patience: float) -> None:
    """Ray itself tries for minutes to reach an address where nobody is, at each start anew.

    Args:
        address: as RAY_ADDRESS has it.
        patience: seconds within which a head that starts again may come back.

    Raises:
        UsageError: it is no address.
        ConnectionError: nobody takes connections there.
    """
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = place.hostname, place.port
    except ValueError as error:
        raise UsageError(f"RAY_ADDRESS={address} is no address, such as head:6379: {error}") from None
    until = time.monotonic() + patience
    while host and port:
        try:
            socket.create_connection((host, port), KNOCK_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise ConnectionError(f"nobody answers at RAY_ADDRESS={address}: {error}") from None
        time.sleep(1)


@contextmanager
def _core_output(is_dropped: bool) -> Iterator[None]:
    """Holds back what is written to stderr, and writes it afterwards. It is dropped where no option hides one line of
    Ray's core (which says, too, that it shall be silent), and where a signal ends the process: the core then prints a
    stack trace. Errors are raised anyway."""
    if is_dropped:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            is_dropped = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            if not is_dropped:
                held.seek(0)
                os.write(2, held.read())


@contextmanager
def own_signals() -> Iterator[None]:
    """Restores this program's handlers of SIGINT and SIGTERM, if it has any, for which Ray sets its own. Its core's
    prints a stack trace and has the process aborted three seconds later; Ray Train's ends it as if all were well."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started inside, by any thread, have besides this one's."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def worker_env() -> dict[str, str]:
    """Environment of all workers."""
    own = {"RAY_TRAIN_V2_ENABLED": "1", "TOKENIZERS_PARALLELISM": "false"}
    chosen = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return {**ALLOCATOR, **SHARED_CORES, **own, **chosen}


def _without_the_jobs(env: dict[str, str]) -> dict[str, str]:
    """What a job of Ray Jobs has from its submitter stays: Ray refuses to be told a variable twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = ((job.get("runtime_env") or {}).get("env_vars")) or {}
    return {name: value for name, value in env.items() if name not in given}


def bound_waiting(shares: int) -> None:
    """Decoding is faster than most models: without a bound it would fill the object store with waiting samples.

    Args:
        shares: of `WAITING_BYTES` each.
    """
    import ray.data

    options = ray.data.DataContext.get_current().execution_options
    options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=WAITING_BYTES * max(1, shares))


def configure_data() -> None:
    """Ray Data's settings for shards: bounded blocks, bars on terminals alone, errors that say the cause."""
    import ray.data

    context: Any = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    # Its advice, to request memory for a worker, is for those who write the pipeline, twice a minute.
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    bound_waiting(sum(node["Alive"] for node in ray.nodes()))
    for name, level in {"ray.data": logging.WARNING, "ray.train": logging.WARNING, **TRACES}.items():
        logging.getLogger(name).setLevel(level)
