"""Trained models as folders: `config.json`, `weights.safetensors`, assets, `README.md`. Nothing is ever unpickled.

A model is named by a URI: a folder (`./runs/x/artifact`, `s3://…`) or a registered version
(`models:/captioner/3`, `models:/captioner@champion`).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pydantic

from hybrid_models import HYBRIDS, TABLES, interface_of
from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig, HybridConfig
from pipelines import storage
from pipelines.models.weights import (
    CONFIG,
    DAMAGE,
    MAX_WEIGHTS,
    WEIGHTS,
    check_size,
    load_state,
    pack_state,
    read_bounded,
    shapes,
)

if TYPE_CHECKING:
    from hybrid_models.contract import Hybrid
    from hybrid_models.interface import Interface

FORMAT = 2
CARD = "README.md"
MAX_CONFIG = 64 * 2**20
"""Bytes of config.json or an asset."""
MAX_NESTING = 50
FILE_NAME = re.compile(r"\w[\w.-]*")
META_KEYS = ("hybrid", "schema_version", "config", "decoding", "assets", "weights_sha256")


@dataclass(frozen=True)
class Artifact:
    """The files of one trained model, small enough to travel to every worker as one object.

    Args:
        files: name → content; a `Hybrid` is built from them alone.
        model: the name that outputs record, such as `models:/captioner/3` or the folder's URI.
        version: the registered version, or the first 12 digits of the weights' digest for a bare folder.
    """

    files: Mapping[str, bytes]
    model: str
    version: str

    @property
    def meta(self) -> dict[str, Any]:
        """The content of config.json."""
        return cast("dict[str, Any]", json.loads(self.files[CONFIG]))

    @property
    def hybrid_class(self) -> type[Hybrid]:
        """Which hybrid it is."""
        return HYBRIDS[self.meta["hybrid"]]

    @property
    def interface(self) -> type[Interface]:
        """What it is without its net."""
        return interface_of(self.meta["hybrid"])

    @property
    def table(self) -> str:
        """The table that its batch job writes."""
        return TABLES[self.meta["hybrid"]]

    @property
    def config(self) -> HybridConfig:
        """The hybrid's configuration."""
        return cast("HybridConfig", parse(self.interface.Config, self.meta["config"], f"{self.model}/{CONFIG}"))

    @property
    def decoding(self) -> DecodingConfig:
        """The decoding options that the recipe chose."""
        where = f"{self.model}/{CONFIG}"
        return cast("DecodingConfig", parse(self.interface.Decoding, self.meta["decoding"], where))

    @property
    def assets(self) -> dict[str, str]:
        """Text files learned from training data."""
        return {name: self.files[name].decode("utf-8") for name in self.meta["assets"]}

    def load(self) -> Hybrid:
        """Builds the hybrid with its weights, ready to predict.

        Raises:
            UsageError: the weights do not belong to the configuration; names what is missing or differs.
        """
        found = shapes(self.files[WEIGHTS], self.model)
        hybrid_class = self.hybrid_class  # imported before it is sketched
        check_size(lambda: hybrid_class(self.config, self.assets), found, self.model)
        hybrid = hybrid_class(self.config, self.assets)
        load_state(hybrid, self.files[WEIGHTS], self.model)
        hybrid.decoding = self.decoding
        return hybrid.eval()

    def fingerprint(self, decoding: DecodingConfig, limits: Any) -> str:
        """Hash of all that decides an output: weights, preprocessing, decoding options, limits, and the versions of
        schema and samples."""
        decisive = {
            "config": self.meta["config"],
            "assets": {name: hashlib.sha256(self.files[name]).hexdigest() for name in sorted(self.meta["assets"])},
            "weights": self.meta["weights_sha256"],
            "decoding": asdict(decoding),
            "limits": limits.decisive,
            "schema_version": self.interface.schema_version,
            "samples_version": self.interface.samples_version,
            "hybrid": self.meta["hybrid"],
        }
        return fingerprint(decisive)


def fingerprint(decisive: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def parse(kind: type, value: Any, where: str) -> Any:
    """A dataclass from JSON, with every type checked.

    Raises:
        UsageError: a key is missing or unknown, or a value has the wrong type; names the file and the key.
    """
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(value) - set(known)) if isinstance(value, dict) else []
    if unknown:
        raise UsageError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(known)}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"'{part}': " for part in first["loc"])
        raise UsageError(f"{where}: {key}{first['msg'].removeprefix('Value error, ')}") from None


def make(hybrid: Hybrid, decoding: DecodingConfig, training: Mapping[str, Any], card: str) -> dict[str, bytes]:
    """The files of an artifact: name → content.

    Args:
        hybrid: the trained model.
        decoding: its default decoding options.
        training: where it comes from (recipe, data, metrics, run), kept in config.json.
        card: the model card, Markdown.
    """
    weights = pack_state(hybrid)
    meta = {
        "format": FORMAT,
        "hybrid": hybrid.name,
        "schema_version": hybrid.schema_version,
        "config": asdict(hybrid.config),
        "decoding": asdict(decoding),
        "assets": sorted(hybrid.assets),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(training),
    }
    assets = {name: text.encode("utf-8") for name, text in hybrid.assets.items()}
    text = json.dumps(meta, indent=2, ensure_ascii=False)
    return {CONFIG: text.encode("utf-8"), WEIGHTS: weights, CARD: card.encode("utf-8"), **assets}


