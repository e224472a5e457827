"""Radar events → windows: a CF NetCDF file of rain rates is cut into one sample for each issue time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Window
from pipelines.reading.limits import DEFAULT_LIMITS, Limits, bad_sample, check_size

if TYPE_CHECKING:
    import h5py
    import xarray as xr

RAIN = "rainfall_rate"
RAIN_DIMS = ("time", "y", "x")
RAIN_UNITS = ("mm/h", "mm h-1", "mm h^-1", "mm/hr", "mm hr-1", "mm hour-1", "mm/hour")
MAX_OBJECTS = 10_000
"""Groups and variables of an event."""
MAX_NAME = 200
FILTERS = (1, 2, 3, 4, 5, 6, 32000)
"""HDF5's own (deflate, shuffle, fletcher32, szip, nbit, scaleoffset) and h5py's lzf."""


@dataclass(frozen=True)
class RadarWindow:
    """One sample of a radar event, or why there is none."""

    issue_time: str | None
    """ISO 8601, UTC (`2016-09-28T15:30:00Z`); None where the whole file is bad."""
    step_minutes: float
    km_per_pixel: float | None
    frames: np.ndarray | None
    """float32 `[time, y, x]` in mm/h, NaN where missing: `past_frames` frames up to the issue time, then the leads."""
    error: BadSample | None = None


@dataclass(frozen=True)
class RadarEvent:
    """A radar event in memory, still packed; `rain` is decoded where it is sliced."""

    rain: xr.DataArray
    times: np.ndarray
    """datetime64[s] `[time]`, UTC."""
    step: np.timedelta64
    km_per_pixel: float | None


def radar_windows(
    data: bytes, window: Window, with_target: bool, stride: int = 1, limits: Limits = DEFAULT_LIMITS
) -> Iterator[RadarWindow]:
    """Cuts a CF NetCDF radar event (`rainfall_rate` [time, y, x] in mm/h) into one window for each issue time.

    A frame with `window.past_frames - 1` frames before it is an issue time; with a target, only if all its lead times
    (`horizon_minutes // step`) are in the file, too. A window over a gap, a repeated or an unordered time is an error
    item that names the time; a file that cannot be used at all is one error item without issue time.

    Memory: the packed event once, and one window.

    Args:
        data: the file.
        window: past frames and horizon.
        with_target: whether windows include the frames at the lead times.
        stride: only every `stride`-th issue time, from the first.
        limits: what the file may cost.
    """
    try:
        event = open_event(data, limits)
        leads = _lead_frames(event, window) if with_target else 0
        count = len(event.times)
        needed = window.past_frames + leads
        if count < needed:
            raise BadSample("TooFewFrames", f"the event has {count} frames, one window needs {needed}")
    except BadSample as error:
        yield RadarWindow(None, 0.0, None, None, error)
        return
    for issue in range(window.past_frames - 1, count - leads, stride):
        yield _cut_window(event, issue - window.past_frames + 1, issue, issue + leads + 1)


def _lead_frames(event: RadarEvent, window: Window) -> int:
    leads = int(np.timedelta64(window.horizon_minutes, "m") // event.step)
    if leads < 1:
        minutes = event.step / np.timedelta64(1, "m")
        message = f"the time step of {minutes:g} minutes is longer than the horizon of {window.horizon_minutes}"
        raise BadSample("RadarTimeError", message)
    return leads


def _cut_window(event: RadarEvent, first: int, issue: int, stop: int) -> RadarWindow:
    issue_time = f"{event.times[issue]}Z"
    step_minutes = float(event.step / np.timedelta64(1, "m"))
    trouble = _time_trouble(event.times[first:stop], event.step)
    if trouble is not None:
        error = BadSample("RadarTimeError", trouble)
        return RadarWindow(issue_time, step_minutes, event.km_per_pixel, None, error)
    try:
        with bad_sample("RadarDecodeError"):
            frames = np.ascontiguousarray(event.rain[first:stop].to_numpy(), dtype=np.float32)
    except BadSample as error:  # a scale factor that is no number, a chunk that is damaged
        return RadarWindow(issue_time, step_minutes, event.km_per_pixel, None, error)
    return RadarWindow(issue_time, step_minutes, event.km_per_pixel, frames)


def _time_trouble(times: np.ndarray, step: np.timedelta64) -> str | None:
    """What is wrong with the first pair of neighbouring times that are not one step apart."""
    wrong = np.flatnonzero(np.diff(times) != step)
    if len(wrong) == 0:
        return None
    before, after = times[wrong[0]], times[wrong[0] + 1]
    if after == before:
        return f"the frame of {after}Z is there twice"
    if after < before:
        return f"the frame of {after}Z comes after that of {before}Z"
    if after - before > step:
        return f"the frame of {before + step}Z is missing"
    return f"the frame of {after}Z is off the time step of {step / np.timedelta64(1, 'm'):g} minutes"


def open_event(data: bytes, limits: Limits = DEFAULT_LIMITS) -> RadarEvent:
    """Reads and checks a radar event.

    Raises:
        BadSample: `RadarDecodeError`, `MediaTooLarge`, `ArrayTooLarge`, `RadarVariableError` or `RadarTimeError`.
    """
    import xarray as xr  # slow to import, and only radar needs it

    check_size(data, limits)
    with bad_sample("RadarDecodeError"):
        check_hdf5(data)
        with xr.open_dataset(io.BytesIO(data), engine="h5netcdf", mask_and_scale=False, decode_times=False) as packed:
            _check_rain(packed, limits, len(data))
            wanted = packed[[RAIN]].load()
        times = _event_times(xr.decode_cf(wanted[["time"]]))
        decoded = xr.decode_cf(wanted, decode_times=False)
        return RadarEvent(decoded[RAIN], times, _usual_step(times), _km_per_pixel(wanted))


def check_hdf5(data: bytes) -> None:
    """Refuses what would read other files, before any data is read: HDF5 follows external storage, virtual datasets and
    links to wherever they point, and loads filters that it does not know as libraries.

    Walks the headers of all objects (HDF5 File Format Specification 3.0, IV.A.2).

    Raises:
        BadSample: `RadarDecodeError`, names the object.
    """
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        seen: set[tuple[int, int]] = set()
        waiting: list[tuple[str, h5py.h5g.GroupID]] = [("", file["/"].id)]
        while waiting:
            path, group = waiting.pop()
            for name in group:
                where = f"{path}/{name.decode('utf-8', 'replace')}"[:MAX_NAME]
                if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                    raise BadSample("RadarDecodeError", f"{where} is a link to another place")
                item = h5py.h5o.open(group, name)
                info = h5py.h5o.get_info(item)
                if (key := (info.fileno, info.addr)) in seen:
                    continue
                seen.add(key)
                if len(seen) > MAX_OBJECTS:
                    raise BadSample("RadarDecodeError", f"more than {MAX_OBJECTS} objects")
                if isinstance(item, h5py.h5g.GroupID):
                    waiting.append((where, item))
                elif isinstance(item, h5py.h5d.DatasetID):
                    _check_storage(where, item.get_create_plist())


def _check_storage(where: str, made: h5py.h5p.PropDCID) -> None:
    import h5py

    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise BadSample("RadarDecodeError", f"{where} is stored in another file")
    for number in range(made.get_nfilters()):
        if (code := made.get_filter(number)[0]) not in FILTERS:
            raise BadSample("RadarDecodeError", f"{where} needs the HDF5 filter {code}, which is not built in")


def _check_rain(packed: xr.Dataset, limits: Limits, stored: int) -> None:
    if RAIN not in packed:
        found = ", ".join(sorted(map(str, packed.data_vars))) or "none"
        raise BadSample("RadarVariableError", f"there is no variable '{RAIN}'; found: {found}")
    rain = packed[RAIN]
    if rain.dims != RAIN_DIMS:
        raise BadSample("RadarVariableError", f"'{RAIN}' has the dimensions {rain.dims}, not {RAIN_DIMS}")
    limits.check_rows(len(rain), stored)
    if "time" not in packed.coords:
        raise BadSample("RadarVariableError", "there is no coordinate 'time'")
    units = rain.attrs.get("units")
    if units not in RAIN_UNITS:
        raise BadSample("RadarVariableError", f"'{RAIN}' has the units {units!r}, not 'mm/h'")
    if rain.nbytes > limits.max_array_bytes:
        message = f"{rain.nbytes:,} bytes in {rain.shape} are more than max_array_bytes={limits.max_array_bytes:,}"
        raise BadSample("ArrayTooLarge", message)


def _event_times(decoded: xr.Dataset) -> np.ndarray:
    """Times rounded to seconds: hours or days stored as floating-point numbers are off by some nanoseconds."""
    times = decoded["time"].to_numpy()
    if times.dtype.kind != "M" or np.isnat(times).any():
        raise BadSample("RadarTimeError", "the coordinate 'time' holds no CF times ('seconds since 1970-01-01')")
    return (times.astype("datetime64[ms]") + np.timedelta64(500, "ms")).astype("datetime64[s]")


def _usual_step(times: np.ndarray) -> np.timedelta64:
    """The most frequent distance of neighbouring frames: gaps do not change it."""
    steps = np.diff(times)
    steps = steps[steps > np.timedelta64(0, "s")]
    if len(steps) == 0:
        raise BadSample("TooFewFrames", f"the event has {len(times)} frames in time order, at least 2 are needed")
    values, counts = np.unique(steps, return_counts=True)
    return cast("np.timedelta64", values[np.argmax(counts)])


def _km_per_pixel(event: xr.Dataset) -> float | None:
    """From the global attribute of this name, or else from the spacing of `x`, if it is in metres or kilometres."""
    stated: Any = event.attrs.get("km_per_pixel")
    if stated is not None:
        return float(stated)
    x = event.coords.get("x")
    factor = {"m": 0.001, "metre": 0.001, "meter": 0.001, "km": 1.0}.get("" if x is None else str(x.attrs.get("units")))
    if x is None or factor is None or x.size < 2:
        return None
    return float(abs(x[1] - x[0])) * factor
