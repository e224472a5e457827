import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from hybrid_models.captioner.interface import CaptionerInterface
from hybrid_models.errors import UsageError
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference, Session
from pipelines.models.tracking import Tracker
from pipelines.nights import commit, infer, tables, upkeep
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.nights.rules import Rules
from pipelines.nights.tables import nights
from pipelines.places import InputOptions
from pipelines.reading import objects, units
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.manifests import list_input
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards, lone
from pipelines.staging import joining
from pipelines.staging.checks import RefusedError, incomplete, verify
from pipelines.staging.joining import Joined, Made
from pipelines.staging.pieces import table_schema
from pipelines.storage import lookup
from tests import tiny

NO_MLFLOW = "sqlite:////proc/nowhere/mlflow.db"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.read(tiny.write_translator(str(tmp_path_factory.mktemp("model"))))


def partition(place: object, ds: str = "2026-01-31") -> Partition:
    return Partition.of(f"{place}/tables", "translations", ds)


def night_of(artifact: Artifact, folder: Path, **options: object) -> Night:
    night = Night(list_shards(str(folder / "in")), partition(folder), Inference.of(artifact))
    return replace(night, **options)  # type: ignore[arg-type]


def run(night: Night) -> dict:
    return asdict(infer.infer(night, Resources(batch_size=8), Tracker(NO_MLFLOW)))


