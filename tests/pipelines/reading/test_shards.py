import unicodedata
from pathlib import Path

import fsspec
import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.raw import RAW_SCHEMA
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import NoShardsError, Shard, find, list_shards, lone


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")


def test_listing_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NoShardsError, match=r"^no shards found at .*: it is empty; check the address"):
        list_shards(str(tmp_path))
    for nothing in ("none", "*.txt"):
        with pytest.raises(NoShardsError, match=r"^no shards found at .*: there is nothing; check the address"):
            list_shards(str(tmp_path / nothing))
    storage.write_bytes(str(tmp_path / "x.doc"), b"")
    for mode in ("skip", "error"):
        with pytest.raises(UsageError, match=r"x\.doc is not a shard \(\.tar, .*\), nor a photograph, clip or"):
            find([str(tmp_path)], unknown=mode)


def test_unknown_objects_are_skipped_counted_and_never_end_a_listing(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.JPG", "a.jpg", "deep/b.png", "README.md", "deep/z.tar.part", "x.txt"):
        storage.write_bytes(f"{place}/in/{name}", f"{name}\n".encode())
    listing = find([f"{place}/in"])
    assert listing.skipped == [f"{place}/in/README.md", f"{place}/in/deep/z.tar.part"]
    named = [address for shard in listing.shards for address in shard.addresses]
    assert sorted(named) == [f"{place}/in/{name}" for name in ("a.JPG", "a.jpg", "deep/b.png", "x.txt")]
    assert f"{place}/in: skipped 2 objects that are no input, such as {place}/in/README.md, " in caplog.text
    with pytest.raises(UsageError, match=r"in/README\.md is not a shard .*: remove it, or skip .* `unknown` skip"):
        find([f"{place}/in"], unknown="error")
    listing = find([f"{place}/in/**"], unknown="row")
    rows = [row for shard in listing.shards for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]
    errors = {row["object"]: row["error"] for row in rows if row["error"]}
    assert (len(rows), listing.skipped) == (6, [])
    assert set(errors) == {f"{place}/in/README.md", f"{place}/in/deep/z.tar.part"}
    assert errors[f"{place}/in/README.md"].startswith(f"UnsupportedMedia: {place}/in/README.md is not a shard (")


def test_a_folder_of_foreign_objects_is_a_wrong_one(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}.doc").touch()
    (tmp_path / "only.jpg").touch()
    with pytest.raises(UsageError) as caught:
        find([str(tmp_path)])
    told = f"10,000 of 10,001 objects at {tmp_path} are no input, such as {tmp_path}/0.doc"
    assert str(caught.value).startswith(told)
    assert len(str(caught.value)) < 600
    assert len(find([f"{tmp_path}/*.jpg"]).shards) == 1
    assert sum(len(shard.members) for shard in find([str(tmp_path)], unknown="row").shards) == 10_001


def test_several_patterns_are_read_once_each_object(place: str) -> None:
    for name in ("a.jpg", "b.JPG", "deep/c.png", "d.txt"):
        storage.write_bytes(f"{place}/in/{name}", b"x\n")
    one = find([f"{place}/in"])
    many = find([f"{place}/in/*.jpg", f"{place}/in/*.JPG", f"{place}/in/**", f"{place}/in/*.gif"])
    assert sorted(shard.uri for shard in many.shards) == sorted(shard.uri for shard in one.shards)
    assert {shard.key for shard in many.shards} == {shard.key for shard in one.shards}
    with pytest.raises(NoShardsError, match=r"no shards found at .*gif .*doc: there is nothing"):
        find([f"{place}/in/*.gif", f"{place}/in/*.doc"])


def test_lone_objects_are_rows_beside_those_of_shards(place: str) -> None:
    for name in ("a.jpg", "deep/b.MP4", "deep/c.npy", "_hidden.jpg", "x.txt"):
        storage.write_bytes(f"{place}/in/{name}", f"{name}\n".encode())
    text, group = list_shards(f"{place}/in")
    assert (text.uri, text.members, text.addresses) == (f"{place}/in/x.txt", (), [f"{place}/in/x.txt"])
    assert group.uri == f"{place}/in/@"
    names = ["a.jpg", "deep/b.MP4", "deep/c.npy"]
    assert group.addresses == [f"{place}/in/{name}" for name in names]
    (table,) = read_blocks(group, ReadOptions())
    assert table.schema == RAW_SCHEMA
    rows = table.to_pylist()
    assert [row["sample_id"] for row in rows] == names
    assert [row["object"] for row in rows] == group.addresses
    assert [(row["index"], row["last"], row["media_type"]) for row in rows] == [
        (0, False, "jpg"), (1, False, "mp4"), (2, True, "npy"),
    ]  # fmt: skip
    assert [row["media"] for row in rows] == [f"{name}\n".encode() for name in names]
    for pattern, expected in ((f"{place}/in/*.jpg", ["a.jpg"]), (f"{place}/in/a.jpg", ["a.jpg"]),
                              (f"{place}/in/deep/b*", ["b.MP4"]), (f"{place}/in/*/*.npy", ["deep/c.npy"])):  # fmt: skip
        (one,) = list_shards(pattern)
        assert [member.sample_id for member in one.members] == expected, pattern
    (again,) = read_blocks(lone(f"{place}/in/deep/b.MP4"), ReadOptions())
    assert again["media"].to_pylist() == [b"deep/b.MP4\n"]


def test_a_name_that_looks_like_a_secret_is_one_error_row_and_ends_no_night(place: str) -> None:
    """No client of a store is made for it; on a disk there is none to be made."""
    name = "image.php?key=42.jpg"
    storage.write_bytes(f"{place}/in/1.jpg", b"1")
    fs = fsspec.core.url_to_fs(place)[0]
    fs.pipe_file(f"{place}/in/{name}", b"2")
    (group,) = list_shards(f"{place}/in")
    (table,) = read_blocks(group, ReadOptions())
    ok, odd = table.to_pylist()
    assert (ok["media"], odd["object"]) == (b"1", f"{place}/in/{name}")
    if storage.is_local(place):
        assert odd["media"] == b"2"
        return
    told = f"AddressNotAllowed: the name of {place}/in/image.php?key=***"
    assert odd["error"] == f"{told} looks as if it held a password or token: rename it"
    fs.pipe_file(f"{place}/in/a;auth=1.tar", b"")
    with pytest.raises(UsageError, match=r"^the name of \S*/in/a;auth=\*\*\* looks as if it held a password"):
        list_shards(f"{place}/in")


# ---- what is lost, and what only seems so ---------------------------------------------------------------------------


def test_a_folder_as_people_have_it(place: str) -> None:
    """What consoles, file managers and Spark leave in folders is no shard, unless it is named itself."""
    folder = f"{place}/photos/ds=2026-01-31"
    for name in ("a.txt", "sub/b.txt"):
        storage.write_bytes(f"{folder}/{name}", b"hi\n")
    litter = [
        "_SUCCESS",
        ".a.txt.crc",
        "a.txt.crc",
        "._a.txt",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "sub/Desktop.ini",
    ]
    for name in [*litter, "__MACOSX/._a.txt", "_started.txt"]:
        storage.write_bytes(f"{folder}/{name}", b"x")
    if place.startswith("s3://"):
        for name in ("photos/", "photos/ds=2026-01-31/", "photos/ds=2026-01-31/sub/", "photos/sub_$folder$"):
            put_marker(f"{place}/{name}")
    expected = [f"{folder}/a.txt", f"{folder}/sub/b.txt"]
    for uri in (f"{place}/photos", folder, f"{folder}/", f"{place}/photos/**", f"{place}/photos/ds=2026-01-3?/**"):
        assert [shard.uri for shard in list_shards(uri)] == expected, uri
    for name in ("._a.txt", "_started.txt"):
        assert [shard.uri for shard in list_shards(f"{folder}/{name}")] == [f"{folder}/{name}"]
    with pytest.raises(UsageError, match="_SUCCESS is not a shard"):
        list_shards(f"{folder}/_SUCCESS")


def test_what_cameras_call_their_photographs_is_read(place: str) -> None:
    cameras = ["IMG_0001.jpg", "_DSC0001.JPG", "_MG_0002-2.jpeg", "_1DX0003.jpg", "deep/_DSC0004 edited.png"]
    others = [
        "_DSC00012.jpg",
        "_DSC1.jpg",
        "_photo.jpg",
        "_run2026.json",
        "_DSC0001/a.jpg",
        "._DSC0001.JPG",
        "_SUCCESS",
    ]
    for name in (*cameras, *others):
        storage.write_bytes(f"{place}/photos/{name}", b"x")
    (group,) = list_shards(f"{place}/photos")
    assert sorted(member.sample_id for member in group.members) == sorted(cameras)
    (group,) = list_shards(f"{place}/photos/_DSC*.JPG")
    assert [member.sample_id for member in group.members] == ["_DSC0001.JPG"]


def test_a_folder_of_nothing_but_its_marker_is_empty(s3: str) -> None:
    put_marker(f"{s3}/photos/ds=2026-01-31/")
    for uri in (f"{s3}/photos/ds=2026-01-31", f"{s3}/photos"):
        with pytest.raises(NoShardsError, match=r": it is empty; check the address"):
            list_shards(uri)


NAMES = [
    "a b", "100%20percent", "[2026] album", "what?", "5 * 5", "#1+2&3=4;~!", "[", "a]b", "a::b", "it's \"quoted\"",
    "日本", unicodedata.normalize("NFC", "Kätzchen"), unicodedata.normalize("NFD", "Kätzchen"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_as_people_have_them(place: str, name: str) -> None:
    """A folder or object that exists is meant, whatever its name would be as a pattern."""
    place = f"{place}/{NAMES.index(name)}"
    for folder in (name, "other"):
        for file in (name, "x"):
            storage.write_bytes(f"{place}/{folder}/{file}.txt", b"hi\n")
    both = sorted([f"{place}/{name}/{name}.txt", f"{place}/{name}/x.txt"])
    for uri in (f"{place}/{name}", f"{place}/{name}/", f"{place}/{name}/*.txt", f"{place}/{name}/*"):
        assert [shard.uri for shard in list_shards(uri)] == both, uri
    assert [shard.uri for shard in list_shards(both[0])] == both[:1]
    assert len(list_shards(place)) == 4
    assert [shard.uri for shard in list_shards(f"{place}/o?her/[xyz].txt")] == [f"{place}/other/x.txt"]
    for uri in both:
        (shard,) = list_shards(uri)
        assert [row["error"] for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()] == [None]


def put_marker(uri: str) -> None:
    """What a console's "create folder" makes: an empty object whose name ends with a slash."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    fsspec.filesystem("s3").call_s3("put_object", Bucket=bucket, Key=key, Body=b"")


def test_keys_depend_on_uri_and_etag() -> None:
    a, b = Shard("s3://lake/in/a.tar", 10, "1"), Shard("s3://lake/in/b b.tar", 10, "1")
    keys = {a.key, b.key, Shard(a.uri, a.size, "2").key, Shard("s3://x/a.tar", 10, "1").key}
    assert len(keys) == 4
    assert b.key.startswith("b-b.tar-")
    assert Shard("s3://x/é_a.tar", 1, "").key.startswith("a.tar-"), "a leading _ would hide its pieces"
