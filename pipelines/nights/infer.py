"""THE batch-inference loop, top to bottom: shards in object storage → one atomically committed night of a table."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Collection, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.resources import Resources
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import commit, ownership, upkeep
from pipelines.nights.commit import Partition
from pipelines.nights.rules import Retention, Rules
from pipelines.nights.tables import night_files
from pipelines.nights.upkeep import Tidied
from pipelines.reading.shards import Shard, odd_name
from pipelines.reading.units import Part, units
from pipelines.secrets import shown
from pipelines.staging import contents, joining
from pipelines.staging.checks import RefusedError, check_errors, check_there, incomplete, verify
from pipelines.staging.contents import Contents, Known, Staged
from pipelines.staging.joining import Joined, Made
from pipelines.staging.pieces import Lineage, Piece, names_in, table_schema, unit_of

log = logging.getLogger(__name__)
GONE_SHOWN = 3
SKIPPED_SHOWN = 3
AWAY_SECONDS = 60
"""So long the packing of files waits for a store that has failed: all is computed, and only the commit is left."""


@dataclass(frozen=True)
class Night:
    """One night of one table: everything that decides it.

    Args:
        shards: the input.
        partition: of which table and date it is.
        inference: the model, how it decodes, what a row may cost.
        rules: when it is not committed.
        retention: what is kept of the nights before.
        skipped: addresses of objects beside the shards that nothing here reads.
    """

    shards: Sequence[Shard]
    partition: Partition
    inference: Inference
    rules: Rules = field(default_factory=Rules)
    retention: Retention = field(default_factory=Retention)
    skipped: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an output."""
        return self.inference.fingerprint

    @property
    def folder(self) -> str:
        """Where this night's files are staged."""
        return storage.join(self.partition.folder, self.fingerprint[:12])

    @property
    def schema(self) -> pa.Schema:
        """The columns of its files, which keep how they were predicted."""
        return table_schema(self.inference.artifact.interface.payload_schema).with_metadata(self.inference.note)


@dataclass(frozen=True)
class NightSummary:
    """What came of a night."""

    table: str
    """URI of the table."""
    ds: str
    version: int | None
    """The table's version, if it is new."""
    changed: bool
    """Whether the night is another one than before."""
    rows: int
    rows_lost: int
    """Rows that have no row of their own: a shard could not be read on."""
    ok: int
    errors: dict[str, int]
    """How many by reason, the commonest first; lost ones included."""
    shards: int
    shards_computed: int
    """The others were complete. Small shards share a unit, and are computed with it."""
    rows_computed: int
    rows_per_second: float
    """Of those that were computed."""
    model_busy: float
    """Share of the time that the model processes, or GPUs, computed."""
    input_bytes: int
    staged_bytes: int
    """By this run; without packs that were written before one failed."""
    files_removed: int
    """By tidying, afterwards."""
    bytes_removed: int
    files_unknown: int
    """In the night's folder, and none of this program's."""
    skipped: int
    """Objects at the input that are neither shards nor photographs, clips or arrays,"""
    skipped_names: list[str]
    """and the first of them."""
    jail: str
    """The decoding jails in which the rows were decoded; `unknown` where an earlier version decoded all of them."""
    seconds: dict[str, float]
    """By stage: `decode`, `predict` and `write` of all processes together, the others of the wall clock."""
    model: str
    model_version: str
    fingerprint: str
    run_id: str


