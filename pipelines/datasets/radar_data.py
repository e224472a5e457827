"""Radar events (CF NetCDF) → shards: split by whole events, and cropped to their centre if asked."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import h5netcdf
import numpy as np

from hybrid_models.errors import BadSample, UsageError
from pipelines import storage
from pipelines.datasets.opened import Make, opened
from pipelines.datasets.writer import DatasetWriter, Prepared
from pipelines.reading.limits import bad_sample
from pipelines.reading.media.radar import RAIN, RAIN_DIMS, check_hdf5, open_event

PLACE_ATTRIBUTES = ("geospatial_", "corner_")
"""Beginnings of the names of global attributes that say where the grid's edges are: no longer true of a crop."""
TIMES = struct.Struct(">qq")
"""An event's first time in seconds since 1970, and how many frames it has."""


@dataclass(frozen=True)
class _RadarFile:
    """One event, looked at but not kept in memory."""

    name: str
    uri: str
    first_time: int
    """Seconds since 1970."""
    frames: int


def prepare_radar(source: str, out: str, crop: int, val: Sequence[str], test: Sequence[str]) -> Prepared:
    """One NetCDF shard for each event, packed as it was.

    Args:
        source: folder of `.nc` files, one event each: `rainfall_rate` [time, y, x] in mm/h.
        out: where the splits go.
        crop: side of the central square that is kept, in pixels; 0 keeps all.
        val: names of the validation events (file names, with or without `.nc`).
        test: names of the test events. If neither is given, the newest event is test and the one before it val: a
            nowcaster is used on weather later than what it learned from.

    Raises:
        UsageError: there are no events, one cannot be read, two have one name, or the splits do not fit them.
    """
    if crop < 0:
        raise UsageError(f"`crop` is {crop}: it must be 0 (no crop) or a number of pixels")
    events = [_look_at(file) for file in storage.list_files(source) if file.name.endswith(".nc")]
    if not events:
        raise UsageError(f"{storage.join(source, '*.nc')} is not there: expected a CF NetCDF file for each radar event")
    _check_names(events)
    splits = _assign_splits(events, list(map(_stem, val)), list(map(_stem, test)))
    files = [f"{split}/{event.name}.nc" for split, members in splits.items() for event in members]
    writer = DatasetWriter(out, "radar", 1, {"crop": crop}, files=files)
    for split, members in splits.items():
        for event in members:
            data = _opened(event.uri, partial(crop_event, size=crop)) if crop else storage.read_bytes(event.uri)
            writer.write_file(split, f"{event.name}.nc", data, event.frames)
    return writer.finish()


def _check_names(events: Sequence[_RadarFile]) -> None:
    """Refuses two events of one name, as of two sites: one would replace the other."""
    first: dict[str, str] = {}
    for event in events:
        if (other := first.setdefault(event.name, event.uri)) != event.uri:
            raise UsageError(f"{other} and {event.uri} have one name, and so would their shards: rename one")


def _stem(name: str) -> str:
    return name.removesuffix(".nc")


def _look_at(file: storage.FileInfo) -> _RadarFile:
    told = _opened(file.uri, _times_of)
    if len(told) != TIMES.size:
        raise UsageError(f"{file.uri} cannot be used: the process that opened it answered nonsense")
    first_time, frames = TIMES.unpack(told)
    return _RadarFile(_stem(file.name), file.uri, first_time, frames)


def _opened(uri: str, make: Make) -> bytes:
    try:
        return opened(uri, make)
    except BadSample as error:
        raise UsageError(f"{uri} cannot be used: {error}") from error


def _times_of(data: bytes) -> bytes:
    """`TIMES` of an event that can be used.

    Raises:
        BadSample: as `open_event`.
    """
    event = open_event(data)
    return TIMES.pack(int(event.times[0].astype(np.int64)), len(event.times))


def _assign_splits(
    events: Sequence[_RadarFile], val: Sequence[str], test: Sequence[str]
) -> dict[str, list[_RadarFile]]:
    """Split → events, every event exactly once."""
    names = [event.name for event in events]
    if not val and not test:
        if len(events) < 3:
            raise UsageError(f"{len(events)} events make no three splits: say which are `val` and `test`")
        *_, val_event, test_event = sorted(events, key=lambda event: event.first_time)
        val, test = [val_event.name], [test_event.name]
    for name in (*val, *test):
        if name not in names:
            raise UsageError(f"there is no event '{name}'; there are {', '.join(names)}")
    twice = set(val) & set(test)
    if twice:
        raise UsageError(f"event '{min(twice)}' is in both `val` and `test`")
    splits = {
        "train": [event for event in events if event.name not in (*val, *test)],
        "val": [event for event in events if event.name in val],
        "test": [event for event in events if event.name in test],
    }
    if not splits["train"]:
        raise UsageError("no event is left to train on: name fewer in `val` and `test`")
    return {split: members for split, members in splits.items() if members}


def crop_event(data: bytes, size: int) -> bytes:
    """The central `size` x `size` pixels of an event, packed and described as before; smaller grids stay whole. Of its
    variables those stay that say when, where and how much it rained.

    Raises:
        BadSample: `RadarDecodeError`: a part of it is damaged, or lies in another file.
    """
    with bad_sample("RadarDecodeError"):
        check_hdf5(data)
        return _cropped(data, size)


def _cropped(data: bytes, size: int) -> bytes:
    buffer = io.BytesIO()
    with h5netcdf.File(io.BytesIO(data), "r") as whole, h5netcdf.File(buffer, "w") as cropped:
        spans = {
            name: _span(dim.size, size if name in ("y", "x") else dim.size) for name, dim in whole.dimensions.items()
        }
        cropped.dimensions = {name: span.stop - span.start for name, span in spans.items()}
        cropped.attrs.update({k: v for k, v in whole.attrs.items() if not k.startswith(PLACE_ATTRIBUTES)})
        history = whole.attrs.get("history", "")
        cropped.attrs["history"] = f"{history}\n".lstrip() + f"cropped to the central {size} x {size} pixels"
        for name, variable in _rain(whole).items():
            _copy_variable(cropped, name, variable, tuple(spans[dim] for dim in variable.dimensions))
    return buffer.getvalue()


def _rain(event: h5netcdf.File) -> dict[str, h5netcdf.Variable]:
    """The rain, its coordinates and its grid mapping, a number with attributes; others may be of any size."""
    grid = str(event.variables[RAIN].attrs.get("grid_mapping", ""))
    dims = {RAIN: RAIN_DIMS, **{name: (name,) for name in RAIN_DIMS}, grid: ()}
    return {name: variable for name, variable in event.variables.items() if variable.dimensions == dims.get(name)}


def _span(length: int, wanted: int) -> slice:
    start = max(0, (length - wanted) // 2)
    return slice(start, start + min(length, wanted))


def _copy_variable(target: h5netcdf.File, name: str, variable: h5netcdf.Variable, part: tuple[slice, ...]) -> None:
    """Copies the packed numbers; each chunk is one frame."""
    values = variable[part] if part else variable[...]
    attrs = dict(variable.attrs)
    storage_options = {}
    if values.ndim == 3:
        storage_options = {
            "chunks": (1, *values.shape[1:]),
            "compression": "gzip",
            "compression_opts": 4,
            "shuffle": True,
        }
    fill = attrs.pop("_FillValue", None)
    copy = target.create_variable(name, variable.dimensions, data=values, fillvalue=fill, **storage_options)
    copy.attrs.update(attrs)
