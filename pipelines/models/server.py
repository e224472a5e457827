"""MLflow: where it is, its client, and what it says when it cannot do what was asked.

MLflow takes seconds to import: that is done where it is asked.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from hybrid_models.errors import UsageError
from pipelines.secrets import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SQLITE = "sqlite:///"
LOCK_SECONDS = 60
"""Tables are made in some seconds; whoever waits longer goes on without MLflow, as if it were away."""
MISTAKES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "UNAUTHENTICATED", "PERMISSION_DENIED")
"""What MLflow calls errors that another try would not mend."""

NO_LOGIN = (
    "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here, or give a job yours: "
    "`hybrid submit --env-values`"
)


def unreachable() -> tuple[type[Exception], ...]:
    """What comes of asking MLflow where it cannot answer."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, ImportError  # S3 artifacts without boto3: ImportError


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, or what this process has told MLflow, else a SQLite file in the working directory, as an
    absolute path. (MLflow's own default is `mlruns` where that folder is, in which it registers nothing any more.)"""
    import mlflow

    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    uri = mlflow.get_tracking_uri() if is_set else f"{SQLITE}mlflow.db"
    path = uri.removeprefix(SQLITE)
    return f"sqlite:///{Path(path).resolve()}" if path != uri else str(uri)


def set_defaults() -> None:
    """A server that is away costs seconds, not minutes; no URLs are printed: they hold passwords."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


@contextmanager
def default_is(uri: str) -> Iterator[None]:
    """Where MLflow is, for its fluent functions. They act on global
    settings, which it also exports; both are put back afterwards."""
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # forgets it
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def client(uri: str) -> MlflowClient:
    """MLflow's own client, which gives up early; opening it may raise what is `unreachable`.

    Raises:
        UsageError: it is the SQLite database of another program.
    """
    from mlflow import MlflowClient

    set_defaults()
    database = Path(uri.removeprefix(SQLITE).partition("?")[0])
    lock = database.with_name(f".{database.name}.hybrid-makes-its-tables")  # nobody else's lock is removed
    if uri.startswith(SQLITE) and (not database.exists() or lock.exists()):
        # Of two jobs that begin with a new file at once the second would find some of the tables that the first is
        # making, and do without MLflow: it waits. A lock that a killed job left is held by nobody.
        with FileLock(lock, timeout=LOCK_SECONDS):
            asked = MlflowClient(uri, registry_uri=uri)
            asked.search_experiments(max_results=1)
            asked.search_registered_models(max_results=1)
            lock.unlink(missing_ok=True)
    elif uri.startswith(SQLITE):
        _check_is_mlflows(database)
    return MlflowClient(uri, registry_uri=uri)


def _check_is_mlflows(database: Path) -> None:
    """Refuses a SQLite database with tables of another program, to which MLflow would add its own."""
    tables: set[str] = set()
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as opened:  # MLflow reports a damaged one
        tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "experiments" not in tables:
        raise UsageError(
            f"{database} is the database of another program, with table {min(tables)}: use another `mlflow`"
        )


def make_ready(uri: str) -> None:
    """Makes the tables of a new database, and its folder.

    Raises:
        ConnectionError: MLflow is not there.
    """
    make_parent(uri)
    try:
        client(uri).search_experiments(max_results=1)
    except unreachable() as error:
        raise refused("be opened", uri, error) from None


def check_there(uri: str) -> None:
    """Refuses a SQLite file that is not there: asking for it would make it.

    Raises:
        UsageError: names it.
    """
    database = uri.removeprefix(SQLITE).partition("?")[0]
    if uri.startswith(SQLITE) and not Path(database).exists():
        raise UsageError(f"there is no MLflow database at {database}")


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, or None if MLflow does not know it: it may have been away when the job ran."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def refused(what: str, tracking_uri: str, error: Exception) -> Exception:
    """The one-line error for what MLflow could not do: a usage error if MLflow says that it has no such thing."""
    message = f"MLflow at {shown(tracking_uri)}: cannot {what}: {first_line(error)}"
    mistake = getattr(error, "error_code", "") in MISTAKES or isinstance(error, ImportError)
    return UsageError(message) if mistake else ConnectionError(message)


def first_line(error: BaseException) -> str:
    """What MLflow says, without passwords."""
    fix = NO_LOGIN if getattr(error, "error_code", "") == "UNAUTHENTICATED" else ""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0]) + fix


def artifact_location(tracking_uri: str) -> str | None:
    """A server decides itself where artifacts go; without one (SQLite) they lie beside the database."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return f"file://{Path(tracking_uri.removeprefix(SQLITE)).resolve().parent / 'mlflow-artifacts'}"


def make_parent(uri: str) -> None:
    """The folder of a SQLite file."""
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