def infer(night: Night, resources: Resources, tracker: Tracker, seen: Collection[str] = ()) -> NightSummary:
    """Runs one night: list, skip what is complete, compute the rest, join what tasks have cut, verify, put small files
    together, commit, tidy.

    Raises:
        RefusedError: too many samples were bad.
        RuntimeError: infrastructure failed, or another job has found more shards; start again, finished ones are kept.
    """
    started = time.perf_counter()
    run_id = tracker.run_id or uuid.uuid4().hex
    artifact = night.inference.artifact
    lineage = Lineage(artifact.model, artifact.version, night.fingerprint, run_id)
    todo = incomplete(night.shards, night.folder)
    log.info("%s: %d of %d shards to compute", night.partition, len(todo), len(night.shards))
    written = Staged()
    computing = time.perf_counter()
    if todo:
        connection.start()
        computing = time.perf_counter()
        written = _compute(night, todo, lineage, resources)
    staged = time.perf_counter()
    joined = joining.join(joining.small_units(todo), night.folder)
    whole = verify(night.shards, night.folder)
    _check_errors(night, whole, contents.told_of(whole, written.contents | joined))  # before gigabytes are packed
    files, packed = _files(night, whole, bool(todo))
    ready = time.perf_counter()
    pieces = upkeep.renew(night.partition, files)
    told = contents.each(pieces, written.contents | joined | packed)
    found = contents.added(told)
    _tell_what_is_absent(night, found)
    rows = _check_errors(night, pieces, found)
    known = [replace(piece, bad=each.bad) for piece, each in zip(pieces, told, strict=True)]
    note, may = _note(night, lineage, rows, found), partial(_keep_what_came, night, frozenset(seen))
    version = commit.commit_night(night.partition, known, night.schema, note, may)
    check_there(pieces, night.folder)  # whoever else may remove files there, this night says so
    committed = time.perf_counter()
    tidied = _tidy(night)
    busy = written.seconds["predict"] / (written.actors * (staged - computing))
    seconds = {
        **written.seconds,
        "stage_wall": staged - computing,
        "pack_wall": ready - staged,
        "commit_wall": committed - ready,
        "total_wall": time.perf_counter() - started,
    }
    return NightSummary(
        **asdict(night.partition),
        version=version,
        changed=version is not None,
        rows=rows,
        rows_lost=found.lost,
        ok=rows + found.lost - sum(found.errors.values()),
        errors=dict(found.errors.most_common()),
        shards=len(night.shards),
        shards_computed=len(todo),
        rows_computed=written.rows,
        rows_per_second=round(written.rows / (staged - computing), 2),
        model_busy=round(busy, 4),
        input_bytes=sum(shard.size for shard in night.shards),
        staged_bytes=written.bytes + sum(size for _, size in [*joined, *packed]),
        files_removed=len(tidied.removed),
        bytes_removed=tidied.bytes,
        files_unknown=len(tidied.unknown),
        skipped=len(night.skipped),
        skipped_names=_first(night.skipped),
        jail=note["jail"],
        seconds={name: round(value, 3) for name, value in seconds.items()},
        **asdict(lineage),
    )


def _check_errors(night: Night, pieces: Sequence[Piece], found: Contents) -> int:
    """Refuses too many bad samples, by what is known of these pieces: more can only be worse. Returns their rows."""
    rows = sum(piece.rows for piece in pieces)
    check_errors(found.errors, rows + found.lost, night.rules.max_error_fraction)
    return rows


def _note(night: Night, lineage: Lineage, rows: int, found: Contents) -> dict[str, str]:
    """What the log keeps of a night with its commit."""
    errors, jails = json.dumps(dict(found.errors.most_common())), ", ".join(sorted(found.jails)) or "unknown"
    counts = {"rows": rows, "rows_lost": found.lost, "errors": errors, "jail": jails}
    skipped = {"skipped": len(night.skipped), "skipped_names": json.dumps(_first(night.skipped))}
    return {key: str(value) for key, value in {**asdict(lineage), **counts, **skipped}.items()}


def _first(addresses: Sequence[str]) -> list[str]:
    return [shown(address) for address in addresses[:SKIPPED_SHOWN]]


def _compute(night: Night, todo: Sequence[Part], lineage: Lineage, resources: Resources) -> Staged:
    """Stages what these parts become."""
    from pipelines.staging.actors import Predictor  # with Ray, which takes longer to load than a complete night needs
    from pipelines.staging.engine import Actor, stage

    decode, name = night.inference.decode(), night.partition.name
    actor = Actor(Predictor, (night.inference,), (lineage, False, name))
    return stage(todo, night.folder, night.schema, decode, actor, resources, name)


def _files(night: Night, pieces: Sequence[Piece], computed: bool) -> tuple[list[Piece], Known]:
    """The files of the night: small ones are put together, unless it is there as it is, or they cannot be written,
    which is tried twice. What is left for the second time may be too few for a pack.

    Raises:
        StorageError: the store stayed away.
    """

    def write(packs: Sequence[Joined]) -> list[Made]:
        log.info("packing %d pieces into %d files", sum(len(pack.sources) for pack in packs), len(packs))
        here = not computed and (len(packs) <= joining.WRITERS or not _has_cluster(night.partition))
        return joining.write(packs) if here else _on_nodes(packs)

    names = {piece.file.uri for piece in pieces}
    if len(names) < joining.LEAST_FILES or not (computed or not _are_there(night.partition, names)):
        return joining.files(pieces, write)
    try:
        return joining.files(pieces, write, put_together=True)
    except storage.StorageError as error:
        log.warning("%s: packing is tried once more, when the store answers: %s", night.partition, error)
        storage.wait_for(night.folder, AWAY_SECONDS)
    pieces = verify(night.shards, night.folder)  # some are in packs by now
    try:
        return joining.files(pieces, write, put_together=True)
    except storage.StorageError as error:
        log.warning("%s: what is not packed by now stays as it is: %s", night.partition, error)
    return joining.files(verify(night.shards, night.folder), write)


def _are_there(partition: Partition, files: set[str]) -> bool:
    """Whether the night consists of these files already."""
    root = storage.absolute(partition.table) + "/"
    return {uri.removeprefix(root) for uri in files} == partition.files()


