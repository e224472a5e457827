"""A job's run in MLflow: parameters, curves without repeated steps, files, the model that comes of it.

MLflow being away never kills a job: everything logged here also lies beside the job's outputs, failures are reported
as warnings, and training curves are caught up at the next opportunity. MLflow takes seconds to import: that is done
where it is asked.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hybrid_models
import pipelines
from pipelines.models import server
from pipelines.models.registry import CHALLENGER, KIND_TAG, TRAINING_TAG, kind_of
from pipelines.secrets import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)
EXPERIMENT = "hybrid"
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
PREDICTION_PACKAGES = (
    "av", "fsspec", "mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "regex", "safetensors", "tenacity",
    "timm", "tokenizers", "torch", "torchvision",
)  # fmt: skip
"""Third-party packages that a registered model imports to predict from a DataFrame."""


class Tracker:
    """One MLflow run, or none while MLflow is away."""

    def __init__(self, uri: str, run_id: str | None = None) -> None:
        server.set_defaults()
        self.uri = uri
        self.run_id = run_id

    @cached_property
    def _client(self) -> MlflowClient:
        """Opens the store at the first use, which is guarded: a database may be away, too."""
        return server.client(self.uri)

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], experiment: str = "") -> str | None:
        """Creates the run; returns its id, or None if MLflow is away.

        Args:
            name: of the run.
            params: what it was started with.
            tags: of the run.
            experiment: which it belongs to; MLFLOW_EXPERIMENT_NAME by default, as everywhere in MLflow, else `hybrid`.
        """
        with self._guarded("create the run"):
            from mlflow.entities import Param

            server.make_parent(self.uri)
            experiment_id = self._experiment(experiment_name(experiment))
            tags = {key: shown(value) for key, value in tags.items()}
            run = self._client.create_run(experiment_id, run_name=shown(name), tags=tags)
            self.run_id = run.info.run_id
            flat = [Param(key, shown(str(value))[:6000]) for key, value in flatten(params)]
            for part in _chunks(flat, PARAMS_PER_REQUEST):
                self._client.log_batch(self.run_id, params=part)
        return self.run_id

    def _experiment(self, name: str) -> str:
        """The experiment of this name; another job may make it at the same moment."""
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name, server.artifact_location(self.uri)))
        except MlflowException:
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs single values."""
        self.catch_up([{"step": step, "time": _now_ms(), **metrics}])

    def catch_up(self, history: Iterable[Mapping[str, float]]) -> None:
        """Logs the entries of a history that the run does not have yet: no step is repeated or missing.

        Args:
            history: dicts with `step`, `time` (ms) and any metrics, in order of step within each metric.
        """
        if self.run_id is None:
            return
        with self._guarded("log metrics"):
            from mlflow.entities import Metric

            logged: dict[str, int] = {}
            fresh: list[Metric] = []
            for entry in history:
                for key, value in entry.items():
                    if key in ("step", "time"):
                        continue
                    if key not in logged:
                        logged[key] = self._last_step(self.run_id, key)
                    if entry["step"] > logged[key]:
                        fresh.append(Metric(key, float(value), int(entry["time"]), int(entry["step"])))
            for part in _chunks(fresh, METRICS_PER_REQUEST):
                self._client.log_batch(self.run_id, metrics=part)

    def _last_step(self, run_id: str, key: str) -> int:
        from mlflow.exceptions import MlflowException

        try:
            return max((m.step for m in self._client.get_metric_history(run_id, key)), default=-1)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return -1
            raise

    def log_text(self, text: str, path: str) -> None:
        """Stores a text file with the run."""
        if self.run_id is not None:
            with self._guarded(f"store {path}"):
                self._client.log_text(self.run_id, shown(text), path)

    def log_file(self, content: bytes, path: str) -> None:
        """Stores a file, such as a picture, with the run."""
        if self.run_id is None:
            return
        with self._guarded(f"store {path}"), tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / Path(path).name
            local.write_bytes(content)
            folder = str(Path(path).parent)
            self._client.log_artifact(self.run_id, str(local), None if folder == "." else folder)

    def finish(self, succeeded: bool = True) -> None:
        """Ends the run."""
        if self.run_id is not None:
            with self._guarded("end the run"):
                self._client.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")

    def resume(self) -> bool:
        """Marks the run as running again; False if this MLflow does not know it, or somebody has deleted it."""
        if self.run_id is None:
            return False
        with self._guarded("resume the run"):
            from mlflow.exceptions import MlflowException

            try:
                if self._client.get_run(self.run_id).info.lifecycle_stage == "deleted":
                    return False
                self._client.update_run(self.run_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
        return True

    def register(self, name: str, files: Mapping[str, bytes]) -> str | None:
        """Registers an artifact as the next version of the model of this name, alias `challenger`; returns the version.

        Done again, it goes on with the version that this run has already: a registration is whole, or None comes back;
        so it does where a model of this name is of another kind by now.
        """
        if self.run_id is None:
            return None
        meta = json.loads(files["config.json"])
        with self._guarded("register the model"):
            found = self._registered(name, self.run_id)
            if found is None and (there := kind_of(self._client, name) or meta["hybrid"]) != meta["hybrid"]:
                log.warning("%s is a %s by now, not a %s: the model is not registered", name, there, meta["hybrid"])
                return None
            found = found or self._log_model(name, files)
            self._client.set_registered_model_tag(name, KIND_TAG, meta["hybrid"])
            self._client.set_model_version_tag(name, found, TRAINING_TAG, json.dumps(meta["training"]))
            self._client.set_registered_model_alias(name, CHALLENGER, found)
            return found
        return None

    def _registered(self, name: str, run_id: str) -> str | None:
        """The version that this run has registered before, if any."""
        found = [one for one in self._client.search_model_versions(f"run_id = '{run_id}'") if one.name == name]
        return str(max(found, key=lambda one: int(one.version)).version) if found else None

    def _log_model(self, name: str, files: Mapping[str, bytes]) -> str:
        import mlflow

        # Without a signature MLflow drops a prediction's params: the decoding options.
        meta = json.loads(files["config.json"])
        decoding = meta["decoding"]
        signature = mlflow.models.infer_signature(params=decoding) if decoding else None
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "artifact"
            folder.mkdir()
            for file, content in files.items():
                (folder / file).write_bytes(content)
            with (
                server.default_is(self.uri),
                _quietly(),
                mlflow.start_run(run_id=self.run_id, log_system_metrics=False),
            ):
                logged = mlflow.pyfunc.log_model(
                    name=meta["hybrid"],  # of the logged one, which may have no dots
                    python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                    artifacts={"artifact": str(folder)},
                    registered_model_name=name,
                    signature=signature,
                    pip_requirements=pinned_requirements(),
                    code_paths=_copy_packages(Path(scratch)),
                )
        return str(logged.registered_model_version)

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # MLflow raises its database's, HTTP's and S3's errors as they come
            log.warning(
                "MLflow at %s: cannot %s, going on without it: %s", shown(self.uri), what, server.first_line(error)
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """MLflow prints that it has registered a model, and warns of each that has no input example."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def pinned_requirements() -> list[str]:
    """The prediction packages in their installed versions.

    Local parts such as `+cpu` are removed: no package index has them. This project's own packages are not listed: their
    name is not registered on the public index, so anyone could register it and run code where a model is installed.
    """
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in PREDICTION_PACKAGES]


def _copy_packages(folder: Path) -> list[str]:
    """Copies the importable modules of this project, and no other files beside them, for MLflow's `code_paths`."""
    roots = [Path(str(package.__file__)).parent for package in (hybrid_models, pipelines)]
    for root in roots:
        for module in root.rglob("*.py"):
            path = module.relative_to(root.parent)
            if all(name.isidentifier() for name in path.with_suffix("").parts):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(module, folder / path)
    return [str(folder / root.name) for root in roots]


def experiment_name(given: str) -> str:
    """The experiment that runs belong to, where an option has named one, or not."""
    return given or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as dotted keys."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _now_ms() -> int:
    return int(time.time() * 1000)
