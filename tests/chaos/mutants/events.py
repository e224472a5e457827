"""NetCDF radar events: attributes, types, storage and links that HDF5 allows and nobody expects."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import h5py
import numpy as np

from tests.chaos.mutants.parts import Rng, extreme
from tests.pipelines.reading.media.test_radar import START, event_bytes

Mutator = Callable[[Rng], bytes]
SIDE, FRAMES = 32, 6
OUTSIDE = ("/etc/passwd", "/proc/self/environ", "/dev/zero", "/proc/self/mem", "x.bin")


def event(change: Callable[[h5py.File], None], **options: Any) -> bytes:
    """A good event, changed; `options` are the file's."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        add_axes(file)
        rain = file.create_dataset(
            "rainfall_rate", (FRAMES, SIDE, SIDE), "u2", data=np.full((FRAMES, SIDE, SIDE), 7, "u2")
        )
        describe(file, rain)
        change(file)
    return buffer.getvalue()


def add_axes(file: h5py.File, frames: int = FRAMES, side: int = SIDE) -> None:
    """The coordinates, as dimension scales."""
    time = file.create_dataset("time", data=np.arange(frames) * 300.0 + START)
    time.attrs["units"] = "seconds since 1970-01-01"
    time.make_scale("time")
    for name in "yx":
        axis = file.create_dataset(name, data=np.arange(side) * 1000.0)
        axis.attrs["units"] = "m"
        axis.make_scale(name)


def describe(file: h5py.File, rain: h5py.Dataset) -> None:
    """Makes a data set the event's rain."""
    rain.attrs["units"] = "mm/h"
    rain.attrs["scale_factor"] = np.float32(0.01)
    for i, name in enumerate(("time", "y", "x")):
        rain.dims[i].attach_scale(file[name])