def write(files: Mapping[str, bytes], uri: str, is_own: storage.IsOwn = storage.nothing) -> None:
    """Stores an artifact; config.json last, so that a folder which has it is whole.

    Raises:
        UsageError: files exist there that are not `is_own`.
    """
    for name in sorted(files, key=lambda name: name == CONFIG):
        storage.write_bytes(storage.join(uri, name), files[name], is_own)


def read(uri: str, expected: str | None = None, tracking_uri: str | None = None) -> Artifact:
    """Fetches and checks an artifact by URI.

    Args:
        uri: a folder or `models:/…`.
        expected: the hybrid that the caller needs.
        tracking_uri: the MLflow server of registered models; MLFLOW_TRACKING_URI by default.

    Raises:
        UsageError: it is not there, incomplete, damaged, of an unknown format, or another hybrid; says what to do.
    """
    if uri.startswith("models:/"):
        from pipelines.models import registry, server  # only registered models need MLflow

        place = tracking_uri or server.default_uri()
        server.check_there(place)
        with tempfile.TemporaryDirectory() as scratch:
            folder, model, version = registry.fetch_model(uri, Path(scratch), place)
            artifact = Artifact(_read_files(str(folder), model), model, version)
    else:
        place = storage.absolute(uri)
        artifact = Artifact(_read_files(place, uri), place, "")
    _check(artifact, expected)
    return (
        artifact if artifact.version else Artifact(artifact.files, artifact.model, artifact.meta["weights_sha256"][:12])
    )


def _read_files(place: str, shown: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        files[CONFIG] = read_bounded(storage.join(place, CONFIG), MAX_CONFIG)
    except FileNotFoundError:
        raise UsageError(f"no model at {shown}: there is no {CONFIG}; name an artifact folder or models:/…") from None
    try:
        meta = json.loads(files[CONFIG])
        _check_nesting(meta)
        names = [WEIGHTS, *meta["assets"]]
        if foreign := [name for name in names if not FILE_NAME.fullmatch(name)]:
            raise ValueError(f"'{foreign[0]}' is no plain file name")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"'{twice[0]}' is named twice")
    except DAMAGE as error:
        raise UsageError(f"{shown}/{CONFIG} is damaged ({error}): copy the artifact again") from None
    for name in names:
        try:
            files[name] = read_bounded(storage.join(place, name), MAX_WEIGHTS if name == WEIGHTS else MAX_CONFIG)
        except FileNotFoundError:
            raise UsageError(f"{shown} lacks {name}: the artifact is incomplete, copy it again") from None
    return files


def _check_nesting(value: Any) -> None:
    """Refuses JSON that is nested so deeply that handling it fails somewhere."""
    level = [value]
    for _ in range(MAX_NESTING):
        nested = [each for each in level if isinstance(each, dict | list)]
        level = [item for each in nested for item in (each.values() if isinstance(each, dict) else each)]
    if level:
        raise ValueError(f"nested more than {MAX_NESTING} levels deep")


def _check(artifact: Artifact, expected: str | None) -> None:
    meta = artifact.meta
    if meta.get("format") != FORMAT:
        raise UsageError(
            f"{artifact.model} has artifact format {meta.get('format')}, this version reads {FORMAT}: "
            "train again, or use the version that wrote it"
        )
    if missing := [key for key in META_KEYS if key not in meta]:
        raise UsageError(f"{artifact.model}/{CONFIG} is damaged (no '{missing[0]}'): copy the artifact again")
    if not isinstance(meta["hybrid"], str) or meta["hybrid"] not in HYBRIDS:
        raise UsageError(f"{artifact.model} is a '{meta['hybrid']}'; known hybrids: {', '.join(HYBRIDS)}")
    if expected is not None and meta["hybrid"] != expected:
        raise UsageError(f"{artifact.model} is a {meta['hybrid']}, but a {expected} is needed")
    if not isinstance(meta["schema_version"], int) or meta["schema_version"] > artifact.interface.schema_version:
        raise UsageError(
            f"{artifact.model} writes schema {meta['schema_version']} of {artifact.table}, "
            f"this version {artifact.interface.schema_version}: use a newer version"
        )
    if hashlib.sha256(artifact.files[WEIGHTS]).hexdigest() != meta["weights_sha256"]:
        raise UsageError(f"{artifact.model}/{WEIGHTS} is truncated or altered (checksum): copy the artifact again")
    artifact.config, artifact.decoding  # noqa: B018 - parsed for their checks
    for name in meta["assets"]:
        try:
            artifact.files[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{artifact.model}/{name} is damaged ({error}): copy the artifact again") from None


def override(decoding: DecodingConfig, changes: Mapping[str, Any]) -> DecodingConfig:
    """Decoding options with some of them changed.

    Raises:
        UsageError: an option is unknown or has the wrong type.
    """
    return cast("DecodingConfig", parse(type(decoding), {**asdict(decoding), **changes}, "decoding"))


def load_hybrid(uri: str) -> Any:
    """A trained model from Python: an object with `caption(…)`, `nowcast(…)` or `translate(…)`.

    Args:
        uri: an artifact folder, `s3://…` or `models:/captioner@champion`.

    Raises:
        UsageError: there is no such model, or it is damaged.
    """
    return read(uri).load()