# ---- the loop ----------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("ray_cluster")
def test_a_night_of_many_files_is_packed_before_its_commit(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units of a shard each. Which are computed anew, and that the same night is no work, is as without packs."""
    monkeypatch.setattr(units, "UNIT_BYTES", 0)
    monkeypatch.setattr(joining, "LEAST_FILES", 5)
    for number in range(6):
        lines = [*tiny.sentences(2, seed=number), ""]
        storage.write_bytes(f"{tmp_path}/in/{number}.txt", "\n".join([*lines, "a"]).encode())

    def done() -> tuple[dict, list[str]]:
        summary = run(night_of(artifact, tmp_path, rules=Rules(max_error_fraction=0.5)))
        return summary, sorted(path.rpartition("/")[2][:10] for path in partition(tmp_path).files())

    summary, names = done()
    assert names == ["pack-of-6-"]
    assert (summary["shards_computed"], summary["rows"], summary["errors"]) == (6, 24, {"EmptyText": 6})
    assert [(n.rows, n.bad) for n in nights(DeltaTable(partition(tmp_path).table))] == [(24, 6)]
    before = rows_of(tmp_path)
    again, same = done()
    assert (again["version"], again["shards_computed"], same) == (None, 0, names)
    storage.write_bytes(f"{tmp_path}/in/3.txt", b"another", storage.anything)
    summary, names = done()
    assert (summary["shards_computed"], summary["rows_computed"], summary["rows"]) == (1, 1, 21)
    assert [name[:6] for name in names] == ["3.txt-", "pack-o"], "the others' rows are in a new pack; two files are few"
    for number in range(6, 9):
        storage.write_bytes(f"{tmp_path}/in/{number}.txt", b"more")
    summary, names = done()
    assert (summary["shards_computed"], summary["rows"], names) == (3, 24, ["pack-of-9-"])
    now = rows_of(tmp_path)
    assert {id_: now[id_] for id_ in before if "3.txt" not in id_} == {
        id_: row for id_, row in before.items() if "3.txt" not in id_
    }


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_job_that_listed_before_another_one_does_not_take_late_rows_out_again(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Its computation may take longer than it takes the next day's job to find more, and to commit them."""
    storage.write_bytes(f"{tmp_path}/in/0.txt", b"a\nb")
    if again:
        run(night_of(artifact, tmp_path))
        storage.write_bytes(f"{tmp_path}/in/0.txt", b"a\nb\nc", storage.anything)
    slow, renew = night_of(artifact, tmp_path), upkeep.renew
    seen = infer.check(slow)

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(upkeep, "renew", renew)
        storage.write_bytes(f"{tmp_path}/in/late.txt", b"late")
        run(night_of(artifact, tmp_path))
        return renew(*args)

    monkeypatch.setattr(upkeep, "renew", meanwhile)
    with pytest.raises(RuntimeError, match=rf"with 1 shards that .* as {tmp_path}/in/late.txt: .* start it again$"):
        infer.infer(slow, Resources(batch_size=8), Tracker(NO_MLFLOW), seen)
    assert sorted(row["source"] for row in rows_of(tmp_path).values()) == ["a", "b", *["c"] * again, "late"]
    fewer = replace(slow, rules=Rules(allow_missing=True))
    assert run(fewer)["rows"] == 2 + again, "as whoever allows that wants"


@pytest.mark.usefixtures("ray_cluster")
def test_an_object_that_comes_back_is_read_by_the_same_night_again(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was: by its address and its etag it is the same, so that its piece has the same name."""
    manifest = tmp_path / "in.tsv"
    for name in ("a", "b", "c"):
        storage.write_bytes(f"{tmp_path}/in/{name}.txt", name.encode())
    manifest.write_text("text\n" + "".join(f"{tmp_path}/in/{name}.txt\n" for name in ("a", "b", "c")))
    found = list_input([str(manifest)], InputOptions("text", (str(tmp_path),)), Limits()).shards
    night = night_of(artifact, tmp_path, shards=found, rules=Rules(max_error_fraction=0.5))
    away = tmp_path / "away"
    (tmp_path / "in/b.txt").rename(away)
    first = run(night)
    assert (first["rows"], first["errors"]) == (3, {"ObjectGone": 1})
    passing = night.partition.files()
    away.rename(tmp_path / "in/b.txt")
    again = run(night)
    assert (again["shards_computed"], again["rows"], again["ok"], again["errors"]) == (1, 3, 3, {})
    assert sorted(row["source"] for row in rows_of(tmp_path).values()) == ["a", "b", "c"]
    assert night.partition.files().isdisjoint(passing)
    assert (run(night)["shards_computed"], run(night)["version"]) == (0, None)


@pytest.fixture
def six(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    """A night of six files, which are enough to be packed."""
    monkeypatch.setattr(units, "UNIT_BYTES", 0)
    monkeypatch.setattr(joining, "LEAST_FILES", 5)
    for number in range(6):
        storage.write_bytes(f"{tmp_path}/in/{number}.txt", b"a\nb")
    return night_of(artifact, tmp_path)


def names_of(night: Night) -> list[str]:
    return sorted(path.rpartition("/")[2][:10] for path in night.partition.files())


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_that_ended_before_it_was_packed_is_packed_when_it_goes_on(
    six: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this process, as the packs are few."""
    assert len(stage_and_stop(six)) == 6
    monkeypatch.setattr(infer, "_on_nodes", raising(AssertionError("they are few")))
    summary = run(six)
    assert (summary["shards_computed"], summary["rows"], names_of(six)) == (0, 12, ["pack-of-6-"])
    assert run(six)["version"] is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_that_is_refused_for_its_errors_has_packed_nothing(six: Night) -> None:
    """As its writers told; it is packed when it is let through."""
    storage.write_bytes(six.shards[0].uri, b"a\n\n", storage.anything)
    bad = night_of(six.inference.artifact, Path(six.partition.tables).parent)
    with pytest.raises(RefusedError, match=r"1 of 12 samples are bad \(most: 1 x EmptyText\)"):
        run(bad)
    assert not any("pack-of" in file.name for file in storage.list_files(bad.folder))
    assert run(replace(bad, rules=Rules(max_error_fraction=0.5)))["shards_computed"] == 0
    assert names_of(bad) == ["pack-of-6-"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_that_cannot_be_packed_is_committed_as_it_was_staged(
    six: Night, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """But for what was packed by then. And it is no work, the same again, though packs could be written then."""
    stage_for_three_packs(six, monkeypatch)
    tries = []

    def write(packs: Sequence[Joined]) -> list[Made]:
        tries.append(len(packs))
        joining.write(packs[: 2 - len(tries)])
        raise storage.StorageError("cannot write x: no space left")

    with monkeypatch.context() as patched:
        patched.setattr(infer, "_on_nodes", write)
        patched.setattr(joining, "LEAST_FILES", 4)
        patched.setattr(joining, "WRITERS", 1)
        summary = run(six)
    assert tries == [3, 2]
    assert (summary["changed"], summary["rows"], summary["ok"]) == (True, 12, 12)
    assert [name[:6] for name in names_of(six)] == ["2.txt-", "3.txt-", "4.txt-", "5.txt-", "pack-o"]
    assert "what is not packed by now stays as it is: cannot write x: no space left" in caplog.text
    monkeypatch.setattr(joining, "LEAST_FILES", 2)
    assert (run(six)["version"], len(names_of(six))) == (None, 5)


@pytest.mark.usefixtures("ray_cluster")
def test_packing_waits_for_a_store_that_was_away(
    six: Night, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than its client asks again: the rest is packed, too."""
    stage_for_three_packs(six, monkeypatch)
    waits = []

    def write(packs: Sequence[Joined]) -> list[Made]:
        if waits:
            return joining.write(packs)
        joining.write(packs[:1])
        raise storage.StorageError("cannot read x: 500")

    monkeypatch.setattr(infer, "_on_nodes", write)
    monkeypatch.setattr(joining, "LEAST_FILES", 4)
    monkeypatch.setattr(storage, "wait_for", lambda *given: waits.append(given))
    summary = run(six)
    assert waits == [(six.folder, infer.AWAY_SECONDS)]
    assert (summary["rows"], summary["ok"], names_of(six)) == (12, 12, 3 * ["pack-of-2-"])
    assert "packing is tried once more, when the store answers: cannot read x: 500" in caplog.text


@pytest.mark.usefixtures("ray_cluster")
def test_a_store_that_stays_away_keeps_a_night_from_its_commit(six: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_and_stop(six)
    with monkeypatch.context() as patched:
        patched.setattr(joining, "write", raising(storage.StorageError("cannot read x: 500")))
        patched.setattr(infer, "AWAY_SECONDS", 0)
        patched.setattr(lookup, "exists", raising(storage.StorageError("cannot look up x: connection refused")))
        with pytest.raises(storage.StorageError, match="connection refused"):
            infer._files(six, verify(six.shards, six.folder), False)
    assert six.partition.files() == set()


@pytest.mark.usefixtures("ray_cluster")
def test_without_a_cluster_a_night_that_is_staged_is_packed_all_the_same(
    six: Night, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage_for_three_packs(six, monkeypatch)
    monkeypatch.setattr(infer.connection, "start", raising(ConnectionError("nobody answers at RAY_ADDRESS")))
    assert (run(six)["rows"], names_of(six)) == (12, 3 * ["pack-of-2-"])
    assert "this process alone packs its files: nobody answers" in caplog.text


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_file_keeps_a_night_that_is_packed_from_its_commit(six: Night) -> None:
    """Each time, and not only until nothing is left to compute; without the file it is made again."""
    (staged, *_) = stage_and_stop(six)
    whole = storage.read_bytes(staged)
    storage.write_bytes(staged, whole[: len(whole) // 2], storage.anything)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=rf"^{re.escape(staged)} is damaged .+: take it away, and infer its night"
        ):
            run(six)
        assert six.partition.files() == set()
    storage.delete(staged, storage.anything)
    summary = run(six)
    assert (summary["shards_computed"], summary["rows"], names_of(six)) == (1, 12, ["pack-of-6-"])


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_pack_is_named_before_any_work_and_can_be_taken_away(six: Night) -> None:
    run(six)
    (path,) = six.partition.files()
    pack = storage.join(six.partition.table, path)
    whole = storage.read_bytes(pack)
    storage.write_bytes(pack, whole[: len(whole) // 2], storage.anything)
    with pytest.raises(
        RuntimeError, match=rf"^{re.escape(pack)} is damaged .+: take it away, and infer its night again$"
    ):
        infer.check(six)
    storage.delete(pack, storage.anything)
    infer.check(six)
    summary = run(six)
    assert (summary["shards_computed"], summary["rows"], names_of(six)) == (0, 12, ["pack-of-6-"])


def stage_for_three_packs(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages six files, of which two have room in a pack, and three packs are too many for the driver alone."""
    largest = max(storage.info(uri).size for uri in stage_and_stop(night))
    monkeypatch.setattr(joining, "PACK_BYTES", 2 * largest + 2)
    monkeypatch.setattr(joining, "WRITERS", 2)


def stage_and_stop(night: Night) -> list[str]:
    """The files of a night that ended before it was packed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(infer, "_on_nodes", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(night)
    return sorted(file.uri for file in storage.list_files(night.folder))


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of its table by their ids."""
    found = DeltaTable(partition(folder).table).to_pyarrow_table().to_pylist()
    assert len({row["sample_id"] for row in found}) == len(found)
    return {row["sample_id"]: row for row in found}


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_is_what_the_model_says_of_every_row(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {"a.txt": tiny.sentences(13, seed=1), "b.txt": ["", *tiny.sentences(4, seed=2), "x" * 300]}
    for name, texts in lines.items():
        storage.write_bytes(str(tmp_path / "in" / name), ("\n".join(texts) + "\n").encode())
    night = night_of(artifact, tmp_path, rules=Rules(max_error_fraction=0.5))
    summary = run(night)

    assert (summary["rows"], summary["ok"], summary["shards"], summary["shards_computed"]) == (19, 17, 2, 2)
    assert sum(summary["errors"].values()) == 2
    assert (summary["changed"], summary["version"], summary["ds"]) == (True, 1, "2026-01-31")
    assert summary["staged_bytes"] == sum(path.stat().st_size for path in Path(night.folder).iterdir())
    assert summary["seconds"]["predict"] > 0
    assert summary["seconds"]["decode"] > 0

    rows = (
        DeltaTable(night.partition.table).to_pyarrow_table().sort_by([("shard", "ascending"), ("index", "ascending")])
    )
    assert rows.schema.names == [*night.schema.names, "ds"]
    good = rows.filter(pa.compute.equal(rows["status"], "ok")).to_pylist()
    texts = [*lines["a.txt"], *lines["b.txt"][1:-1]]
    assert [row["source"] for row in good] == texts
    assert [row["translation"] for row in good] == tiny.translator().translate(texts, beam_size=1, max_length=12)
    assert {(row["fingerprint"], row["model"], row["model_version"]) for row in rows.to_pylist()} == {
        (night.fingerprint, artifact.model, artifact.version)
    }
    assert rows["index"].to_pylist() == [*range(13), *range(6)]
    assert [row["sample_id"] for row in rows.to_pylist() if row["last"]] == ["a.txt:12", "b.txt:5"]
    assert len(set(rows["run_id"].to_pylist())) == 1
    table = DeltaTable(night.partition.table)
    told = table.history(1)[0]
    assert (told["rows"], told["rows_lost"], told["run_id"]) == ("19", "0", summary["run_id"])
    assert json.loads(told["errors"]) == summary["errors"]
    assert [(stored.rows, stored.bad) for stored in nights(table)] == [(19, 2)]

    opened = [0]

    class Counted(DeltaTable):
        def __init__(self, *args: Any) -> None:
            opened[0] += 1
            super().__init__(*args)

    for module in (commit, tables):
        monkeypatch.setattr(module, "DeltaTable", Counted)
    infer.check(night)
    again = run(night)
    assert opened[0] == 3, "to be checked, to be committed to, and to be tidied"
    assert (again["shards_computed"], again["rows_computed"], again["rows"]) == (0, 0, 19)
    assert (again["changed"], again["version"]) == (False, None)
    assert again["errors"] == summary["errors"]

    opened[0] = 0
    next_one = replace(night, partition=partition(tmp_path, "2026-02-01"))
    infer.check(next_one)
    assert run(next_one)["version"] == 2
    assert opened[0] == 3


@pytest.mark.usefixtures("ray_cluster")
def test_too_many_bad_samples_are_refused_before_the_commit(artifact: Artifact, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "in/a.txt"), ("ok\n" * 3 + "x" * 300 + "\n").encode())
    with pytest.raises(RefusedError, match=r"1 of 4 samples are bad \(most: 1 x \w+\)"):
        run(night_of(artifact, tmp_path, rules=Rules(max_error_fraction=0.24)))
    assert not (tmp_path / "tables/translations/_delta_log").exists()
    assert run(night_of(artifact, tmp_path, rules=Rules(max_error_fraction=0.25)))["shards_computed"] == 0, (
        "staged rows are kept"
    )


# ---- what it decides by ------------------------------------------------------------------------------------------
def test_the_staging_folder_tells_night_and_fingerprint(artifact: Artifact, tmp_path: Path) -> None:
    tiny.write_sentences(str(tmp_path / "in"), 1, 1)
    night = night_of(artifact, tmp_path)
    assert night.folder == f"{tmp_path}/tables/translations/ds=2026-01-31/{night.fingerprint[:12]}"
    wide = night_of(artifact, tmp_path, inference=Inference(artifact, TranslatorDecoding(beam_size=4)))
    short = night_of(artifact, tmp_path, inference=Inference.of(artifact, Limits(max_bytes=9)))
    assert len({night.folder, wide.folder, short.folder}) == 3
    assert night_of(artifact, tmp_path, partition=partition(tmp_path, "2026-02-01")).fingerprint == night.fingerprint


def test_a_table_of_other_columns_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    tiny.write_sentences(str(tmp_path / "in"), 1, 1)
    night = night_of(artifact, tmp_path)
    infer.check(night)
    schema = table_schema(pa.schema([pa.field("translation", pa.string())])).append(pa.field("ds", pa.string()))
    DeltaTable.create(night.partition.table, schema, partition_by=["ds"])
    with pytest.raises(UsageError, match=r"translations has other columns than this version writes \(no \w+\): use"):
        infer.check(night)


# ---- a night whose input has shrunk ------------------------------------------------------------------------------
@pytest.fixture
def stored(place: str, tmp_path: Path) -> Night:
    """A night of four shards in its table, computed in this process."""
    tiny.write_sentences(f"{place}/in", 4, 3)
    model = tiny.write_translator(str(tmp_path / "model"))
    tiny.write_night(f"{place}/tables", "2026-01-31", f"{place}/in", model)
    artifact = artifacts.read(model)
    return Night(list_shards(f"{place}/in"), partition(place), Inference.of(artifact))


def listed_again(night: Night, folder: str = "", **changes: object) -> Night:
    folder = folder or night.shards[0].uri.rsplit("/", 1)[0]
    return replace(night, shards=list_shards(folder), **changes)  # type: ignore[arg-type]


def test_shards_that_are_gone_are_refused(stored: Night) -> None:
    first, *others = [shard.uri for shard in stored.shards]
    for uri in others:
        storage.delete(uri, storage.anything)
    with pytest.raises(RefusedError) as caught:
        infer.check(listed_again(stored))
    assert str(caught.value) == (
        f"{stored.partition}: 3 of its shards are gone, such as {', '.join(others)}: "
        "nothing was changed; bring them back, or let their rows go by `allow_missing`"
    )
    infer.check(listed_again(stored, rules=Rules(allow_missing=True)))
    infer.check(listed_again(stored, partition=replace(stored.partition, ds="2026-02-01")))
    storage.write_bytes(others[0].replace("part-00001", "renamed"), storage.read_bytes(first))
    with pytest.raises(RefusedError, match="3 of its shards are gone"):
        infer.check(listed_again(stored))


def test_shards_that_were_replaced_or_came_late_are_not_gone(stored: Night) -> None:
    infer.check(stored)
    for shard in stored.shards[1:]:
        storage.write_bytes(shard.uri, b"another sentence\n", storage.anything)
    tiny.write_sentences(stored.shards[0].uri.rsplit("/", 1)[0] + "/late", 1, 2)
    wider = Inference(stored.inference.artifact, TranslatorDecoding(beam_size=2))
    again = listed_again(stored, inference=wider)
    assert len(again.shards) == 5
    infer.check(again)


def test_a_night_whose_files_are_gone_is_mended(stored: Night, caplog: pytest.LogCaptureFixture) -> None:
    for piece in verify(stored.shards, stored.folder):
        storage.delete(piece.file.uri, storage.anything)
    storage.write_bytes(stored.shards[0].uri, b"another sentence\n", storage.anything)
    infer.check(listed_again(stored))
    (said,) = [record.getMessage() for record in caplog.records if record.name == infer.__name__]
    assert said.startswith(f"{stored.partition.table} lacks its file ds=2026-01-31/")


def test_shards_of_a_unit_that_are_gone_are_refused_and_others_are_not_read(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit that is listed as it was tells by its name that all its shards are there."""
    tiny.write_sentences(str(tmp_path / "in"), 40, 1)
    monkeypatch.setattr(units, "UNIT_BYTES", 50_000)
    night = night_of(artifact, tmp_path)
    first, *others = units.units(night.shards)
    assert len(others) >= 3
    for part in incomplete(night.shards, night.folder):
        row = {"shard": part.shard.uri, "index": 0, "last": True, "status": "ok"}
        tiny.stage(night.folder, night.schema, part, pa.Table.from_pylist([row], schema=night.schema))
    pieces = verify(night.shards, night.folder)
    commit.commit_night(night.partition, pieces, night.schema, {"run_id": "run"})
    for piece in pieces:
        if not piece.file.name.startswith(first.key):
            Path(piece.file.uri).unlink()
    infer.check(night)
    gone = first.shards[0].uri
    fewer = replace(night, shards=[shard for shard in night.shards if shard.uri != gone])
    with pytest.raises(RefusedError, match=f"1 of its shards are gone, such as {gone}: nothing was changed"):
        infer.check(fewer)
    infer.check(replace(fewer, rules=Rules(allow_missing=True)))


# ---- lone objects ------------------------------------------------------------------------------------------------
def test_a_photograph_that_comes_costs_its_group_and_one_that_goes_is_missed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "GROUP_OBJECTS", 4)
    model = tiny.write_captioner(str(tmp_path / "model"))
    for number in range(12):
        storage.write_bytes(f"{place}/in/{number:02d}.jpg", tiny.jpeg(number))
    storage.write_bytes(f"{place}/in/torn.jpg", tiny.jpeg(0)[:200])
    tiny.write_night(f"{place}/tables", "2026-01-31", f"{place}/in", model)
    artifact = artifacts.read(model)
    night = Night(
        list_shards(f"{place}/in"),
        Partition.of(f"{place}/tables", artifact.table, "2026-01-31"),
        Inference.of(artifact),
    )
    assert len(night.shards) > 3
    assert incomplete(night.shards, night.folder) == []
    rows = DeltaTable(night.partition.table).to_pyarrow_table().to_pylist()
    assert sorted(row["object"] for row in rows) == sorted(uri for shard in night.shards for uri in shard.addresses)
    assert {row["sample_id"] for row in rows if row["status"] == "error"} == {"torn.jpg"}
    alone = Session(night.inference.artifact.load(), night.inference.decoding, Limits())
    for row in rows[:3]:
        (raw,) = read_blocks(lone(row["object"]), ReadOptions())
        assert alone.answer(raw)["caption"].to_pylist() == [row["caption"]], "as if it had come alone"

    storage.write_bytes(f"{place}/in/late.jpg", tiny.jpeg(99))
    later = listed_again(night, f"{place}/in")
    assert 1 <= len(incomplete(later.shards, later.folder)) <= 2, "two if it was full"
    infer.check(later)
    storage.delete(f"{place}/in/03.jpg", storage.anything)
    with pytest.raises(
        RefusedError, match=rf"1 of its shards are gone, such as {place}/in/03.jpg: nothing was changed"
    ):
        infer.check(listed_again(night, f"{place}/in"))


def test_a_manifests_row_that_named_nothing_may_be_mended(tmp_path: Path) -> None:
    """It is no object that is gone, whatever stands in its place now, or above it."""
    model = tiny.write_captioner(str(tmp_path / "model"))
    for number in range(4):
        storage.write_bytes(f"{tmp_path}/in/{number}.jpg", tiny.jpeg(number))
    night = Night([], Partition.of(f"{tmp_path}/tables", "captions", "2026-01-31"), Inference.of(artifacts.read(model)))

    def listed(*names: str | None) -> Night:
        text = "".join(json.dumps({"uri": name}) + "\n" for name in names)
        storage.write_bytes(f"{tmp_path}/in/m.jsonl", text.encode(), storage.anything)
        return replace(night, shards=list_input([f"{tmp_path}/in/m.jsonl"], InputOptions(uri_column="uri")).shards)

    first = listed("0.jpg", None, "2.jpg")
    rows = [
        {"shard": shard.uri, "object": uri, "index": i, "status": "error" if "#" in uri else "ok"}
        for shard in first.shards
        for i, uri in enumerate(shard.addresses)
    ]
    assert f"{tmp_path}/in/m.jsonl#1" in {row["object"] for row in rows}
    for part in incomplete(first.shards, first.folder):
        own = [{**row, "last": False} for row in rows if row["shard"] == part.shard.uri]
        own[-1]["last"] = True
        tiny.stage(first.folder, first.schema, part, pa.Table.from_pylist(own, schema=first.schema))
    commit.commit_night(first.partition, verify(first.shards, first.folder), first.schema, {"run_id": "run"})
    infer.check(listed("0.jpg", "1.jpg", "2.jpg"))
    infer.check(listed("3.jpg", "0.jpg", None, "2.jpg"))
    infer.check(listed("0.jpg", "2.jpg"))
    with pytest.raises(RefusedError, match=rf"1 of its shards are gone, such as {tmp_path}/in/2.jpg: nothing"):
        infer.check(listed("0.jpg", None))


def test_what_nothing_was_read_of_may_be_renamed_and_what_looks_like_a_row_is_missed(place: str) -> None:
    """An object whose name looks as if it held a password is told to be; one called #1.jpg is an object like others."""
    schema = table_schema(CaptionerInterface.payload_schema)
    names = ["#1.jpg", "#2", "a.jpg?key=1.jpg"]
    rows = [{"shard": f"{place}/in/@0", "object": f"{place}/in/{name}", "status": "ok"} for name in names]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream)
    expected = {f"{place}/in/{name}" for name in names[: 3 if storage.is_local(place) else 2]}
    assert infer._sources(pq.ParquetFile(stream)) == expected


# ---- what is counted and verified --------------------------------------------------------------------------------
def test_rows_that_are_lost_count(stored: Night) -> None:
    """One row says that 30 more are lost with it: of 42 rows 31 are bad, not one of twelve."""
    assert (run(stored)["rows"], run(stored)["rows_lost"]) == (12, 0)
    piece = verify(stored.shards, stored.folder)[0].file.uri
    rows = pq.read_table(io.BytesIO(storage.read_bytes(piece))).to_pylist()
    rows[-1] |= {"status": "error", "error": "ShardReadError: torn", "lost_rows": 30}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=stored.schema), buffer)
    storage.write_bytes(piece, buffer.getvalue(), storage.anything)
    summary = run(replace(stored, rules=Rules(max_error_fraction=0.75)))
    assert (summary["rows"], summary["rows_lost"], summary["ok"]) == (12, 30, 11)
    assert summary["errors"] == {"ShardReadError": 31}
    with pytest.raises(RefusedError, match=r"31 of 42 samples are bad \(most: 31 x ShardReadError\)"):
        run(replace(stored, rules=Rules(max_error_fraction=0.7)))


def test_what_was_tidied_is_told(stored: Night) -> None:
    storage.write_bytes(f"{stored.partition.folder}/notes.txt", b"theirs")
    summary = run(stored)
    assert (summary["files_removed"], summary["bytes_removed"], summary["files_unknown"]) == (0, 0, 1)
    assert storage.exists(f"{stored.partition.folder}/notes.txt")


def test_files_that_vanish_while_they_are_committed_are_noticed(stored: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job may have tidied what had waited for its commit for too long: the night is done again."""
    commit_night, first = commit.commit_night, verify(stored.shards, stored.folder)[0].file.uri

    def late(*args: Any) -> int | None:
        version = commit_night(*args)
        storage.delete(first, storage.anything)
        return version

    monkeypatch.setattr(commit, "commit_night", late)
    with pytest.raises(RuntimeError, match=r"^\S*/part-00000\.txt-\S* is gone from its folder: start"):
        run(stored)
    assert [part.shard.uri for part in incomplete(stored.shards, stored.folder)] == [stored.shards[0].uri]
