"""The registered models: their versions, and which one the nights use, alias `champion`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion

from pipelines.models import tracking

CHAMPION, PREVIOUS = "champion", "previous"
PROMOTION_TAG = "hybrid.promotion"


@dataclass(frozen=True)
class Version:
    """One registered model."""

    hybrid: str
    version: str
    aliases: Sequence[str]
    created: str
    """When it was registered, UTC, `YYYY-MM-DD HH:MM`."""
    training: Mapping[str, Any]
    """What its training noted: `recipe`, `data`, `metrics` on validation data, `run`; empty if it is not known."""
    promotion: Mapping[str, Any]
    """What `hybrid promote` decided about it last; empty before."""


def versions(tracking_uri: str, hybrids: Sequence[str]) -> list[Version]:
    """All versions of these hybrids, each one's newest first.

    Raises:
        ConnectionError: MLflow is not there.
    """
    found = []
    with _client(tracking_uri, "list the models") as client:
        for hybrid in hybrids:
            registered = client.search_model_versions(f"name = '{hybrid}'")
            aliases = _aliases(client, hybrid) if registered else {}  # a search leaves them out
            newest_first = sorted(registered, key=lambda one: -int(one.version))
            found += [_version(one, aliases) for one in newest_first]
    return found


def champion(tracking_uri: str, hybrid: str) -> str | None:
    """The version that has the alias `champion`, if any.

    Raises:
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"ask for the champion of {hybrid}") as client:
        return _aliases(client, hybrid).get(CHAMPION)


def note(tracking_uri: str, hybrid: str, version: str, decision: Mapping[str, Any]) -> None:
    """Keeps with a version what was decided about it.

    Raises:
        UsageError: there is no such version.
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"note the decision about models:/{hybrid}/{version}") as client:
        client.set_model_version_tag(hybrid, version, PROMOTION_TAG, json.dumps(decision))


def promote(tracking_uri: str, hybrid: str, version: str) -> None:
    """Makes a version the champion; the one before becomes `previous`.

    Raises:
        UsageError: there is no such version.
        ConnectionError: MLflow is not there.
    """
    with _client(tracking_uri, f"promote models:/{hybrid}/{version}") as client:
        before = _aliases(client, hybrid).get(CHAMPION)
        if before not in (None, version):
            client.set_registered_model_alias(hybrid, PREVIOUS, str(before))
        client.set_registered_model_alias(hybrid, CHAMPION, version)


@contextmanager
def _client(tracking_uri: str, what: str) -> Iterator[mlflow.MlflowClient]:
    try:
        yield tracking.client(tracking_uri)
    except tracking.UNREACHABLE as error:
        raise tracking.refused(what, tracking_uri, error) from None


def _aliases(client: mlflow.MlflowClient, hybrid: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(hybrid).aliases.items()}


def _version(found: ModelVersion, aliases: Mapping[str, str]) -> Version:
    version = str(found.version)
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    training, promotion = (json.loads(found.tags.get(tag, "{}")) for tag in (tracking.TRAINING_TAG, PROMOTION_TAG))
    own = sorted(alias for alias, of in aliases.items() if of == version)
    return Version(found.name, version, own, created, training, promotion)
