"""The registered models: their versions, and which one the nights use, alias `champion`.

A registered model has a name, any one, and a kind, which hybrid it is: two captioners of different things are two
models, each with a champion of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hybrid_models import HYBRIDS
from hybrid_models.errors import UsageError
from pipelines.models import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
CHAMPION, PREVIOUS = "champion", "previous"
PAGE = 100
PROMOTION_TAG = "hybrid.promotion"


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
                kind = each.tags.get(tracking.KIND_TAG, each.name)
                if kind in HYBRIDS:
                    found[each.name] = kind
            token = page.token or None
    return dict(sorted(found.items()))


def check_kind(tracking_uri: str, name: str, kind: str) -> None:
    """Refuses to register a hybrid under a name that is another one's. Nothing is said where MLflow is away.

    Raises:
        UsageError: names both.
    """
    try:
        there = kinds(tracking_uri).get(name, kind if name not in HYBRIDS else name)
    except ConnectionError as error:
        log.warning("%s", error)
        return
    if there != kind:
        raise UsageError(f"`register_as` {name} is a {there}, not a {kind}: give another name")


def versions(tracking_uri: str, names: Sequence[str]) -> list[Version]:
    """All versions of these models, each one's newest first.

    Raises:
        ConnectionError: MLflow is not there.
    """
    found = []
    with _client(tracking_uri, "list the models") as client:
        for name in names:
            registered = client.search_model_versions(f"name = '{name}'")
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


def promote(tracking_uri: str, name: str, version: str) -> None:
    """Makes a version the champion; the one before becomes `previous`.

    Raises:
        UsageError: there is no such version.
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"promote models:/{name}/{version}") as client:
        before = _aliases(client, name).get(CHAMPION)
        if before not in (None, version):
            client.set_registered_model_alias(name, PREVIOUS, str(before))
        client.set_registered_model_alias(name, CHAMPION, version)


@contextmanager
def _client(tracking_uri: str, what: str) -> Iterator[MlflowClient]:
    try:
        yield tracking.client(tracking_uri)
    except tracking.unreachable() as error:
        raise tracking.refused(what, tracking_uri, error) from None


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def _version(found: ModelVersion, aliases: Mapping[str, str]) -> Version:
    version = str(found.version)
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    training, promotion = (json.loads(found.tags.get(tag, "{}")) for tag in (tracking.TRAINING_TAG, PROMOTION_TAG))
    own = sorted(alias for alias, of in aliases.items() if of == version)
    return Version(found.name, version, own, created, training, promotion)
