"""Lone objects in groups: each in one, of bounded size, and a change is a matter of one group."""

import os
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import ClientError

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.reading import objects
from pipelines.reading.limits import Limits
from pipelines.reading.objects import GROUP_BYTES, GROUP_OBJECTS, Fetched, Member, as_listed, fetch, group
from tests.servers import BUCKET, GUEST_KEYS, GUESTS


def member(number: int, size: int = 1000, etag: str = "1") -> Member:
    return Member(f"s3://lake/photos/{number:07d}.jpg", size, etag, f"{number:07d}.jpg")


def states(members: list[Member]) -> dict[str, str]:
    return {each.digits: each.etag for each in group(members)}


@pytest.mark.parametrize("count", [0, 1, GROUP_OBJECTS, GROUP_OBJECTS + 1, 5000])
def test_every_object_is_in_one_group_of_bounded_size(count: int) -> None:
    members = [member(number) for number in range(count)]
    groups = group(list(reversed(members)))
    assert sorted((m for each in groups for m in each.members), key=lambda m: m.uri) == members
    assert all(0 < len(each.members) <= GROUP_OBJECTS for each in groups)
    assert all([m.uri for m in each.members] == sorted(m.uri for m in each.members) for each in groups)
    assert len({each.digits for each in groups}) == len(groups)
    assert len(groups) <= max(1, 6 * count // GROUP_OBJECTS), "not many small ones"


def test_large_objects_are_alone_and_groups_have_bounded_bytes() -> None:
    rng = np.random.default_rng(0)
    members = [member(number, int(size)) for number, size in enumerate(rng.integers(1, 5 << 20, 400))]
    large = [member(1000 + number, GROUP_BYTES + 1) for number in range(3)]
    groups = group([*members, *large])
    assert all(each.size <= GROUP_BYTES for each in groups if len(each.members) > 1)
    assert sorted(each.members[0].uri for each in groups if each.size > GROUP_BYTES) == [m.uri for m in large]
    assert Counter(m.uri for each in groups for m in each.members) == Counter(m.uri for m in [*members, *large])


@pytest.mark.parametrize("change", ["new", "gone", "replaced", "field"])
def test_a_change_is_a_matter_of_one_group(change: str) -> None:
    """Unless it makes one too large, which is then two."""
    members = [member(number) for number in range(3000)]
    before, touched = states(members), []
    for number in range(0, 3000, 500):
        changed = {
            "new": [*members, member(10_000 + number)],
            "gone": [m for m in members if m != members[number]],
            "replaced": [replace(m, etag="2") if m == members[number] else m for m in members],
            "field": [replace(m, fields='{"a": 1}') if m == members[number] else m for m in members],
        }[change]
        after = states(changed)
        touched.append((len(before.items() - after.items()), len(after.items() - before.items())))
    assert touched == [(1, 1)] * 6


def test_a_group_that_grows_too_large_is_split_and_no_other_one() -> None:
    count = next(n for n in range(200, 2000) if len(group([member(i) for i in range(n)])) > 1)
    small, large = (states([member(i) for i in range(n)]) for n in (count - 1, count))
    assert (list(small), list(large)) == ([""], ["0", "1"])


def test_objects_at_one_address_are_each_a_row() -> None:
    twice = [replace(member(7), sample_id=name) for name in "abc"]
    found = [m for each in group([*twice, *(member(i) for i in range(600))]) for m in each.members]
    assert Counter(m.sample_id for m in found if m.uri == member(7).uri) == Counter("abc") + Counter(["0000007.jpg"])


def test_grouping_takes_some_hundred_bytes_an_object() -> None:
    members = [member(number) for number in range(100_000)]
    tracemalloc.start()
    groups = group(members)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(each.members) for each in groups) == 100_000
    assert peak / 100_000 < 600, "beside the listing"


# ---- fetching ----------------------------------------------------------------------------------------------------
def listed(uri: str, content: bytes) -> Member:
    storage.write_bytes(uri, content)
    file = storage.info(uri)
    return Member(uri, file.size, file.etag, file.name)


def test_an_object_comes_as_it_was_listed(place: str) -> None:
    first, second, empty = (listed(f"{place}/{n}.jpg", text) for n, text in enumerate([b"abc", b"defgh", b""]))
    assert [fetch(each, Limits()) for each in (first, second, empty)] == [b"abc", b"defgh", b""]
    with pytest.raises(BadSample, match="MediaTooLarge: 5 bytes are more than max_bytes=4"):
        fetch(second, Limits(max_bytes=4))
    with pytest.raises(BadSample, match="AddressNotAllowed: no"):
        fetch(replace(first, problem="AddressNotAllowed: no"), Limits())
    storage.write_bytes(first.uri, b"xyz and more", storage.anything)
    with pytest.raises(BadSample, match=f"ObjectChanged: {first.uri} was replaced after it had been listed"):
        fetch(first, Limits())
    storage.delete(second.uri, storage.anything)
    with pytest.raises(BadSample, match=f"ObjectGone: {second.uri} was removed after it had been listed"):
        fetch(second, Limits())


