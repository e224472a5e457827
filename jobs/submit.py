"""`hybrid submit -- VERB …`: run another verb on a Ray cluster, by Ray Jobs."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.command.errors import EndedError
from pipelines import storage
from pipelines.reading.sandbox.kernel import SWITCH
from pipelines.secrets import shown

if TYPE_CHECKING:
    from pipelines.cluster.submission import Ending

log = logging.getLogger(__name__)

PATTERN = re.compile(r"[*?\[{]")
ANYWHERE = re.compile(r"/|[a-z0-9+]+://")
"""How an address begins that is the same place wherever a job runs."""
RELATIVE_DATABASE = re.compile(r"sqlite:///(?!/)")
PLACES = ("--tables", "--storage", "--input", "--data", "--out", "--source", "--references")
"""Options whose values are places."""
REGISTER = ("train", "demo", "promote")
"""Verbs that write models, or which of them is in use."""
NOT_JOBS = ("submit", "query", "models")
"""Verbs whose answer is rows for a terminal; they need no cluster."""
SENT = "--env-values sends %s: all who may list the cluster's jobs can read them (`ray job list`, dashboard, GCS, logs)"
HELD_BACK = "credentials in %s are not sent: the job uses those of the nodes; --env-values sends them"


@dataclass(frozen=True)
class SubmitOptions:
    """What `hybrid submit` needs to know; the verb and its options come after `--`."""

    address: str = ""
    """URL of the cluster's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS by default."""
    submission_id: str = ""
    """The job's name. The same name again starts nothing while that job runs, nor when it is done."""
    wait: bool = True
    """Show the job's log, wait for its end and exit as it did."""
    env: tuple[str, ...] = ()
    """Names of further environment variables to send besides the settings of S3 and MLflow, such as AWS_PROFILE."""
    env_values: bool = False
    """Send credentials, too, which Ray shows to all who may list jobs. Without it the job uses those of the nodes."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, submits, follows."""
    own, command = split(argv)
    options = cli.parse(SubmitOptions, own, "hybrid submit", "Run a verb on a Ray cluster: hybrid submit … -- VERB ….")
    check(command)
    if SWITCH in options.env and os.environ.get(SWITCH) not in (None, "", "required"):
        raise UsageError(
            f"{SWITCH}={os.environ[SWITCH]} is not sent with a job, where it would replace what the nodes ask for: "
            "set it on the nodes (required may be sent)"
        )
    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise UsageError("--address is needed: the URL of the cluster's dashboard, http://HEAD:8265")
    from pipelines.cluster import submission  # Ray takes a second to import

    env, credentials = submission.environment(options.env, options.env_values)
    client = submission.connect(address)
    if credentials and options.env_values:
        log.warning(SENT, ", ".join(credentials))
    elif credentials:
        log.info(HELD_BACK, ", ".join(credentials))
    job = submission.submit(client, command, options.submission_id, env, {"hybrid.verb": command[0]})
    log.info("%s %s as %s", "submitted" if job.is_new else "found", command[0], job.submission_id)
    if not options.wait:
        return {"submission_id": job.submission_id, "is_new": job.is_new}
    try:
        ending = submission.follow(job, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        raise EndedError(
            cli.INTERRUPTED, f"interrupted; the job goes on: `ray job logs --follow {job.submission_id}`"
        ) from None
    summary = {"submission_id": job.submission_id, **ending.summary}
    if ending.status == "SUCCEEDED":
        return summary
    code = ending.exit_code if ending.exit_code in (cli.USAGE, cli.REFUSED) else cli.FAILED
    raise EndedError(code, explain(job.submission_id, ending), summary)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of submit, and the command after `--`."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def check(command: Sequence[str]) -> None:
    """Refuses what is not a verb, and what only this machine has.

    Raises:
        UsageError: lists the verbs, or names the path.
    """
    verbs = [verb for verb in cli.VERBS if verb not in NOT_JOBS]
    if not command or command[0] not in verbs:
        given = f", not '{command[0]}'" if command else ""
        raise UsageError(f"after -- comes a verb and its options{given}: {', '.join(verbs)}")
    for word in command:
        if shown(word) != word:
            raise UsageError(
                f"{shown(word)} holds a password or token, which the cluster would show with the job's command: "
                "take it from the address and set AWS_… or MLFLOW_TRACKING_… on the nodes, or send them by `env_values`"
            )
    named = {word.partition("=")[0] for word in command}
    judges = command[0] == "evaluate" or (command[0] == "promote" and "--input" in named)
    if (judges or command[0] in ("train", "demo")) and not named & {"--storage", "--help", "-h"}:
        raise UsageError(f"`storage` is needed: by default {command[0]} writes below the folder where the job runs")
    for option, value in _values(command[1:]):
        begins = PATTERN.split(value, maxsplit=1)[0]
        place = begins if begins == value else begins.rpartition("/")[0] + "/"
        if "/" in begins and not place.startswith("/") and (place.startswith("~") or Path(place).exists()):
            raise UsageError(
                f"{value} is a path of this machine alone, which the cluster does not see: "
                "give an address that it reaches, such as s3://…"
            )
        if option in PLACES and not ANYWHERE.match(value.removeprefix("file://")):
            storage.absolute(value)  # which says what is wrong with s3:/lake
            raise UsageError(
                f"{option} {value} is a path below the folder where the job runs on the cluster, and is gone after it: "
                "give an address that it reaches, such as s3://…"
            )
    tracking = [("`mlflow`", value) for option, value in _values(command[1:]) if option == "--mlflow"]
    if command[0] in REGISTER and not tracking:
        tracking = [("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", ""))]
    for name, uri in tracking:
        if RELATIVE_DATABASE.match(uri) and not named & {"--help", "-h"}:
            raise UsageError(
                f"{name} {uri} is a database below the folder where the job runs on the cluster, and nobody finds "
                "its models after it: give a server, such as http://…"
            )


def _values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word that is no option, and the option before it."""
    option = ""
    for word in words:
        name, is_both, value = word.partition("=")
        if not word.startswith("--"):
            yield option, word
        elif is_both:
            yield name, value
        else:
            option = name


def explain(submission_id: str, ending: Ending) -> str:
    """One line about a job that did not succeed: what it said itself, or what Ray says of it."""
    said = [line.removeprefix("hybrid: ") for line in ending.lines if line.startswith("hybrid: ")]
    reason = said[-1] if said else (ending.message.strip().splitlines() or [""])[0]
    return f"job {submission_id} {ending.status.lower()}: {reason}"


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
