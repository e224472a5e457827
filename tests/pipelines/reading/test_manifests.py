"""Manifests: what their rows name is read if it is allowed, and every row is a row."""

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from pipelines import places, storage
from pipelines.places import InputOptions
from pipelines.reading import manifests, objects
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.manifests import address_of, list_input, list_members, list_references
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import NoShardsError, Shard, list_shards
from pipelines.storage.addresses import filesystem
from tests import tiny
from tests.servers import BUCKET, GUEST_KEYS, GUESTS

NAMED = InputOptions(uri_column="photo")


def listed(uri: str, options: InputOptions) -> list[Shard]:
    return list_input([uri], options).shards


def rows_of(shards: Sequence[Shard]) -> list[dict]:
    found = [row for shard in shards for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]
    return sorted(found, key=lambda row: row["sample_id"])


def written(rows: Sequence[dict], suffix: str) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".tsv":
        return "\n".join(
            "\t".join(map(str, line)) for line in [list(rows[0]), *(row.values() for row in rows)]
        ).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


TOLD_OF_A_MILLION = """
import json, re, sys
from collections import Counter
from pathlib import Path
from pipelines.places import InputOptions
from pipelines.reading.manifests import list_input
shards = list_input([sys.argv[1]], InputOptions("photo")).shards
members = [member for shard in shards for member in shard.members]
print(json.dumps({
    "rows": len({member.sample_id for member in members}),
    "members": len(members),
    "largest": max(len(shard.members) for shard in shards),
    "named": len({member.uri for member in members}),
    "problems": Counter(member.problem.partition(":")[0] for member in members),
    "peak": int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10,
}))
"""

UNREADABLE = (
    (".parquet", b"", "ShardReadError: ArrowInvalid: Parquet file size is 0 bytes"),
    (".parquet", written([{"photo": "a.jpg"}], ".parquet")[:200], "ShardReadError: ArrowInvalid: Parquet magic bytes"),
    (".parquet", b'{"photo": "a.jpg"}\n', "ShardReadError: ArrowInvalid: Parquet magic bytes"),
    (".tsv", b"", "has no rows"),
    (".tsv", b"photo", "has no rows"),
    (".tsv", bytes(1000), "has no rows"),
    (".tsv", b"\xff\xfe\n\xff", "TextDecodeError: UTF-16, not UTF-8"),
    (".tsv.gz", b"x", "ShardReadError: BadGzipFile"),
    (".jsonl", b"", "has no rows"),
    (".jsonl", b"[" * 100_000, "JsonDecodeError: maximum recursion depth"),
    (".jsonl", b"PAR1" + bytes(100) + b"PAR1", "JsonDecodeError: Expecting value: line 1"),
    (".jsonl.gz", b"", "has no rows"),
    (".jsonl.gz", b"\x1f\x8b\x08no", "ShardReadError: EOFError"),
)
"""Torn, empty, or mistaken for another kind: what is said of them, in a row or before any work."""


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".parquet"])
def test_every_row_of_a_manifest_is_a_row(place: str, suffix: str) -> None:
    for name in ("a.jpg", "deep/b.png"):
        storage.write_bytes(f"{place}/photos/{name}", name.encode())
    addresses = [
        "photos/a.jpg",
        f"{place}/photos/deep/b.png",
        "photos/a.jpg",
        "photos/gone.jpg",
        "photos/notes.doc",
        "",
    ]
    rows = [{"id": str(n), "photo": address, "product": f"p{n}"} for n, address in enumerate(addresses)]
    storage.write_bytes(f"{place}/night{suffix}", written(rows, suffix))
    found = rows_of(listed(f"{place}/night{suffix}", NAMED))
    assert [row["sample_id"] for row in found] == list("012345")
    assert [json.loads(row["fields"])["product"] for row in found[:3]] == ["p0", "p1", "p2"]
    assert [(row["media"], row["media_type"], row["error"]) for row in found[:3]] == [
        (b"a.jpg", "jpg", None), (b"deep/b.png", "png", None), (b"a.jpg", "jpg", None),
    ]  # fmt: skip
    assert [row["object"] for row in found[:4]] == [
        f"{place}/photos/{name}" for name in ("a.jpg", "deep/b.png", "a.jpg", "gone.jpg")
    ]
    assert found[3]["error"] == f"ObjectMissing: there is no {place}/photos/gone.jpg"
    assert found[4]["error"].startswith("UnsupportedMedia: ")
    assert found[5]["error"] == "AddressMissing: the row names no object"
    assert found[5]["object"] == f"{place}/night{suffix}#5"