def event_of(make: Callable[[h5py.File], h5py.Dataset], **options: Any) -> bytes:
    """An event whose rain is made otherwise."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        add_axes(file)
        describe(file, make(file))
    return buffer.getvalue()


# ---- attributes --------------------------------------------------------------------------------------------------
def attribute_values() -> Sequence[Any]:
    """What an attribute may hold instead of a number or a text."""
    compound = np.array((1, 2.0), [("a", "i4"), ("b", "f8")])
    return (
        "0.01", "", "nan", b"\xff\xfe", np.nan, np.inf, 0, 0.0, -1, 1 << 62, np.float32(1e38), np.array([0.01, 0.02]),
        np.array([], "f4"),
        np.ones((3, 3)), compound, np.array(["a", "b"], h5py.string_dtype()), h5py.Empty("f4"), np.uint8(0),
        np.int64(-(1 << 63)),
        np.array([np.float16(1)]), "x" * 60_000, np.bool_(True), np.complex64(1j),
    )  # fmt: skip


def attributes(rng: Rng) -> bytes:
    values = attribute_values()

    def change(file: h5py.File) -> None:
        for _ in range(int(rng.integers(1, 4))):
            names = ("scale_factor", "add_offset", "_FillValue", "units", "missing_value", "valid_range", "dtype",
            "coordinates",
                     "_Unsigned", "grid_mapping", "DIMENSION_LIST", "_Netcdf4Dimid", "CLASS", "NAME",
                     "_Netcdf4Coordinates")  # fmt: skip
            where = [file["rainfall_rate"], file["rainfall_rate"], file["time"], file["x"], file][rng.integers(5)]
            name = names[rng.integers(len(names))]
            where.attrs.pop(name, None)
            where.attrs[name] = values[rng.integers(len(values))]

    return event(change)


TIME_UNITS = (
    "minutes since 1970-01-01", "seconds since 1970-01-01", "days since 0001-01-01", "fortnights since 1970-01-01",
    "seconds", "",
    "seconds since 99999-01-01", "seconds since yesterday", "months since 1970-01-31", "microseconds since 1970-01-01",
    "since",
    "seconds since 1970-01-01T00:00:00+99:00", "years since -4000-1-1", "seconds since 1970-02-30", "s" * 50_000,
)  # fmt: skip
CALENDARS = ("standard", "gregorian", "noleap", "360_day", "julian", "none", "", "mayan", 7)


def times(rng: Rng) -> bytes:
    """Units, calendars, and times that stand still, run back, are no numbers, or are too far."""
    steps: Sequence[Callable[[], Any]] = (
        lambda: np.arange(FRAMES) * 5.0, lambda: np.arange(FRAMES) * 300, lambda: np.zeros(FRAMES),
        lambda: np.arange(FRAMES)[::-1] * 300.0,
        lambda: np.full(FRAMES, np.nan), lambda: np.full(FRAMES, 1e300), lambda: np.array([0, 1, 2, 3, 4, 1 << 62]),
        lambda: np.arange(FRAMES) * 1e-9, lambda: np.arange(FRAMES) * 0.5, lambda: np.array([b"a"] * FRAMES),
        lambda: np.arange(FRAMES, dtype="u1"),
        lambda: rng.random(FRAMES) * 1e6, lambda: np.arange(FRAMES, dtype=">i2"),
        lambda: np.full(FRAMES, -(1 << 63), np.int64),
    )  # fmt: skip

    def change(file: h5py.File) -> None:
        kept = file["rainfall_rate"][:]
        for name in list(file):
            del file[name]
        add_axes(file)
        del file["time"]
        time = file.create_dataset("time", data=steps[rng.integers(len(steps))]())
        time.attrs["units"] = TIME_UNITS[rng.integers(len(TIME_UNITS))]
        if rng.random() < 0.5:
            time.attrs["calendar"] = CALENDARS[rng.integers(len(CALENDARS))]
        time.make_scale("time")
        describe(file, file.create_dataset("rainfall_rate", data=kept))

    return event(change)


def a_wrong_time_step(rng: Rng) -> bytes:
    """Seconds where minutes are meant, and less: hundreds of lead times."""
    rain = rng.integers(0, 500, (8, SIDE, SIDE)).astype(np.uint16)
    step = float(rng.choice([1 / 12, 1 / 60, 1 / 100, 5 / 3600, 60, 1e6]))
    return event_bytes([step * t for t in range(8)], rain=rain)


# ---- types -------------------------------------------------------------------------------------------------------
def types(rng: Rng) -> bytes:
    shape = (FRAMES, SIDE, SIDE)
    found: Sequence[Any] = (
        np.dtype([("a", "f4"), ("b", "f4")]), h5py.string_dtype(), "S4", h5py.vlen_dtype("f4"),
        h5py.enum_dtype({"a": 0, "b": 1}),
        np.dtype("V8"), "?", "c8", h5py.ref_dtype, "f2", ">f4", "i8", "u8", "f8", "i1", np.dtype(("f4", (3,))),
        np.dtype([("a", h5py.ref_dtype), ("b", h5py.string_dtype())]), h5py.regionref_dtype, "g",
    )  # fmt: skip
    return event_of(lambda file: file.create_dataset("rainfall_rate", shape, found[rng.integers(len(found))]))


def values(rng: Rng) -> bytes:
    def change(file: h5py.File) -> None:
        rain = file["rainfall_rate"]
        rain[rng.integers(FRAMES)] = rng.choice([0, 65535, 40000])
        rain.attrs["scale_factor"] = np.float64(rng.choice([1e-300, 1e300, -1, np.nan, 1, 1e6]))

    return event(change)


# ---- shapes ------------------------------------------------------------------------------------------------------
def shapes(rng: Rng) -> bytes:
    """No frames, no pixels, or more than any memory; nothing of it is written."""
    shape = ((0, 32, 32), (6, 0, 0), (6, 32, 0), (100_000, 30_000, 30_000), (1000, 1024, 1024), (6, 40_000, 40_000),
    (1 << 20, 32, 32),
             (6, 1, 1), (6, 32, 31), (3, 32, 32), (2, 32, 32), (1, 32, 32),
             (1 << 40, 1 << 10, 1))[rng.integers(13)]  # fmt: skip
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        time = file.create_dataset("time", (shape[0],), "f8", chunks=True if shape[0] else None, fillvalue=5)
        time.attrs["units"] = "seconds since 1970-01-01"
        time.make_scale("time")
        for name, size in zip("yx", shape[1:], strict=True):
            axis = file.create_dataset(name, (size,), "f8", chunks=True if size else None)
            axis.make_scale(name)
        chunks = tuple(min(64, size) for size in shape) if min(shape) else None
        describe(
            file,
            file.create_dataset("rainfall_rate", shape, "u1", chunks=chunks, compression="gzip" if chunks else None),
        )
    return buffer.getvalue()


def dimensions(rng: Rng) -> bytes:
    """Scales that are missing, shared, of other lengths, of more axes, or of each other."""

    def change(file: h5py.File) -> None:
        rain = file["rainfall_rate"]
        match int(rng.integers(7)):
            case 0:
                del rain.attrs["DIMENSION_LIST"]
            case 1:
                rain.attrs["DIMENSION_LIST"] = np.array([0, 0, 0], object).astype("i4")
            case 2:
                del file["time"]
            case 3:
                rain.dims[1].attach_scale(file["x"])
            case 4:
                other = file.create_dataset("longer", data=np.zeros((9, 9)))
                other.make_scale("time")
                rain.dims[0].detach_scale(file["time"])
                rain.dims[0].attach_scale(other)
            case 5:
                file.move("time", "when")
            case _:
                file.create_dataset("more", (4, 4, 4, 4), "f4")
                for _ in range(400):
                    file.create_dataset(f"d{len(file)}", (1,), "f4").make_scale("x")

    return event(change)


def a_time_of_its_own(rng: Rng) -> bytes:
    def change(file: h5py.File) -> None:
        kind = int(rng.integers(4))
        del file["time"]
        if kind == 0:
            file.create_group("time")
        elif kind == 1:
            file["time"] = h5py.SoftLink("/rainfall_rate")
        elif kind == 2:
            file.create_dataset("time", data=np.zeros((FRAMES, SIDE)))
        else:
            file.create_dataset("time", data=5.0)

    return event(change)


# ---- storage -----------------------------------------------------------------------------------------------------
def external_storage(rng: Rng) -> bytes:
    path, size = OUTSIDE[rng.integers(len(OUTSIDE))], [h5py.h5f.UNLIMITED, 100, FRAMES * SIDE * SIDE][rng.integers(3)]
    files = [(path, 0, size)] if size != 100 else [(path, i * 100, 100) for i in range(FRAMES * SIDE * SIDE // 100 + 1)]
    return event_of(lambda file: file.create_dataset("rainfall_rate", (FRAMES, SIDE, SIDE), "u1", external=files))


def external_coordinates(rng: Rng) -> bytes:
    """The times, or a variable that nobody asked for, lie in another file."""

    def change(file: h5py.File) -> None:
        where = [(OUTSIDE[rng.integers(len(OUTSIDE))], 0, h5py.h5f.UNLIMITED)]
        if rng.random() < 0.5:
            file.create_dataset("notes", (100,), "u1", external=where)
        else:
            del file["time"]
            time = file.create_dataset("time", (FRAMES,), "f8", external=where)
            time.attrs["units"] = "seconds since 1970-01-01"
            time.make_scale("time")

    return event(change)


def virtual_dataset(rng: Rng) -> bytes:
    def make(file: h5py.File) -> h5py.Dataset:
        layout = h5py.VirtualLayout((FRAMES, SIDE, SIDE), "u2")
        source = [".", *OUTSIDE][rng.integers(6)]
        name = "rainfall_rate" if rng.random() < 0.5 else "hidden"  # itself, now and then
        file.create_dataset("hidden", (FRAMES, SIDE, SIDE), "u2")
        layout[:] = h5py.VirtualSource(source, name, (FRAMES, SIDE, SIDE))
        return file.create_virtual_dataset("rainfall_rate", layout, fillvalue=3)

    return event_of(make)


def links(rng: Rng) -> bytes:
    def change(file: h5py.File) -> None:
        target = OUTSIDE[rng.integers(len(OUTSIDE))]
        name = ["rainfall_rate", "time", "x", "other"][rng.integers(4)]
        if name in file:
            file.move(name, "moved")
        made: Sequence[Callable[[], Any]] = (
            lambda: h5py.ExternalLink(target, "/rainfall_rate"), lambda: h5py.SoftLink("/moved"),
            lambda: h5py.SoftLink(f"/{name}"),
            lambda: h5py.SoftLink("/nowhere"), lambda: file["/"], lambda: h5py.ExternalLink("../x.nc", "/moved"),
            lambda: h5py.SoftLink("."),
        )  # fmt: skip
        file[name] = made[rng.integers(len(made))]()

    return event(change)


def filters(rng: Rng) -> bytes:
    """Filters that are not there, and chunks that are not what their filter makes."""
    options: Sequence[dict[str, Any]] = (
        {"compression": "gzip", "compression_opts": 9}, {"compression": "lzf"}, {"scaleoffset": 3},
        {"fletcher32": True, "shuffle": True},
        {"compression": 32001, "allow_unknown_filter": True}, {"compression": 307, "allow_unknown_filter": True},
        {"compression": 32013, "compression_opts": tuple(range(50)), "allow_unknown_filter": True}, {},
    )  # fmt: skip

    def make(file: h5py.File) -> h5py.Dataset:
        chunks = [(1, SIDE, SIDE), (FRAMES, SIDE, SIDE), (1, 1, 1), (1, 7, 5)][rng.integers(4)]
        rain = file.create_dataset(
            "rainfall_rate", (FRAMES, SIDE, SIDE), "u2", chunks=chunks, **options[rng.integers(len(options))]
        )
        for frame in range(0, FRAMES, chunks[0]):
            if rng.random() < 0.7:
                mask = int(rng.choice([0, 0, 1, 0xFFFFFFFF]))
                noise = [rng.bytes(100), b"x", b"\0" * 5, np.zeros(chunks, "u2").tobytes(), _bomb()][rng.integers(5)]
                rain.id.write_direct_chunk((frame, 0, 0), noise, mask)
        return rain

    return event_of(make)


@cache
def _bomb() -> bytes:
    return zlib.compress(b"\0" * (100 << 20), 9)


def bomb(rng: Rng) -> bytes:
    """As many bytes as the limit allows and more, of nothing."""
    frames = int(rng.choice([40, 400, 4000]))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        add_axes(file, frames, 256)
        rain = file.create_dataset(
            "rainfall_rate", (frames, 256, 256), "u2", chunks=(frames, 256, 256), compression="gzip"
        )
        describe(file, rain)
    return buffer.getvalue()


def many_things(rng: Rng) -> bytes:
    def change(file: h5py.File) -> None:
        match int(rng.integers(4)):
            case 0:
                for i in range(2000):
                    file.create_dataset(f"v{i}", (1,), "f4")
            case 1:
                group: h5py.Group = file
                for _ in range(300):
                    group = group.create_group("g")
            case 2:
                for i in range(500):
                    file["rainfall_rate"].attrs[f"a{i}"] = "x" * 100
            case _:
                for i in range(60):
                    file.create_dataset(f"big{i}", (100_000, 100_000), "f8", chunks=(10, 10))

    return event(change)


# ---- bytes -------------------------------------------------------------------------------------------------------
SIGNATURES = (
    b"\x89HDF",
    b"TREE",
    b"SNOD",
    b"HEAP",
    b"OHDR",
    b"OCHK",
    b"FRHP",
    b"FHDB",
    b"BTHD",
    b"GCOL",
    b"FSHD",
    b"BTLF",
)


@cache
def bases() -> Sequence[bytes]:
    """Files of the oldest and of the newest version of HDF5's format; the oldest has no checksums."""
    return (
        event(lambda file: None, libver="earliest"), event(lambda file: None, libver="latest"),
        event(lambda file: None, userblock_size=512), event_bytes([5 * t for t in range(6)]),
        event_of(lambda file: file.create_dataset("rainfall_rate", (FRAMES, SIDE, SIDE), "u2", chunks=(1, SIDE, SIDE),
        compression="gzip"),
                 libver="earliest"),
    )  # fmt: skip