def test_a_store_that_is_away_is_nobodys_bad_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = listed(f"{tmp_path}/a.jpg", b"abc")

    def away(file: storage.FileInfo) -> bytes:
        raise storage.StorageError("cannot read")

    monkeypatch.setattr(storage, "start_reading", lambda file: Future())
    monkeypatch.setattr(storage, "finish_reading", lambda file, reading, again: away(file))
    with pytest.raises(storage.StorageError):
        fetch(one, Limits())


def test_an_object_that_is_not_given_to_us_costs_its_row_and_many_in_a_row_the_night(
    s3: str, with_keys: Callable[[Mapping[str, str]], None]
) -> None:
    """Or, where a policy was changed for an hour, all rows of the night would say so for good. They may be in
    as many groups."""
    ours, shut = s3.replace(f"{BUCKET}/", f"{BUCKET}/{GUESTS}/"), f"{s3}/shut.jpg"
    one, other = listed(f"{ours}/a.jpg", b"abc"), listed(shut, b"abc")
    with_keys(GUEST_KEYS)
    members = [other, one] * 2 * objects.FORBIDDEN + [other] * (objects.FORBIDDEN - 2)
    fetched = Fetched(members, Limits())
    objects.given()
    told = f"ObjectForbidden: cannot (look up|read) {shut}: (Forbidden|Access Denied.): allow it to be read, or take"
    for number, each in enumerate(members):
        if each == one:
            assert fetched.read(number) == b"abc"
        else:
            with pytest.raises(BadSample, match=told):
                fetched.read(number)
    with pytest.raises(BadSample, match=told), as_listed(other), storage.open_input(shut) as stream:
        stream.read()
    with pytest.raises(storage.ForbiddenError, match=r"as were 7 before it: check the keys, or who may read what$"):
        fetch(other, Limits())
    with pytest.raises(BadSample, match=told):  # this process may read for another night
        fetch(other, Limits())


def test_archived_objects_are_a_matter_of_these_objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However many there are: a rule of the bucket's may have archived a whole prefix."""
    one = listed(f"{tmp_path}/a.jpg", b"abc")
    said = "The operation is not valid for the object's storage class"

    def archived(file: storage.FileInfo, reading: object, again: object) -> bytes:
        error = PermissionError(said)
        error.__cause__ = ClientError({"Error": {"Code": "InvalidObjectState"}}, "GetObject")
        raise storage.failed("read", "s3://lake/a.jpg", error)

    monkeypatch.setattr(storage, "start_reading", lambda file: Future())
    monkeypatch.setattr(storage, "finish_reading", archived)
    for _ in range(2 * objects.FORBIDDEN):
        with pytest.raises(BadSample, match=f"^ObjectForbidden: cannot read s3://lake/a.jpg: {said}: allow it"):
            fetch(one, Limits())


def test_a_file_that_is_not_ours_costs_its_row() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        one = listed(str(path), b"abc")
        path.chmod(0)
        Path(folder).chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(
                BadSample, match=r"ObjectForbidden: .*Permission denied.*: allow it to be read"
            ) as caught:
                fetch(one, Limits())
        finally:
            os.seteuid(user)
    assert "AWS" not in str(caught.value)


def test_an_answer_that_breaks_off_is_counted(
    monkeypatch: pytest.MonkeyPatch, retried: Counter[str], tmp_path: Path
) -> None:
    broken: Future[bytes | None] = Future()
    broken.set_exception(OSError("the connection was lost"))
    monkeypatch.setattr(storage, "start_reading", lambda file: broken)
    assert fetch(listed(f"{tmp_path}/a.jpg", b"abc"), Limits()) == b"abc"
    assert retried == {"store": 1}


def test_objects_are_fetched_ahead_but_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []

    def start(file: storage.FileInfo) -> Future[bytes | None]:
        began.append(file.uri)
        arrived: Future[bytes | None] = Future()
        arrived.set_result(file.uri.encode())
        return arrived

    monkeypatch.setattr(storage, "start_reading", start)
    members = [member(number) for number in range(100)]
    fetched = Fetched(members, Limits())
    assert fetched.read(0) == members[0].uri.encode()
    assert began == [m.uri for m in members[: objects.AHEAD]]
    assert [fetched.read(number) for number in range(1, 100)] == [m.uri.encode() for m in members[1:]]
    assert Counter(began).most_common(1)[0][1] == 1
    fetched.close()
    began.clear()
    heavy = Fetched([replace(m, size=objects.AHEAD_BYTES) for m in members], Limits())
    heavy.read(3)
    assert began == [members[3].uri], "one at a time"
    heavy.close()


def test_a_clip_counts_as_many_photographs() -> None:
    clips = [replace(member(number), uri=f"s3://lake/{number}.mp4") for number in range(100)]
    groups = group(clips)
    assert sum(len(each.members) for each in groups) == 100
    assert max(len(each.members) for each in groups) <= objects.GROUP_OBJECTS // objects.CLIP


def test_names_tell_what_may_be_media() -> None:
    assert [objects.media_type_of(name) for name in ("a.JPG", "b.x.mp4", "c.npz", "d.tar", "jpg", "e.")] == [
        "jpg", "mp4", "npz", None, "jpg", None,
    ]  # fmt: skip
