"""Jobs on a running Ray cluster, by Ray Jobs: what is sent along, what a job prints, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from hybrid_models.errors import UsageError
from pipelines.cluster import logs
from pipelines.secrets import is_secret, shown, without_login

SETTINGS = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP",
    "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME",
    "HYBRID_TRACEBACK", "HYBRID_WORKER_LOGS", "HYBRID_LOG_FORMAT",
)  # fmt: skip
"""Variables that a job gets from its submitter, without logins in addresses. AWS_PROFILE and variables that name a role
or a file are sent only if they are named: on the nodes they would hide the nodes' own."""
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
"""Variables that a job gets from its submitter only on request: Ray shows a job's environment to its other users."""
ATTEMPT_OF = "hybrid.attempt_of"
"""Of a job's metadata: the submission id that it is an attempt of."""
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers of uploads and connections; they set their own level when they are imported."""
SOURCE = Path(__file__).parents[2]
PACKAGES = ("hybrid_models", "pipelines", "jobs")
SENT = ("*.py", "*.html")
ANSWER_SECONDS = 20.0
LOST_SECONDS = 300.0
"""So long a cluster that does not answer any more is asked what became of a job."""
AGENT_SECONDS = 60.0
SILENT_SECONDS = 60.0
"""A log that says nothing for so long may have lost its connection."""
POLL_SECONDS = 1.0
LOST = (requests.RequestException, aiohttp.ClientError, OSError, RuntimeError)


@dataclass
class Job:
    """A job on a cluster."""

    client: JobSubmissionClient
    submission_id: str
    is_new: bool


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Args:
        status: Ray's word: SUCCEEDED, FAILED or STOPPED.
        exit_code: the job's own; None if it was stopped or never started.
        message: what Ray says of it.
        lines: the last lines that it printed.
    """

    status: str
    exit_code: int | None
    message: str
    lines: list[str] = field(default_factory=list)

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON object that the job printed last; empty if there is none."""
        for line in reversed(self.lines):
            if line.startswith("{"):
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if not logs.is_record(found):
                    return dict(found)
        return {}


def connect(address: str) -> JobSubmissionClient:
    """The cluster's job server, asked once, so that what is wrong is known before anything is sent.

    Args:
        address: of the dashboard, `http://HEAD:8265`.

    Raises:
        UsageError: the address is no URL, or the cluster's token is missing or wrong.
        ConnectionError: nobody answers there, or who answers is not Ray.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"`address` '{shown(address)}' is not the URL of a Ray dashboard: write http://HEAD:8265")
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS)  # Ray's client waits for minutes
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        what = "wants a token" if "required" in error.message else "does not know this token"
        raise UsageError(
            f"the Ray cluster at {shown(address)} {what}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token to the cluster's token"
        ) from None
    except (requests.RequestException, ConnectionError, RuntimeError, ValueError, KeyError) as error:
        raise ConnectionError(f"no Ray cluster answers at {shown(address)}: {_cause(error)}") from None


def environment(names: Sequence[str], with_credentials: bool) -> tuple[dict[str, str], list[str]]:
    """Environment variables for a job, `names` among them, and names of variables here that hold credentials.

    Raises:
        UsageError: a named variable is not set, or holds a credential that is not to be sent.
    """
    found = {name: os.environ[name] for name in (*SETTINGS, *CREDENTIALS, *names) if os.environ.get(name)}
    credentials = [name for name, value in found.items() if name in CREDENTIALS or is_secret(name, value)]
    for name in names:
        if name not in os.environ:
            raise UsageError(f"`env` {name} is not set here")
        if name in credentials and not with_credentials:
            raise UsageError(f"`env` {name} holds a credential: set it on the nodes, or send it with `env_values`")
    if with_credentials:
        return found, credentials
    return {name: without_login(value) for name, value in found.items() if name not in CREDENTIALS}, credentials


def submit(
    client: JobSubmissionClient, argv: Sequence[str], submission_id: str, env: dict[str, str], metadata: dict[str, str]
) -> Job:
    """Starts `python -m jobs.VERB …` on the cluster, with this package's source.

    A submission id is the name of a piece of work: if it runs already or is done, nothing is started. If it has failed,
    it is started again, as ID.2, ID.3 …: Ray runs no id twice. A job that somebody gave such a name is another one's.

    Args:
        client: of the cluster.
        argv: the verb and its options.
        submission_id: the job's name; empty for one of Ray's choice.
        env: environment variables of the job, see `environment`; Ray keeps and shows them with the job.
        metadata: is shown with the job.
    """
    running, next_id = _look_up(client, submission_id)
    if running:
        return Job(client, running, is_new=False)
    verb, *options = argv
    with tempfile.TemporaryDirectory() as folder:
        pack(Path(folder))
        try:
            started = _patiently(
                client.submit_job,
                entrypoint=shlex.join(["python", "-m", f"jobs.{verb}", *options]),
                submission_id=next_id or None,
                runtime_env={
                    # No working_dir: nodes that share Ray's folder would replace it under a running job.
                    "py_modules": [str(Path(folder, name)) for name in PACKAGES],
                    "env_vars": env,
                },
                metadata={**metadata, ATTEMPT_OF: submission_id},
            )
        except RuntimeError:
            running, _ = _look_up(client, submission_id)  # somebody may have been faster
            if not running:
                raise
            return Job(client, running, is_new=False)
    return Job(client, started, is_new=True)