def structures(rng: Rng) -> bytes:
    """A field near one of the marks of HDF5's structures, or of an object header, is an extreme number."""
    content = bytearray(bases()[int(rng.choice([0, 0, 4, 4, 1, 2, 3]))])
    for _ in range(int(rng.integers(1, 4))):
        places = [at for mark in SIGNATURES for at in _places(bytes(content), mark)]
        at = places[rng.integers(len(places))] + int(rng.integers(4, 64))
        width = int(rng.choice([1, 2, 4, 8]))
        content[at : at + width] = (extreme(rng) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(content)


def _places(content: bytes, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


def object_headers(rng: Rng) -> bytes:
    """A message in an object header of the first version (a type, a size, flags) of another type or size."""
    content = bytearray(bases()[int(rng.choice([0, 4]))])
    headers = [
        at
        for at in range(0, len(content) - 16, 8)
        if content[at] == 1 and content[at + 1] == 0 and content[at + 4 : at + 8] == b"\1\0\0\0"
    ]
    at = headers[rng.integers(len(headers))]
    (size,) = struct.unpack_from("<I", content, at + 8)
    field = at + 16 + 8 * int(rng.integers(0, max(1, min(size, 400) // 8)))
    content[field : field + 2] = struct.pack("<H", int(rng.choice([*range(25), 0xFFFF])))
    if rng.random() < 0.5:
        content[field + 2 : field + 4] = struct.pack("<H", extreme(rng) & 0xFFFF)
    return bytes(content)


def torn(rng: Rng) -> bytes:
    content = bases()[rng.integers(len(bases()))]
    at = int(rng.integers(0, len(content)))
    return [content[:at], content[:at] + b"\0" * (len(content) - at), content[at:], content + rng.bytes(500)][
        rng.integers(4)
    ]


def another_format(rng: Rng) -> bytes:
    return [b"CDF\x01" + b"\0" * 28, b"CDF\x02" + b"\xff" * 200, b"CDF\x05" + rng.bytes(200),
    b"\x0e\x03\x13\x01" + rng.bytes(100), b"GRIB",
            b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04" + rng.bytes(60),
            b'{"zarr_format": 2}'][rng.integers(9)]  # fmt: skip


SHARDS: dict[str, dict[str, Mutator]] = {
    "nc": {
        mutator.__name__: mutator
        for mutator in (
            attributes, times, a_wrong_time_step, types, values, shapes, dimensions, a_time_of_its_own,
            external_storage,
            external_coordinates, virtual_dataset, links, filters, bomb, many_things, structures, object_headers, torn,
            another_format,
        )
    }
}  # fmt: skip