def _has_cluster(partition: Partition) -> bool:
    """Whether one is there: a night that is staged needs none for its commit."""
    try:
        connection.start()
    except Exception as error:  # Ray has many words for it
        log.warning("%s: this process alone packs its files: %s", partition, error)
        return False
    return True


def _on_nodes(packs: Sequence[Joined]) -> list[Made]:
    """Packs, written on the cluster that computes nights."""
    from pipelines.staging.engine import write_packs  # with Ray

    return write_packs(packs)


def _tell_what_is_absent(night: Night, found: Contents) -> None:
    for name in [name for name in night.inference.keep if name not in found.fields]:
        log.warning("%s: no row has the field '%s', which `keep` names", night.partition, name)


def _tidy(night: Night) -> Tidied:
    """The night is committed: files that cannot be removed now are only worth a warning. Who does it again, or tidies
    the whole table, tries again."""
    try:
        return upkeep.tidy(night.partition.table, night.retention.retain_hours, ds=night.partition.ds)
    except (DeltaError, UsageError, storage.StorageError) as error:
        log.warning("%s: cannot remove old files: %s", night.partition, error)
        return Tidied([], [])


# ---- what is looked at before any work -----------------------------------------------------------------------------
def check(night: Night) -> set[str]:
    """Refuses a table, or a folder for one, that this night cannot be written to, and a night that would lose the rows
    of shards that are gone: a listing may have gone wrong.

    Shards, and lone objects, are compared by address: one that was replaced is not gone.

    Returns:
        Paths, relative to the table, of the files that it would replace.

    Raises:
        UsageError: what was found there, and the way out.
        RefusedError: names some of the shards, and the way out.
    """
    table = ownership.check(night.partition.table, night.schema)
    files = set() if table is None else night_files(table, night.partition.ds)
    if gone := _lost(night, files):
        raise RefusedError(
            f"{night.partition}: {len(gone)} of its shards are gone, such as {', '.join(gone[:GONE_SHOWN])}: "
            "nothing was changed; bring them back, or let their rows go by `allow_missing`"
        )
    return files


def _keep_what_came(night: Night, seen: Set[str], files: set[str]) -> None:
    """Refuses to replace files that came since `check` has `seen` others, if they have rows of shards that this night
    has not: somebody has listed it later, and found more."""
    if more := _lost(night, files - seen):
        raise RuntimeError(
            f"{night.partition}: another job has committed it meanwhile, with {len(more)} shards that were not there "
            f"when this one listed them, such as {', '.join(more[:GONE_SHOWN])}: nothing was changed; start it again"
        )


def _lost(night: Night, files: set[str]) -> list[str]:
    """Shards and lone objects that have rows in these files of the table, and none in this night."""
    if night.rules.allow_missing or not files:
        return []
    return sorted(_addresses(night, files) - {address for shard in night.shards for address in shard.addresses})


def _addresses(night: Night, files: set[str]) -> set[str]:
    """Shards and lone objects that files of the table were made of; only of those that are not listed as they were."""
    keys = {shard.key for shard in night.shards} | {unit.key for unit in units(night.shards)}

    def read(path: str) -> set[str]:
        try:
            file = storage.info(storage.join(night.partition.table, path))
            if all(unit_of(name) in keys for name in names_in(file)):
                return set()
            with storage.open_input(file.uri) as stream, contents.undamaged(file.uri):
                return _sources(pq.ParquetFile(stream))
        except FileNotFoundError:  # nothing reads this night any more; it is mended by doing it again
            log.warning("%s lacks its file %s", night.partition.table, path)
            return set()

    perhaps = [path for path in sorted(files) if unit_of(path.rsplit("/", 1)[-1]) not in keys]
    with ThreadPoolExecutor(contents.READERS) as threads:
        return set[str]().union(*threads.map(read, perhaps))


def _sources(file: pq.ParquetFile) -> set[str]:
    """What the rows of a file were made of: lone objects, or shards. Some were made of nothing, and who mends them
    takes nothing away: rows of a manifest that name no object, MANIFEST#N of MANIFEST@DIGITS, and objects of whose name
    nothing is read (`odd_name`)."""
    found: set[str] = set()
    manifests: set[str] = set()
    for batch in file.iter_batches(columns=["shard", "object"]):  # earlier versions have but the first
        shards = batch.column("shard")
        objects = batch.column("object") if "object" in batch.schema.names else pa.nulls(len(batch), pa.string())
        found.update(pc.unique(pc.coalesce(objects, shards)).to_pylist())
        manifests.update(shard.rpartition("@")[0] for shard in pc.unique(shards).to_pylist())
    return {address for address in found if not (_is_row(address, manifests) or odd_name(address))}


def _is_row(address: str, manifests: Set[str]) -> bool:
    """Whether it is that of a row which names no object. A folder's lone objects are FOLDER/@DIGITS."""
    manifest, _, number = address.rpartition("#")
    return number.isdecimal() and manifest in manifests and not manifest.endswith("/")