def _look_up(client: JobSubmissionClient, submission_id: str) -> tuple[str, str]:
    """The job of this name that runs or is done, if any, and the id that a further one has: ID, ID.2, ID.3 …"""
    if not submission_id:
        return "", ""
    pattern = re.compile(re.escape(submission_id) + r"(?:\.(\d+))?")
    attempts, names = [], set()
    for job in client.list_jobs():
        if match := pattern.fullmatch(job.submission_id or ""):
            names.add(job.submission_id)
            if match[1] is None or (job.metadata or {}).get(ATTEMPT_OF) == submission_id:
                attempts.append((int(match[1] or 1), str(job.submission_id), str(job.status.value)))
    if not attempts:
        return "", submission_id
    number, name, status = max(attempts)
    following = next(further for k in itertools.count(number + 1) if (further := f"{submission_id}.{k}") not in names)
    return ("" if status in ("FAILED", "STOPPED") else name), following


def _patiently(submit_job: Callable[..., str], **job: Any) -> str:
    """Submits; a cluster that has just started has nobody to run jobs yet."""
    retrying = Retrying(
        retry=retry_if_exception(lambda error: "No available agent" in str(error)),
        stop=stop_after_delay(AGENT_SECONDS),
        wait=wait_fixed(POLL_SECONDS),
        reraise=True,
    )
    return str(retrying(submit_job, **job))


def pack(folder: Path) -> None:
    """Copies this package's source, and nothing else, to a folder."""
    for name in PACKAGES:
        for file in sorted(file for kind in SENT for file in (SOURCE / name).rglob(kind)):
            target = folder / file.relative_to(SOURCE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def follow(job: Job, show: Callable[[str], None]) -> Ending:
    """Shows a job's log line by line while it comes, until the job has ended.

    Raises:
        ConnectionError: the cluster did not answer any more, for `LOST_SECONDS`.
    """
    lines = LogLines(show)
    answered = time.monotonic()
    while True:
        with contextlib.suppress(*LOST):  # the log is for people; what became of the job is asked below
            asyncio.run(_tail(job, lines))
        try:
            found = job.client.get_job_info(job.submission_id)
            answered = time.monotonic()
            if found.status.is_terminal():
                with contextlib.suppress(*LOST):
                    lines.take(job.client.get_job_logs(job.submission_id), 0)
                return Ending(found.status.value, found.driver_exit_code, found.message or "", lines.finish())
        except LOST as error:
            if time.monotonic() - answered > LOST_SECONDS:
                raise ConnectionError(
                    f"the cluster does not answer any more: {_cause(error)}; see `ray job logs {job.submission_id}`"
                ) from None
        time.sleep(POLL_SECONDS)


async def _tail(job: Job, lines: LogLines) -> None:
    """The log from its beginning, without what was shown, until the job ends, the connection breaks or nothing comes
    for `SILENT_SECONDS`."""
    seen = 0
    parts = aiter(job.client.tail_job_logs(job.submission_id))
    with contextlib.suppress(StopAsyncIteration):
        while True:
            part = await asyncio.wait_for(anext(parts), SILENT_SECONDS)
            lines.take(part, seen)
            seen += len(part)


class LogLines:
    """A text that comes in parts, perhaps several times over, as lines that are each shown once."""

    KEPT = 50

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._position = 0
        self._rest = ""
        self._last: list[str] = []

    def take(self, part: str, start: int) -> None:
        """A part of the text and where in it the part starts."""
        fresh = part[max(0, self._position - start) :]
        self._position = max(self._position, start + len(part))
        *lines, self._rest = (self._rest + fresh).split("\n")
        self._emit(lines)

    def finish(self) -> list[str]:
        """Shows what does not end with a line break; the last lines."""
        self._emit([self._rest] if self._rest else [])
        return self._last

    def _emit(self, lines: list[str]) -> None:
        for line in lines:
            self._show(line)
        self._last = [*self._last, *(line for line in lines if line.strip())][-self.KEPT :]


def _cause(error: BaseException) -> str:
    """The innermost reason, in a few words."""
    text = shown(str(error))
    for reason in ("Connection refused", "Name or service not known", "timed out", "No route to host"):
        if reason in text:
            return reason.lower()
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
