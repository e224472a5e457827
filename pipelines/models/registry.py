"""The registered models: their versions, which one the nights use, alias `champion`, and their files.

A registered model has a name, any one, and a kind, which hybrid it is: two captioners of different things are two
models, each with a champion of its own.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from pipelines.models import server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
PAGE = 100
PROMOTION_TAG = "hybrid.promotion"
TRAINING_TAG = "hybrid.training"
KIND_TAG = "hybrid.kind"
"""Of a registered model: which hybrid its versions are."""
SETTLE_SECONDS = 2.0
"""Time between setting the alias `champion` and reading it again: more than other promotions need to set theirs."""
MAX_MODEL = 20 * 2**30
"""Bytes of a registered model that is fetched."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: str
    aliases: Sequence[str]
    created: str
    """When it was registered, UTC, `YYYY-MM-DD HH:MM`."""
    training: Mapping[str, Any]
    """What its training noted: `recipe`, `data`, `metrics` on validation data, `run`; empty if it is not known."""
    promotion: Mapping[str, Any]
    """What `hybrid promote` decided about it last; empty before."""


def kinds(tracking_uri: str) -> dict[str, str]:
    """The registered models that are hybrids: name → which. One without a tag, of an earlier version, has it as name.

    Raises:
        ConnectionError: MLflow is not there.
    """
    found: dict[str, str] = {}
    with _client(tracking_uri, "list the models") as client:
        token: str | None = ""
        while token is not None:
            page = client.search_registered_models(max_results=PAGE, page_token=token or None)
            for each in page:
                kind = each.tags.get(KIND_TAG, each.name)
                if kind in HYBRIDS:
                    found[each.name] = kind
            token = page.token or None
    return dict(sorted(found.items()))


def kind_of(client: MlflowClient, name: str) -> str | None:
    """Which hybrid a registered model is, or its name where nothing tells; None if it has no version yet.

    Raises:
        MlflowException: it cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if kind := model.tags.get(KIND_TAG):
        return str(kind)
    return name if client.search_model_versions(_named(name), max_results=1) else None


def _named(name: str) -> str:
    """What MLflow searches versions by."""
    quote = '"' if "'" in name else "'"  # somebody else's name may have one
    return f"name = {quote}{name}{quote}"


def check(tracking_uri: str, name: str, kind: str, experiment: str) -> None:
    """Refuses to register a hybrid under a name that is another one's, and an experiment that was deleted, where
    nothing can be logged. Nothing is said where MLflow is away.

    Raises:
        UsageError: names what is in the way.
    """
    try:
        with _client(tracking_uri, f"ask for the model {name} and the experiment {experiment}") as client:
            there = kind_of(client, name) or (name if name in HYBRIDS else kind)
            found = client.get_experiment_by_name(experiment)
    except ConnectionError as error:
        log.warning("%s", error)
        return
    if there != kind:
        what = f"a {there}, not a {kind}" if there in HYBRIDS else "somebody's model, and no hybrid"
        raise UsageError(f"`register_as` {name} is {what}: give another name")
    if found is not None and found.lifecycle_stage == "deleted":
        raise UsageError(f"the MLflow experiment '{experiment}' was deleted: restore it, or name another `experiment`")


def versions(tracking_uri: str, names: Sequence[str]) -> list[Version]:
    """All versions of these models, each one's newest first.

    Raises:
        ConnectionError: MLflow is not there.
    """
    found = []
    with _client(tracking_uri, "list the models") as client:
        for name in names:
            registered = client.search_model_versions(_named(name))
            aliases = _aliases(client, name) if registered else {}  # a search leaves them out
            newest_first = sorted(registered, key=lambda one: -int(one.version))
            found += [_version(one, aliases) for one in newest_first]
    return found


def champion(tracking_uri: str, name: str) -> str | None:
    """The version that has the alias `champion`, if any.

    Raises:
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"ask for the champion of {name}") as client:
        return _aliases(client, name).get(CHAMPION)


def note(tracking_uri: str, name: str, version: str, decision: Mapping[str, Any]) -> None:
    """Keeps with a version what was decided about it.

    Raises:
        UsageError: there is no such version.
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"note the decision about models:/{name}/{version}") as client:
        client.set_model_version_tag(name, version, PROMOTION_TAG, json.dumps(decision))


def promote(tracking_uri: str, name: str, version: str, holder: str | None = None) -> None:
    """Sets the alias `champion` to a version, and `previous` to the champion before it.

    Args:
        holder: the champion that the version was judged beside; None if there was none.

    Raises:
        RuntimeError: another version is the champion now.
        UsageError: there is no such version.
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"promote models:/{name}/{version}") as client:
        if (now := _aliases(client, name).get(CHAMPION)) != holder:
            raise _overtaken(name, now)
        if holder not in (None, version):
            client.set_registered_model_alias(name, PREVIOUS, str(holder))
        client.set_registered_model_alias(name, CHAMPION, version)


