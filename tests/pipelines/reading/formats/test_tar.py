"""Tar archives."""

import io
import json
import tarfile
from pathlib import Path

from pipelines.reading.limits import Limits
from tests.pipelines.reading.made import rows_of
from tests.tiny import jpeg, tar


def test_tar_members_with_one_stem_are_one_sample(tmp_path: Path) -> None:
    photo = jpeg(0)
    content = tar(
        [
            ("a/one.jpg", photo),
            ("a/one.json", b'{"captions": ["x", "y"]}'),
            ("two.JPG", photo),
            ("two.txt", "grün".encode()),
            ("three.txt", b"only text"),
        ]
    )
    rows = rows_of(tmp_path, "x.tar", content)
    assert [row["sample_id"] for row in rows] == ["a/one", "two", "three"]
    assert [row["media"] for row in rows] == [photo, photo, None]
    assert [json.loads(row["fields"]) for row in rows] == [
        {"captions": ["x", "y"]},
        {"text": "grün"},
        {"text": "only text"},
    ]
    assert [row["media_type"] for row in rows] == ["jpg", "jpg", None]


def test_repeated_members_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.tar", tar([("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4")]))
    assert [(row["sample_id"], row["media"]) for row in rows] == [("a", b"1"), ("a", b"2"), ("b", b"3"), ("a", b"4")]


def test_a_tar_truncated_inside_a_member_keeps_the_rows_before(tmp_path: Path) -> None:
    content = tar([(f"{i}.jpg", bytes(5000)) for i in range(4)])
    rows = rows_of(tmp_path, "x.tar", content[: 512 * 30])
    assert [row["sample_id"] for row in rows[:2]] == ["0", "1"]
    assert [row["error"] for row in rows[:2]] == [None, None]
    assert rows[-1]["error"].startswith("ShardReadError")


def test_a_tar_truncated_between_members_is_noticed(tmp_path: Path) -> None:
    content = tar([("0.jpg", bytes(512)), ("1.jpg", bytes(512))])
    rows = rows_of(tmp_path, "x.tar", content[: 4 * 512])
    assert [row["error"] is None for row in rows] == [True, True, False]
    assert "no end mark" in rows[-1]["error"]


def test_a_broken_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    content = bytearray(tar([("0.jpg", bytes(512)), ("1.jpg", bytes(512)), ("2.jpg", bytes(512))]))
    content[2 * 512 + 148] ^= 0x55  # the second header's checksum
    rows = rows_of(tmp_path, "x.tar", bytes(content))
    assert rows[0]["error"] is None
    assert "no valid member header at byte 1024" in rows[-1]["error"]


def test_links_and_oversized_members_are_error_rows(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, size in (("big.jpg", 2000), ("../up.jpg", 10)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    rows = rows_of(tmp_path, "x.tar", buffer.getvalue(), limits=Limits(max_bytes=1000))
    assert [(row["error"] or "").split(":")[0] for row in rows] == ["UnsupportedMember", "MemberTooLarge", ""]
    assert rows[2]["sample_id"] == "../up"  # a name only: nothing is ever extracted


def test_pickles_in_a_tar_are_not_media(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "x.tar", tar([("a.pkl", b"x")]))
    assert row["error"].startswith("UnsupportedMember: pkl")


def test_a_member_name_that_is_not_utf8(tmp_path: Path) -> None:
    content = tar([("caf\udce9.txt", b"text")])
    (row,) = rows_of(tmp_path, "x.tar", content)
    assert row["sample_id"] == "caf?"


def test_headers_that_lead_back_or_lie(tmp_path: Path) -> None:
    good = tar([("a.jpg", b"1"), ("b.jpg", b"2")])
    member = tarfile.TarInfo("back.jpg")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)  # base 256, see the GNU tar manual, "Extensions"
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    rows = rows_of(tmp_path, "x.tar", good[:2048] + bytes(header) + good[2048:])
    assert [row["sample_id"] for row in rows] == ["a", "b", "x.tar:2"]
    assert rows[2]["error"] == "ShardReadError: ReadError: back.jpg has -1024 bytes"

    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"}
    rows = rows_of(tmp_path, "y.tar", sparse.tobuf(tarfile.PAX_FORMAT) + good)
    assert rows[0]["error"] == "UnsupportedMember: sparse.jpg is a link, device or sparse file"
    assert [row["sample_id"] for row in rows[1:]] == ["a", "b"]


def test_members_of_one_sample_are_bounded_together(tmp_path: Path) -> None:
    content = tar([("a.jpg", bytes(600)), ("a.txt", b"x" * 600), ("b.jpg", bytes(600))])
    rows = rows_of(tmp_path, "x.tar", content, limits=Limits(max_bytes=1000))
    assert [row["error"] for row in rows] == ["MemberTooLarge: a.txt makes 1200 bytes, limit 1000", None]