@pytest.mark.parametrize("many", [1, 120])
def test_a_name_that_looks_like_a_secret_costs_its_row_alone(s3: str, many: int) -> None:
    for n in range(many):
        storage.write_bytes(f"{s3}/photos/{n:03d}.jpg", b"x")
    odd = f"{s3}/photos/image.php?key=42.jpg"
    fs, path = filesystem(s3)
    fs.pipe_file(f"{path}/photos/image.php?key=42.jpg", b"x")
    addresses = [*(f"photos/{n:03d}.jpg" for n in range(many)), odd, f"{s3}/photos/x.php?token=none.jpg"]
    rows = [{"id": f"{n:03d}", "photo": address} for n, address in enumerate(addresses)]
    storage.write_bytes(f"{s3}/night.jsonl", written(rows, ".jsonl"))
    *good, first, second = rows_of(listed(f"{s3}/night.jsonl", NAMED))
    assert [row["error"] for row in good] == [None] * many
    for row in (first, second):
        assert row["error"].startswith("AddressNotAllowed: ")
        assert "42.jpg" not in row["error"]
        assert row["object"] == f"{s3}/night.jsonl#{int(row['sample_id'])}", "tables show it"


@pytest.mark.parametrize("many", [1, 120])
def test_an_object_that_is_not_given_to_us_costs_its_row(
    s3: str, with_keys: Callable[[Mapping[str, str]], None], many: int
) -> None:
    """As where a stranger names what we may not see, or a policy keeps something from us."""
    ours, shut = s3.replace(f"{BUCKET}/", f"{BUCKET}/{GUESTS}/"), f"{s3}/shut.jpg"
    for uri in (f"{ours}/a.jpg", shut):
        storage.write_bytes(uri, b"x")
    addresses = ["a.jpg", shut, *(f"gone-{n}.jpg" for n in range(many - 1))]
    storage.write_bytes(f"{ours}/m.jsonl", written([{"photo": address} for address in addresses], ".jsonl"))
    with_keys(GUEST_KEYS)
    found = rows_of(listed(f"{ours}/m.jsonl", NAMED))
    assert [row["media"] for row in found if row["error"] is None] == [b"x"]
    told = Counter(row["error"].partition(":")[0] for row in found if row["error"])
    assert told == Counter(ObjectForbidden=1, ObjectMissing=many - 1)
    (forbidden,) = (row["error"] for row in found if row["object"] == shut)
    assert forbidden == (
        f"ObjectForbidden: cannot look up {shut}: Forbidden: allow it to be read, or take it from the input"
    )


def test_where_nothing_that_a_manifest_names_is_given_to_us_the_night_stops(
    s3: str, with_keys: Callable[[Mapping[str, str]], None]
) -> None:
    ours = s3.replace(f"{BUCKET}/", f"{BUCKET}/{GUESTS}/")
    names = [f"{s3}/{number}.jpg" for number in range(objects.FORBIDDEN)]
    for uri in names:
        storage.write_bytes(uri, b"x")
    for name, some in (("all", names), ("few", names[1:])):
        rows = [{"photo": address} for address in [*some, "gone.jpg"]]
        storage.write_bytes(f"{ours}/{name}.jsonl", written(rows, ".jsonl"))
    with_keys(GUEST_KEYS)
    with pytest.raises(storage.ForbiddenError, match=f"cannot look up {s3}/.*: Forbidden, as were all 8 that .*/all"):
        listed(f"{ours}/all.jsonl", NAMED)
    assert len(rows_of(listed(f"{ours}/few.jsonl", NAMED))) == objects.FORBIDDEN