def promotions(tracking_uri: str, name: str) -> set[tuple[str, str]]:
    """Versions of a model that are recorded as promoted, each with the time of that promotion.

    Raises:
        ConnectionError: MLflow is not there.
    """
    noted = [(one.version, one.promotion) for one in versions(tracking_uri, [name])]
    return {(version, str(decision.get("at"))) for version, decision in noted if decision.get("promoted")}


def confirm(tracking_uri: str, name: str, version: str, before: set[tuple[str, str]]) -> None:
    """Checks, after `promote`, that no promotion at the same time has won.

    MLflow has no compare-and-set, so this is Fischer's timed mutual exclusion: read the alias, set it, wait, read it
    again. The version that is set last wins; a later promotion finds it at its first read. One window remains: a
    promotion that takes longer than `SETTLE_SECONDS` between its first read and its set may replace a version that is
    confirmed. It then finds that version's new record and restores the alias, which names the wrong version until then.
    If writing that record took as long, it is not found, and both versions are recorded as promoted.

    Args:
        before: the `promotions` before it was set.

    Raises:
        RuntimeError: another version has won; names it.
        ConnectionError: MLflow is not there.
    """
    time.sleep(SETTLE_SECONDS)
    winner = champion(tracking_uri, name)
    if winner == version and (others := promotions(tracking_uri, name) - before):
        winner = max(others, key=lambda each: each[1])[0]
        with _client(tracking_uri, f"restore models:/{name}/{winner}") as client:
            client.set_registered_model_alias(name, CHAMPION, winner)
    if winner != version:
        raise _overtaken(name, winner)


def _overtaken(name: str, winner: str | None) -> RuntimeError:
    """The error of a promotion that another one has overtaken."""
    return RuntimeError(f"models:/{name}/{winner} became the champion meanwhile: start again, to be judged beside it")


def fetch_model(uri: str, folder: Path, tracking_uri: str) -> tuple[Path, str, str]:
    """Downloads a registered model's artifact folder, and nothing else: its `code` is for MLflow's own loader.

    Returns:
        The local artifact folder, the model by name and version (an alias resolved), and the version.

    Raises:
        UsageError: there is no such model, version or alias.
        ConnectionError: MLflow is not there.
    """
    from mlflow import artifacts

    try:
        asked = server.client(tracking_uri)
        name, version = _resolve(asked, uri)
        source = f"{asked.get_model_version_download_uri(name, version).rstrip('/')}/artifacts"
        with server.default_is(tracking_uri):
            if (size := _size(source)) > MAX_MODEL:
                raise UsageError(f"{uri} has {size:,} bytes, more than {MAX_MODEL:,}: it is no trained model")
            local = Path(artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder))) if size else folder
    except server.unreachable() as error:
        raise server.refused(f"get {uri}", tracking_uri, error) from None
    found = next(local.rglob("weights.safetensors"), None)
    if found is None:
        raise UsageError(f"{uri} holds no hybrid's artifact: was it registered by `hybrid train`?")
    return found.parent, f"models:/{name}/{version}", version


def _size(artifact_uri: str) -> int:
    """Bytes of all files below a place of MLflow's, without fetching any."""
    from mlflow import artifacts

    found = artifacts.list_artifacts(artifact_uri=artifact_uri)
    root = artifact_uri.rstrip("/")
    return sum(
        _size(f"{root}/{each.path.rsplit('/', 1)[-1]}") if each.is_dir else each.file_size or 0 for each in found
    )


def _resolve(client: MlflowClient, uri: str) -> tuple[str, str]:
    path = uri.removeprefix("models:/")
    if "@" in path:
        name, alias = path.split("@", 1)
        versions = client.search_model_versions(_named(name), max_results=1)
        if not versions:
            raise UsageError(f"there is no registered model {name} yet: `hybrid train` registers one")
        if alias == CHAMPION and alias not in _aliases(client, name):
            raise UsageError(f"{name} has no champion yet: `hybrid promote {name}` makes its best version the champion")
        return name, str(client.get_model_version_by_alias(name, alias).version)
    name, _, version = path.partition("/")
    if not name or not version:
        raise UsageError(f"{uri} names no version: write models:/NAME/VERSION or models:/NAME@ALIAS")
    return name, str(client.get_model_version(name, version).version)


@contextmanager
def _client(tracking_uri: str, what: str) -> Iterator[MlflowClient]:
    try:
        yield server.client(tracking_uri)
    except server.unreachable() as error:
        raise server.refused(what, tracking_uri, error) from None


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def _told(found: ModelVersion, tag: str) -> dict[str, Any]:
    """What a tag says; nothing where it holds something else, as if somebody had written it by hand."""
    try:
        told = json.loads(found.tags.get(tag, "{}"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        log.warning("models:/%s/%s: its tag '%s' is damaged and left out", found.name, found.version, tag)
        return {}
    return told


def _version(found: ModelVersion, aliases: Mapping[str, str]) -> Version:
    version = str(found.version)
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    training, promotion = (_told(found, tag) for tag in (TRAINING_TAG, PROMOTION_TAG))
    own = sorted(alias for alias, of in aliases.items() if of == version)
    return Version(found.name, version, own, created, training, promotion)
