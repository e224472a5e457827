"""Hostile files of every kind, and a decoder that was taken over, reach no file, secret, socket or pipe around them."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import pickle
import signal
import socket
import struct
import tarfile
import termios
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.samples import Decode, unpack
from pipelines.reading.sandbox import guard, jail
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.chaos.fuzz import alarm
from tests.chaos.intruder import GOT, Echo, Intruder, Place
from tests.chaos.mutants import archives, columns, events, media
from tests.chaos.mutants.parts import ATOMS, ELEMENTS, RIFF, Part
from tests.pipelines.reading.media.test_decode import clip_bytes

WORD = "canary7c1e9b"
LIMITS = Limits(max_seconds=5)
PATIENCE = 150
needs_jail = pytest.mark.skipif(jail.in_force("auto") != jail.WHOLE, reason="this machine has no whole decoding jail")


# ---- what lies and listens around --------------------------------------------------------------------------------
@dataclass
class Traps:
    """Whatever happens to them is noted."""

    folder: Path
    port: int
    sprung: list[str] = field(default_factory=list)
    """Sockets that someone talked to, signals that came."""

    @property
    def file(self) -> Path:
        """Holds nothing but the word."""
        return self.folder / "canary.bin"

    @property
    def event(self) -> Path:
        """A radar event whose rain is the word."""
        return self.folder / "canary.nc"

    @property
    def clip(self) -> Path:
        """A white clip."""
        return self.folder / "canary.mp4"

    @property
    def table(self) -> Path:
        """Parquet that holds the word."""
        return self.folder / "canary.parquet"

    @property
    def pipe(self) -> Path:
        """A FIFO, with the word in it."""
        return self.folder / "pipe"

    @property
    def unix(self) -> Path:
        """Address of a Unix socket."""
        return self.folder / "socket"

    @property
    def url(self) -> str:
        """Of the TCP socket."""
        return f"http://127.0.0.1:{self.port}/canary"

    def addresses(self) -> list[str]:
        """All the ways to write where something is."""
        return [str(self.file), f"file://{self.file}", self.url, f"tcp://127.0.0.1:{self.port}", f"unix:{self.unix}",
                f"udp://127.0.0.1:{self.port}", "/proc/self/environ", f"concat:{self.file}|{self.file}",
                f"subfile:{self.file}",
                f"data:text/plain,{WORD[:3]}", f"async:{self.url}", str(self.pipe)]  # fmt: skip


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traps]:
    """All of them; that none was touched is checked in the end."""
    folder = tmp_path / "around"
    folder.mkdir()
    listeners = [socket.socket(socket.AF_INET), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listeners[0].bind(("127.0.0.1", 0))
    found = Traps(folder, listeners[0].getsockname()[1])
    datagrams.bind(("127.0.0.1", found.port))
    listeners[1].bind(str(found.unix))
    listeners[2].bind(f"\0{found.unix}")
    for listener in listeners:
        listener.listen()
        listener.settimeout(0.1)
    datagrams.settimeout(0.1)
    found.file.write_text(WORD * 3000)
    found.event.write_bytes(events.event_of(lambda file: file.create_dataset("rainfall_rate", data=_word_as_rain())))
    found.clip.write_bytes(clip_bytes("mp4", "mpeg4", [250] * 4))
    found.table.write_bytes(columns.written(pa.table({"text": [WORD] * 8})))
    os.mkfifo(found.pipe)
    pipe = os.open(found.pipe, os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, WORD.encode() * 100)
    monkeypatch.setenv("CANARY", WORD)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WORD)
    inherited = os.open(found.file, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    before = signal.signal(signal.SIGURG, lambda number, frame: found.sprung.append("a signal came"))
    stop = threading.Event()
    watchers = [threading.Thread(target=_watch, args=(one, stop, found.sprung)) for one in (*listeners, datagrams)]
    for watcher in watchers:
        watcher.start()
    guard_ends()
    yield found
    guard_ends()
    stop.set()
    for watcher in watchers:
        watcher.join()
    for one in (*listeners, datagrams):
        one.close()
    signal.signal(signal.SIGURG, before)
    os.close(inherited)
    os.close(pipe)


def _word_as_rain() -> np.ndarray:
    letters = np.frombuffer(WORD.encode() * (6 * 32 * 32), np.uint8)
    return letters[: 6 * 32 * 32].reshape(6, 32, 32)


def _watch(listener: socket.socket, stop: threading.Event, sprung: list[str]) -> None:
    while not stop.is_set():
        try:
            if listener.type == socket.SOCK_DGRAM:
                listener.recv(100)
            else:
                listener.accept()[0].close()
        except TimeoutError:
            continue
        sprung.append(f"someone talked to {listener.getsockname()}")


def guard_ends() -> None:
    """A child starts with the environment that its worker has then."""
    while guard._idle:
        guard._idle.pop().kill()


def left_in(pipe: Path) -> int:
    """Bytes that wait in a FIFO."""
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    count = struct.unpack("i", fcntl.ioctl(reading, termios.FIONREAD, b"\0\0\0\0"))[0]
    os.close(reading)
    return int(count)


# ---- hostile files -----------------------------------------------------------------------------------------------
Files = Iterator[tuple[str, bytes]]


def radar(traps: Traps) -> Files:
    """Rain, or a coordinate, or something beside them, that lies elsewhere."""
    places = [
        str(traps.file),
        "/proc/self/environ",
        str(traps.pipe),
        "/proc/self/fd/0",
        os.path.relpath(traps.file, "/"),
    ]
    for i, place in enumerate(places):
        elsewhere = [(place, 0, h5py.h5f.UNLIMITED)]
        yield (
            f"external-{i}.nc",
            events.event_of(
                lambda file, where=elsewhere: file.create_dataset("rainfall_rate", (6, 32, 32), "u1", external=where)
            ),
        )
        yield (
            f"beside-{i}.nc",
            events.event(lambda file, where=elsewhere: file.create_dataset("notes", (100,), "u1", external=where)),
        )
    for source in (str(traps.event), ".", "canary.nc"):
        layout = h5py.VirtualLayout((6, 32, 32), "u1")
        layout[:] = h5py.VirtualSource(source, "rainfall_rate", (6, 32, 32))
        yield (
            f"virtual-{len(source)}.nc",
            events.event_of(lambda file, layout=layout: file.create_virtual_dataset("rainfall_rate", layout)),
        )

    def with_link(name: str, link: Any) -> bytes:
        def change(file: h5py.File) -> None:
            if name in file:
                del file[name]
            file[name] = link

        return events.event(change)

    for name in ("rainfall_rate", "time", "other"):
        yield f"link-{name}.nc", with_link(name, h5py.ExternalLink(str(traps.event), "/rainfall_rate"))
    yield "soft.nc", with_link("time", h5py.SoftLink("/nowhere"))
    yield "group.nc", with_link("group", h5py.ExternalLink(str(traps.event), "/"))


def clips(traps: Traps) -> Files:
    """Films whose frames lie elsewhere, and lists of films in disguise."""
    for suffix in ("mp4", "mov"):
        parts = ATOMS.parse(traps.clip.read_bytes())
        for part in parts:
            if part.tag == b"mdat":
                part.body = b"\0" * len(part.body)
        for i, address in enumerate(traps.addresses()):
            for kind in (b"url ", b"alis", b"urn "):
                reference = ATOMS.build([Part(kind, b"\0\0\0\0" + address.encode() + b"\0")])
                for dref in media._each(parts, {b"dref"}):
                    dref.body = struct.pack(">II", 0, 1) + reference
                yield f"reference-{i}-{kind.decode().strip()}.{suffix}", ATOMS.build(parts)
    for i, address in enumerate([str(traps.clip), *traps.addresses()]):
        lists = (f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{address}'\n",
                 f"#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=\"{address}\"\n#EXTINF:1,\n{address}\n",
                 f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{address}</BaseURL></Period></MPD>',
                 f"[Script Info]\n{address}\n",
                 f"v=0\nc=IN IP4 127.0.0.1\nm=video {traps.port} RTP/AVP 96\n")  # fmt: skip
        for j, text in enumerate(lists):
            suffix = ("mp4", "mkv", "webm", "avi", "mov", "gif")[(i + j) % 6]
            yield f"list-{i}-{j}.{suffix}", text.encode()
            yield f"behind-{i}-{j}.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + text.encode()
    parts = ELEMENTS.parse(clip_bytes("matroska", "mpeg4", [40] * 4))
    for info in media._each(parts, {bytes.fromhex("1549a966")}):
        for tag in ("3c83ab", "3e83bb", "7384"):  # names of the segment before, of the one after, and of this one
            info.parts.append(Part(bytes.fromhex(tag), str(traps.clip).encode()))
    attached = [
        Part(bytes.fromhex("466e"), str(traps.folder / "attached").encode()),
        Part(bytes.fromhex("465c"), b"attached"),
    ]
    parts[-1].parts.append(Part(bytes.fromhex("1941a469"), b"", [Part(bytes.fromhex("61a7"), b"", attached)]))
    yield "linked.mkv", ELEMENTS.build(parts)
    parts = RIFF.parse(clip_bytes("avi", "mpeg4", [40] * 4))
    playlist = f"#EXTM3U\n#EXTINF:1,\n{traps.url}\n".encode()
    subtitles = b"GAB2\0" + struct.pack("<HI", 2, 0) + struct.pack("<HI", 4, len(playlist)) + playlist
    for movie in media._each(parts, {b"LIST"}):
        if movie.body == b"movi":
            movie.parts.insert(0, Part(b"01tx", subtitles))
        if movie.body == b"hdrl":
            header = b"txts" + b"\0" * 44
            movie.parts.append(Part(b"LIST", b"strl", [Part(b"strh", header), Part(b"strf", b"\0" * 40)]))
    yield "subtitles.avi", RIFF.build(parts)


def photographs(traps: Traps) -> Files:
    """Documents that name others, called photographs."""
    for i, address in enumerate(traps.addresses()):
        texts = (f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}" width="9" height="9"/></svg>',
                 f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "{address}">]><svg>&x;</svg>',
                 f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({address}) (r) file\n",
                 f"%PDF-1.4\n1 0 obj<</Type/Catalog/AA<</O<</S/URI/URI({address})>>>>>>endobj\n%%EOF",
                 f"push graphic-context\nimage over 0,0 9,9 '{address}'\n", f"ID=ImageMagick\n{address}\n",
                 f"[InternetShortcut]\nURL={address}\n", f"<html><img src='{address}'></html>")  # fmt: skip
        for j, text in enumerate(texts):
            yield f"document-{i}-{j}.{('png', 'jpg', 'webp', 'gif')[(i + j) % 4]}", text.encode()


def parquet(traps: Traps) -> Files:
    """Columns of other files, and rows that name others."""
    base = columns.written(pa.table({"text": ["abcdefghijkl"] * 8}))
    for i, address in enumerate([str(traps.table), "canary.parquet", *traps.addresses()]):
        metadata = columns.footer(base)
        for column in columns._columns(metadata):
            path = columns.Value(columns.BINARY, address.encode())
            column.data = {columns.FILE_PATH: path, **column.data}
        yield f"columns-{i}.parquet", columns.with_footer(base, metadata)
    rows = [{"bytes": None, "path": address} for address in traps.addresses()]
    yield "paths.parquet", columns.written(pa.table({"image": rows}))
    yield "names.parquet", columns.written(pa.table({"image": traps.addresses(), "text": traps.addresses()}))


class Touch:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def arrays(traps: Traps) -> Files:
    """Pickles, and archives whose members lead elsewhere."""
    bomb = io.BytesIO()
    np.save(bomb, np.array([Touch(traps.folder / "exploded")], dtype=object), allow_pickle=True)
    yield "objects.npy", bomb.getvalue()
    yield "pickle.npy", pickle.dumps(Touch(traps.folder / "exploded"))
    header = f"__import__('os').system('touch {traps.folder}/exploded')\n".encode()
    yield "code.npy", media.npy_with_header(header)
    absolute, up = str(traps.folder / "absolute.npy"), "../" * 9 + "up.npy"
    for i, names in enumerate(([absolute], [up], ["a.npy", "b.npy"], ["objects.npy"])):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, bomb.getvalue() if name == "objects.npy" else media._npy())
        yield f"members-{i}.npz", buffer.getvalue()
    link = zipfile.ZipInfo("link.npy")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, str(traps.file))
    yield "link.npz", buffer.getvalue()


def tars(traps: Traps) -> Files:
    """Links, sparse members and names that lead elsewhere."""
    up = "../" * 9 + str(traps.file)[1:]
    for i, target in enumerate([str(traps.file), up, "/proc/self/environ", str(traps.pipe), "good.txt"]):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for j, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)):
                for suffix in ("txt", "json", "jpg", "npy"):
                    member = tarfile.TarInfo(f"link{j}{suffix}.{suffix}")
                    member.type, member.linkname = kind, target
                    archive.addfile(member)
        yield f"links-{i}.tar", buffer.getvalue()
    records = archives.record(b"GNU.sparse.name", str(traps.file).encode()) + archives.record(b"GNU.sparse.map", b"0,9")
    sparse = archives.extended(records + archives.record(b"GNU.sparse.size", b"9")) + archives.member(
        b"s.txt", b"abcdefghi"
    )
    yield "sparse.tar", archives.between(sparse)
    path = archives.extended(archives.record(b"path", str(traps.folder / "written.txt").encode()))
    yield "written.tar", archives.between(path + archives.member(b"x.txt", b"abc"))


def texts(traps: Traps) -> Files:
    """Lines that name files and addresses."""
    addresses = traps.addresses()
    yield "names.txt", "".join(f"{address}\n@{address}\n" for address in addresses).encode()
    yield "names.tsv", ("text\timage\n" + "".join(f"{a}\t{a}\n" for a in addresses)).encode()
    objects = [{"text": {"$ref": a}, "image": a, "path": a, "bytes": a, "url": a, "media": f"@{a}"} for a in addresses]
    lines = "".join(json.dumps(one) + "\n" for one in objects).encode()
    yield "names.jsonl", lines
    yield "names.jsonl.gz", gzip.compress(lines)
    name = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, 8, 0, 0, 3) + str(traps.file).encode() + b"\0"
    yield "named.txt.gz", name + gzip.compress(b"ein Hund\n")[10:]


KINDS: Mapping[str, Callable[[Traps], Files]] = {
    "radar": radar, "clips": clips, "photographs": photographs, "parquet": parquet, "arrays": arrays, "tars": tars,
    "texts": texts,
}  # fmt: skip
SUFFIXES = (".nc", ".parquet", ".tar", ".txt", ".tsv", ".jsonl", ".gz")


def shards_of(files: Files, folder: Path) -> None:
    """Shards as they are; members in a tar shard and in a Parquet shard."""
    members = []
    for name, content in files:
        if name.endswith(SUFFIXES):
            storage.write_bytes(str(folder / name), content, storage.anything)
        else:
            members.append((name, content))
    if members:
        storage.write_bytes(str(folder / "members.tar"), tiny.tar(members), storage.anything)
        table = pa.table({"media": pa.array([content for _, content in members], pa.large_binary())})
        storage.write_bytes(str(folder / "members.parquet"), columns.written(table), storage.anything)


def shown(row: Mapping[str, Any]) -> bytes:
    """All that a row tells."""
    told = f"{row['sample_id']} {row['error']}".encode()
    if row["sample"] is None:
        return told
    sample = unpack(row["sample"])
    pixels = (sample["media"], (sample["media"] * 100).astype(np.uint8))  # as they are, and before they were scaled
    return told + sample["fields"].tobytes() + b"".join(array.tobytes() for array in pixels)


@pytest.mark.parametrize("jailed", [pytest.param("required", marks=needs_jail), "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_reach_nothing(
    kind: str, jailed: str, traps: Traps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(jail.SWITCH, jailed)
    shards_of(KINDS[kind](traps), tmp_path / "in")
    around = sorted(tmp_path.rglob("*"))
    decode = Decode(Echo(), LIMITS)
    count = 0
    for shard in list_shards(str(tmp_path / "in")):
        with alarm(PATIENCE):
            blocks = list(guarded(shard, ReadOptions(Echo.window, limits=LIMITS), decode))
        rows = [row for block in blocks for row in block.to_pylist()]
        count += len(rows)
        assert rows[-1]["last"]
        for row in rows:
            assert WORD.encode() not in shown(row), f"{shard.uri}: {row['sample_id']}"
            if kind == "radar":
                assert (row["error"] or "").startswith("RadarDecodeError: "), f"{shard.uri}: {row['error']}"
            if kind == "photographs":
                assert row["error"], f"{shard.uri}: {row['sample_id']}"
            if kind == "clips" and row["sample"] is not None:
                assert unpack(row["sample"])["media"].mean() < 200, f"{shard.uri}: a white clip lies elsewhere"
    assert count >= 5
    assert sorted(tmp_path.rglob("*")) == around, "nothing is written"
    assert left_in(traps.pipe) == 100 * len(WORD), "nothing was taken out of the pipe"
    assert traps.sprung == []


# ---- a decoder that was taken over -------------------------------------------------------------------------------
def reported(traps: Traps, tmp_path: Path) -> dict[str, str]:
    """What the intruder says that it got, or why not."""
    storage.write_bytes(str(tmp_path / "in.txt"), b"x\n", storage.anything)
    (shard,) = list_shards(str(tmp_path / "in.txt"))
    place = Place(WORD, str(traps.folder), str(traps.file), str(traps.unix), traps.port, os.getpid())
    with alarm(PATIENCE):
        (block,) = guarded(shard, ReadOptions(limits=Limits()), Intruder(place))
    report: dict[str, str] = json.loads(block["report"][0].as_py())
    return report


@needs_jail
def test_a_decoder_that_was_taken_over_gets_nothing(
    traps: Traps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(jail.SWITCH, raising=False)
    around = sorted(tmp_path.rglob("*"))
    report = reported(traps, tmp_path)
    assert {name: what for name, what in report.items() if what.startswith(GOT)} == {}
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "in.txt") == around
    assert traps.file.read_text() == WORD * 3000
    assert traps.sprung == []


def test_without_the_jail_the_same_intruder_gets_nearly_everything(
    traps: Traps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it tries works; even so it has no secrets in its environment and no files that its worker has open."""
    monkeypatch.setenv(jail.SWITCH, "off")
    report = reported(traps, tmp_path)
    got = {name for name, what in report.items() if what.startswith(GOT)}
    assert {
        "read the canary", "read /etc/passwd", "read the parent's environment", "list /", "write into the folder",
        "connect by TCP", "send by UDP", "connect by a Unix socket", "connect by an abstract socket", "start a program",
        "become a program", "fork", "signal the parent", "change the canary's mode", "slow the parent down",
    } <= got  # fmt: skip
    assert WORD in report["read the canary"]
    assert not got & {"read its own environment", "read from files that came along"}
    assert any("someone talked" in what for what in traps.sprung)
    assert "a signal came" in traps.sprung