@pytest.mark.parametrize("name", [*GUEST_KEYS])
def test_keys_that_are_wrong_are_no_matter_of_an_object(
    s3: str, with_keys: Callable[[Mapping[str, str]], None], name: str
) -> None:
    storage.write_bytes(f"{s3}/a.jpg", b"x")
    with_keys({name: "wrong"})
    with pytest.raises(storage.StorageError, match="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        storage.look_up({f"{s3}/a.jpg"})
    assert not isinstance(caught.value, storage.ForbiddenError)


def test_a_text_that_a_manifest_names_is_one_row(place: str) -> None:
    """Fields of the manifest stand for those of the text, as in shards."""
    texts = {
        "a.txt": "\ufeffEine Zeile.\nNoch eine.\r\n".encode(), "b.TXT": b"x", "c.txt": b"", "d.txt": b"\xff\xfea\0",
        "e.txt": b"\xe4",
    }  # fmt: skip
    for name, content in texts.items():
        storage.write_bytes(f"{place}/{name}", content)
    rows = [{"id": name, "photo": name, "shop": "7"} for name in texts]
    storage.write_bytes(f"{place}/m.jsonl", written([*rows, {"id": "f", "photo": "a.txt", "text": "own"}], ".jsonl"))
    found = rows_of(listed(f"{place}/m.jsonl", NAMED))
    fields = [json.loads(row["fields"]) for row in found]
    assert [each.get("text") for each in fields] == ["Eine Zeile.\nNoch eine.", "x", "", None, None, "own"]
    assert all(each["shop"] == "7" for each in fields[:5])
    assert [row["error"] and row["error"][:40] for row in found] == [
        None, None, None, "TextDecodeError: UTF-16, not UTF-8: conv", "TextDecodeError: not UTF-8: 'utf-8' code", None,
    ]  # fmt: skip
    assert [row["object"] for row in found[:2]] == [f"{place}/a.txt", f"{place}/b.TXT"]
    assert all(row["media"] is None for row in found)


def test_references_are_shards_or_manifests_where_the_input_has_manifests(tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/photos/a.jpg", b"x")
    storage.write_bytes(f"{tmp_path}/photos/b.tar", b"")
    storage.write_bytes(f"{tmp_path}/lists/m.jsonl", b'{"photo": "../photos/a.jpg"}\n')
    named = InputOptions("photo", (str(tmp_path),))
    assert [shard.addresses for shard in list_references(f"{tmp_path}/lists", named)] == [[f"{tmp_path}/photos/a.jpg"]]
    for place, given in (("photos", named), ("photos", InputOptions()), ("lists", InputOptions())):
        assert list_references(f"{tmp_path}/{place}", given) == list_shards(f"{tmp_path}/{place}"), (place, given)


def test_a_stranger_names_nothing_outside_of_what_is_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in/a.jpg", tmp_path / "secret/b.jpg"
    for path in (inside, outside):
        path.parent.mkdir()
        path.write_bytes(b"x")
    (tmp_path / "in/link.jpg").symlink_to(outside)
    (tmp_path / "in/away").symlink_to(outside.parent)
    (tmp_path / "in/loop.jpg").symlink_to(tmp_path / "in/loop.jpg")
    (tmp_path / "in/good.jpg").symlink_to(inside)
    manifest = str(tmp_path / "in/m.jsonl")
    allowed = [places.place(str(tmp_path / "in"))]
    for good in ("a.jpg", "./a.jpg", str(inside), f"file://{inside}", "good.jpg"):
        assert address_of(good, manifest, allowed) == str(inside), good
    for name in ("~/x.jpg", "data:image/png;base64,AAAA"):  # names like any other
        assert address_of(name, manifest, allowed) == str(tmp_path / "in" / name)
    for bad in (
        "../secret/b.jpg", str(outside), f"file://{outside}", "link.jpg", "away/b.jpg", "file:///etc/passwd",
        "/etc/passwd", "/proc/self/environ", "s3://other/x.jpg", "http://169.254.169.254/latest/meta-data",
        "https://internal/x.jpg", "simplecache::file:///etc/passwd", "zip://x.jpg::file:///etc/x.zip",
        "memory://x.jpg", ".", "", "a.jpg\0.png", "FILE:///etc/passwd", "file://../x.jpg",
        "github://o:r@main/x.jpg", "away/../../secret/b.jpg", str(tmp_path / "in2/a.jpg"), "loop.jpg/x", "..",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"Address(NotAllowed|Missing)"):
            print(bad, address_of(bad, manifest, allowed))


def test_in_a_store_the_bucket_of_the_manifest_is_allowed() -> None:
    manifest, allowed = "s3://lake/lists/m.jsonl", [places.place("s3://lake")]
    assert address_of("s3://lake/photos/a b+ü.jpg", manifest, allowed) == "s3://lake/photos/a b+ü.jpg"
    assert address_of("x/a.jpg", manifest, allowed) == "s3://lake/lists/x/a.jpg"
    assert address_of("y" * 1018, manifest, allowed).endswith("lists/" + "y" * 1018)
    for long in ("y" * 1019, "ü" * 510, "\ud800" * 400):
        with pytest.raises(ValueError, match="AddressNotAllowed: no object's name has more than 1,024 bytes"):
            address_of(long, manifest, allowed)
    for bad in (
        "s3://lake2/a.jpg", "s3://lake", "s3://lake/", "s3://lake/../other/a.jpg", "s3://lake/x/../a.jpg", "../a.jpg",
        "/etc/passwd/../a.jpg", "file:///etc/passwd", "s3a://lake/a.jpg", "s3://user:secret@lake/a.jpg",
        "s3://lake//a.jpg", "gs://lake/a.jpg", "http://lake/a.jpg", "S3://lake/a.jpg", "local:///etc/x.jpg",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="AddressNotAllowed") as caught:
            print(bad, address_of(bad, manifest, allowed))
        assert "secret" not in str(caught.value)


def test_prefixes_widen_and_narrow_what_is_allowed(place: str) -> None:
    for name in ("one/a.jpg", "two/b.jpg", "lists/c.jpg"):
        storage.write_bytes(f"{place}/{name}", b"x")
    rows = [{"id": name[0], "photo": f"{place}/{name}"} for name in ("one/a.jpg", "two/b.jpg", "lists/c.jpg")]
    storage.write_bytes(f"{place}/lists/m.jsonl", written(rows, ".jsonl"))
    named = replace(NAMED, allow_prefix=(f"{place}/one", f"{place}/two/"))
    errors = {row["sample_id"]: row["error"] for row in rows_of(listed(f"{place}/lists/m.jsonl", named))}
    assert (errors["o"], errors["t"]) == (None, None)
    assert errors["l"].startswith(f"AddressNotAllowed: {place}/lists/c.jpg lies below none")


def test_one_row_that_changes_is_a_matter_of_its_group(tmp_path: Path) -> None:
    for number in range(700):
        storage.write_bytes(str(tmp_path / f"{number:03d}.jpg"), b"x")
    rows = [{"id": str(number), "photo": f"{number:03d}.jpg"} for number in range(700)]

    def groups() -> set[Shard]:
        storage.write_bytes(str(tmp_path / "m.jsonl"), written(rows, ".jsonl"), storage.anything)
        return set(listed(str(tmp_path / "m.jsonl"), NAMED))

    before = groups()
    assert len(before) > 2
    rows[17]["product"] = "another"
    assert len(before - groups()) == 1
    rows.append({"id": "700", "photo": "nowhere.jpg"})
    assert len(before - groups()) <= 2


def test_what_is_wrong_with_a_manifest_is_said_before_any_work(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "m.jsonl"), b'{"id": 1, "image": "a.jpg"}\n{"id": 2, "image": "b.jpg"}\n')
    with pytest.raises(
        UsageError, match=r"m.jsonl has no column 'photo', which `uri_column` names; its first row: .*image"
    ):
        listed(str(tmp_path / "m.jsonl"), NAMED)
    for suffix in (".jsonl", ".parquet"):
        storage.write_bytes(str(tmp_path / f"n{suffix}"), written([{"id": "1", "photo": None, "x": 1}], suffix))
        (row,) = rows_of(listed(str(tmp_path / f"n{suffix}"), NAMED))
        assert row["error"] == "AddressMissing: the row names no object"
    storage.write_bytes(str(tmp_path / "x.tar"), b"")
    with pytest.raises(UsageError, match=r"x.tar is no manifest \(\.parquet, \.jsonl, \.jsonl\.gz, \.tsv, \.tsv\.gz\)"):
        listed(str(tmp_path / "x.tar"), NAMED)
    storage.write_bytes(str(tmp_path / "e.jsonl"), b"\n")
    with pytest.raises(NoShardsError, match=r"e.jsonl has no rows"):
        listed(str(tmp_path / "e.jsonl"), NAMED)
    with pytest.raises(UsageError, match="`allow_prefix` goes with `uri_column`"):
        listed(str(tmp_path), InputOptions(allow_prefix=("s3://x",)))
    with pytest.raises(UsageError, match="https://x is no address of a known kind"):
        listed(str(tmp_path), InputOptions("photo", ("https://x",)))
    InputOptions("photo", ("data", "http", "s3://data")).check()


@pytest.mark.parametrize("address", ["x" * 5000, "a://" * 250_000, "file:///" + "\N{CLOUD}" * 5000])
def test_an_address_longer_than_any_is_refused(tmp_path: Path, address: str) -> None:
    storage.write_bytes(f"{tmp_path}/m.jsonl", written([{"id": "1", "photo": address}], ".jsonl"))
    (row,) = rows_of(listed(f"{tmp_path}/m.jsonl", NAMED))
    assert row["error"] == f"AddressNotAllowed: it has {len(address):,} characters, more than 4,096"


def test_a_name_longer_than_a_disk_has_is_of_no_object(tmp_path: Path) -> None:
    rows = [{"id": str(n), "photo": name} for n, name in enumerate(("x" * 300 + ".jpg", "y" * 300 + "/a.jpg", "a.jpg"))]
    storage.write_bytes(f"{tmp_path}/m.jsonl", written(rows, ".jsonl"))
    storage.write_bytes(f"{tmp_path}/a.jpg", b"x")
    found = rows_of(listed(f"{tmp_path}/m.jsonl", NAMED))
    assert [row["error"] and row["error"].split(":")[0] for row in found] == ["ObjectMissing", "ObjectMissing", None]


def test_texts_are_counted_as_python_holds_them() -> None:
    texts = ["a" * 1000, "\N{CLOUD}" * 1000, "\N{LATIN SMALL LETTER E WITH ACUTE}" + "a" * 999, None, ""]
    counted = manifests._held_bytes(pa.chunked_array([pa.array(texts[:2]), pa.array(texts[2:])]))
    assert sum(sys.getsizeof(text) - 80 for text in texts if text) < counted == 1000 + 4000 + 4000
    assert manifests._held_bytes(pa.chunked_array([], pa.string())) == 0


def test_rows_that_would_not_fit_the_memory_of_who_lists_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their number or by what they say, and those of several manifests together; before all of them are held."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr(manifests, "MOST_BYTES", 400 * manifests.ROW_BYTES)
    rows = [{"id": str(n), "photo": "a.jpg"} for n in range(200)]
    storage.write_bytes(f"{tmp_path}/in/a.jsonl", written(rows, ".jsonl"))
    allowed = InputOptions("photo", (str(tmp_path),))
    assert len(rows_of(listed(f"{tmp_path}/in", allowed))) == len(list_members(f"{tmp_path}/in", allowed)) == 200
    storage.write_bytes(f"{tmp_path}/long/a.jsonl", written([*rows, {"photo": "x" * 200_000}], ".jsonl"))
    storage.write_bytes(f"{tmp_path}/in/b.jsonl", written(rows, ".jsonl"))
    for folder, which in (("in", "b"), ("long", "a")):
        for read in (listed, list_members):
            with pytest.raises(UsageError, match=rf"/{which}.jsonl: the rows of these manifests need more than 0 GiB"):
                read(f"{tmp_path}/{folder}", allowed)


@pytest.mark.parametrize(("suffix", "content", "said"), UNREADABLE)
def test_an_unreadable_manifest_is_one_row_or_a_refusal(tmp_path: Path, suffix: str, content: bytes, said: str) -> None:
    storage.write_bytes(f"{tmp_path}/m{suffix}", content)
    try:
        (row,) = rows_of(listed(f"{tmp_path}/m{suffix}", NAMED))
    except NoShardsError as error:
        row = {"error": str(error).removeprefix(f"{tmp_path}/m{suffix} ")}
    assert row["error"].startswith(said)


def test_a_torn_manifest_tells_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    storage.write_bytes(str(tmp_path / "m.jsonl"), b'{"id": "1", "photo": "a.jpg"}\n{"id": "2", "photo"\n')
    found = rows_of(listed(str(tmp_path / "m.jsonl"), NAMED))
    assert [row["error"] and row["error"].split(":")[0] for row in found] == [None, "JsonDecodeError"]
    whole = written([{"photo": "a.jpg", "n": n} for n in range(5000)], ".parquet")
    middle = len(whole) // 3
    storage.write_bytes(str(tmp_path / "m.parquet"), whole[:middle] + b"\xff" * 64 + whole[middle + 64 :])
    found = rows_of(listed(str(tmp_path / "m.parquet"), NAMED))
    assert len(found) + sum(row["lost_rows"] or 0 for row in found) == 5000


@pytest.mark.long
def test_a_million_addresses_some_of_them_nowhere_fit_into_two_gibibytes(tmp_path: Path) -> None:
    """Every tenth is nowhere, and of these every other one is named twice; the others are 301 objects."""
    for number in range(301):
        storage.write_bytes(f"{tmp_path}/photos/{number}.jpg", b"x" * number)
    with (tmp_path / "m.jsonl").open("w") as manifest:
        for number in range(1_000_000):
            name = f"gone-{number // 30 * 2 + (number % 30 > 10)}" if number % 10 == 9 else number % 301
            manifest.write(json.dumps({"id": f"row-{number}", "photo": f"photos/{name}.jpg"}) + "\n")
    command = [sys.executable, "-c", TOLD_OF_A_MILLION, f"{tmp_path}/m.jsonl"]
    found = json.loads(subprocess.run(command, cwd=tiny.ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert (found["rows"], found["members"]) == (1_000_000, 1_000_000)
    assert found["problems"] == {"": 900_000, "ObjectMissing": 100_000}
    assert found["named"] == 301 + 66_667
    assert found["largest"] <= objects.GROUP_OBJECTS
    assert found["peak"] < 2 << 30, f"{found['peak']:,} bytes"
