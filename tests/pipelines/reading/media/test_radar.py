"""Radar events → windows; the events are written here, with the packing that weather services use."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest

from hybrid_models.inputs import Window
from pipelines.reading.limits import Limits
from pipelines.reading.media.radar import RadarWindow, radar_windows

START = 1_475_074_800  # 2016-09-28T15:00:00Z
WINDOW = Window(past_frames=3, horizon_minutes=10)


def event_bytes(
    minutes: Sequence[float],
    *,
    name: str = "rainfall_rate",
    dims: tuple[str, ...] = ("time", "y", "x"),
    rain: np.ndarray | None = None,
    rain_attrs: dict[str, Any] | None = None,
    time_units: str | None = "seconds since 1970-01-01",
    attrs: dict[str, Any] | None = None,
) -> bytes:
    """A NetCDF4 event of 4 x 5 pixels: the packed value of pixel (y, x) in frame t is 100 t + 10 y + x (0.01 mm/h)."""
    count = len(minutes)
    if rain is None:
        t, y, x = np.mgrid[0:count, 0:4, 0:5]
        rain = (100 * t + 10 * y + x).astype(np.uint16)
        rain[:, 0, 0] = 65535
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        file.dimensions = dict(zip(("time", "y", "x"), (count, *rain.shape[1:]), strict=True))
        time = file.create_variable("time", ("time",), data=np.array(minutes) * 60 + START)
        if time_units:
            time.attrs.update(units=time_units, calendar="standard")
        columns = file.create_variable("x", ("x",), data=np.arange(rain.shape[2]) * 2000.0)
        columns.attrs["units"] = "m"
        shape = rain.transpose([("time", "y", "x").index(d) for d in dims])
        variable = file.create_variable(name, dims, data=shape, fillvalue=np.uint16(65535), compression="gzip")
        packing = {"units": "mm/h", "scale_factor": np.float32(0.01)} if rain_attrs is None else rain_attrs
        variable.attrs.update(packing)
        file.attrs.update(attrs or {})
    return buffer.getvalue()


def windows(data: bytes, with_target: bool = False, **options: Any) -> list[RadarWindow]:
    return list(radar_windows(data, WINDOW, with_target, **options))


def only_error(data: bytes, **options: Any) -> str:
    items = windows(data, **options)
    assert len(items) == 1
    assert items[0].issue_time is None
    assert items[0].frames is None
    return str(items[0].error)


def test_every_frame_with_enough_past_is_an_issue_time() -> None:
    items = windows(event_bytes([0, 5, 10, 15, 20, 25]))
    assert [item.issue_time for item in items] == [f"2016-09-28T15:{m}:00Z" for m in (10, 15, 20, 25)]
    for first, item in enumerate(items):
        assert item.error is None
        assert item.step_minutes == 5
        assert item.km_per_pixel == 2.0
        assert item.frames is not None
        assert (item.frames.shape, item.frames.dtype) == ((3, 4, 5), np.float32)
        expected = np.arange(first, first + 3) + 0.23  # mm/h at y=2, x=3
        np.testing.assert_allclose(item.frames[:, 2, 3], expected, rtol=1e-6)
        assert np.isnan(item.frames[:, 0, 0]).all()
        assert np.isnan(item.frames).sum() == 3


def test_a_target_needs_all_lead_times_in_the_file() -> None:
    items = windows(event_bytes([0, 5, 10, 15, 20, 25]), with_target=True)
    assert [item.issue_time for item in items] == ["2016-09-28T15:10:00Z", "2016-09-28T15:15:00Z"]
    assert items[1].frames is not None
    np.testing.assert_allclose(items[1].frames[:, 1, 1], [1.11, 2.11, 3.11, 4.11, 5.11], rtol=1e-6)  # 10 min = 2 leads


def test_stride_takes_every_nth_issue_time_from_the_first() -> None:
    items = windows(event_bytes(range(0, 50, 5)), stride=3)
    assert [item.issue_time for item in items] == [f"2016-09-28T15:{m}:00Z" for m in (10, 25, 40)]


def test_only_windows_over_a_gap_are_errors() -> None:
    items = windows(event_bytes([0, 5, 10, 20, 25, 30, 35]))  # 15:15 is missing
    found = [(item.issue_time or "")[11:16] + (f" {item.error}" if item.error else "") for item in items]
    missing = "RadarTimeError: the frame of 2016-09-28T15:15:00Z is missing"
    assert found == ["15:10", f"15:20 {missing}", f"15:25 {missing}", "15:30", "15:35"]
    assert all((item.frames is None) == (item.error is not None) for item in items)


def test_a_gap_among_the_leads_matters_only_with_a_target() -> None:
    data = event_bytes([0, 5, 10, 15, 25, 30])
    assert windows(data)[0].error is None
    assert windows(data, with_target=True)[0].error is not None


@pytest.mark.parametrize(
    ("minutes", "message"),
    [
        ([0, 5, 10, 10, 15, 20, 25], "the frame of 2016-09-28T15:10:00Z is there twice"),
        ([0, 5, 15, 10, 20, 25, 30, 35], "the frame of 2016-09-28T15:10:00Z is missing"),
        ([0, 10, 5, 10, 15, 20, 25], "the frame of 2016-09-28T15:05:00Z is missing"),
        ([0, 5, 10, 12, 17, 22, 27], "the frame of 2016-09-28T15:12:00Z is off the time step of 5 minutes"),
        ([10, 5, 0, 5, 10, 15], "the frame of 2016-09-28T15:05:00Z comes after that of 2016-09-28T15:10:00Z"),
    ],
)
def test_trouble_with_times_is_named_and_does_not_reach_other_windows(minutes: list[int], message: str) -> None:
    items = windows(event_bytes(minutes))
    assert f"RadarTimeError: {message}" in [str(item.error) for item in items]
    last = items[-1]
    assert last.error is None
    assert last.frames is not None
    np.testing.assert_allclose(last.frames[:, 2, 3], np.arange(len(minutes) - 3, len(minutes)) + 0.23, rtol=1e-6)


def test_times_in_fractions_of_hours_are_a_regular_grid() -> None:
    thirds = (np.arange(6) * 10 * 60 / 3600) + START / 3600
    data = event_bytes((thirds - START) / 60, time_units="hours since 1970-01-01")
    items = windows(data)
    assert [item.step_minutes for item in items] == [10] * 4
    assert [item.error for item in items] == [None] * 4
    assert items[0].issue_time == "2016-09-28T15:20:00Z"


def test_the_stated_pixel_size_wins_over_the_coordinates() -> None:
    assert windows(event_bytes([0, 5, 10], attrs={"km_per_pixel": 1.5}))[0].km_per_pixel == 1.5


def test_unpacked_floating_point_rain_is_read_too() -> None:
    rain = np.full((3, 4, 5), 1.5, np.float64)
    rain[1, 1, 1] = np.nan
    item = windows(event_bytes([0, 5, 10], rain=rain, rain_attrs={"units": "mm h-1"}))[0]
    assert item.frames is not None
    assert np.isnan(item.frames[1, 1, 1])
    assert item.frames[0, 0, 0] == np.float32(1.5)


def test_files_that_cannot_be_used_say_why() -> None:
    good = event_bytes([0, 5, 10])
    for broken in (b"", b"CDF\x01 no", good[: len(good) // 2], good[:100]):
        assert only_error(broken).startswith("RadarDecodeError: ")
    assert only_error(event_bytes([0, 5, 10], name="rain")) == (
        "RadarVariableError: there is no variable 'rainfall_rate'; found: rain"
    )
    assert "dimensions ('x', 'y', 'time'), not ('time', 'y', 'x')" in only_error(
        event_bytes([0, 5, 10], dims=("x", "y", "time"))
    )
    assert "units 'm s-1', not 'mm/h'" in only_error(event_bytes([0, 5, 10], rain_attrs={"units": "m s-1"}))
    assert "holds no CF times" in only_error(event_bytes([0, 5, 10], time_units=None))
    assert only_error(event_bytes([0, 5])) == "TooFewFrames: the event has 2 frames, one window needs 3"
    assert only_error(event_bytes([0])).startswith("TooFewFrames: ")
    assert "longer than the horizon of 10" in str(windows(event_bytes([0, 30, 60, 90]), with_target=True)[0].error)


def test_too_large_events_are_refused_before_they_are_read() -> None:
    data = event_bytes([0, 5, 10])
    assert only_error(data, limits=Limits(max_bytes=100)).startswith("MediaTooLarge: ")
    assert only_error(data, limits=Limits(max_array_bytes=100)).startswith("ArrayTooLarge: ")
    assert only_error(data, limits=Limits(max_shard_rows=2)).startswith("TooManyRows: more than 2 rows (by default ")
    huge = io.BytesIO()
    with h5netcdf.File(huge, "w") as file:  # never written chunks cost nothing in the file
        file.dimensions = {"time": 10_000, "y": 10_000, "x": 10_000}
        file.create_variable("time", ("time",), "f8")
        rain = file.create_variable("rainfall_rate", ("time", "y", "x"), "u2", chunks=(1, 1000, 1000))
        rain.attrs["units"] = "mm/h"
    assert only_error(huge.getvalue()).startswith("ArrayTooLarge: ")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf's half-opened files
def test_bit_flips_never_raise() -> None:
    rng = np.random.default_rng(0)
    good = event_bytes([0, 5, 10, 15])
    errors = 0
    for _ in range(60):
        damaged = bytearray(good)
        for position in rng.integers(0, len(good), 20):
            damaged[position] ^= 1 << rng.integers(8)
        errors += any(item.error is not None for item in windows(bytes(damaged)))
    assert errors > 10


# ---- files made to read others --------------------------------------------------------------------------------------
def hdf5(change: Callable[[h5py.File], None], source: bytes | None = None) -> bytes:
    """An event, changed by HDF5's own means."""
    buffer = io.BytesIO(source or event_bytes([0, 5, 10, 15]))
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def external(file: h5py.File) -> None:
    file.create_dataset("secret", (7, 4, 5), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 4, 5), "u2")
    layout[:] = h5py.VirtualSource("/etc/hosts", "x", (4, 4, 5))
    file.create_virtual_dataset("secret", layout)


def soft(file: h5py.File) -> None:
    file["secret"] = h5py.SoftLink("/rainfall_rate")


def elsewhere(file: h5py.File) -> None:
    file.create_group("a/b")["secret"] = h5py.ExternalLink("/etc/hosts", "/x")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (external, "/secret is stored in another file"),
        (virtual, "/secret is stored in another file"),
        (soft, "/secret is a link to another place"),
        (elsewhere, "/a/b/secret is a link to another place"),
    ],
)
def test_events_that_lead_to_other_files_are_refused(change: Callable[[h5py.File], None], reason: str) -> None:
    assert only_error(hdf5(change)) == f"RadarDecodeError: {reason}"


def test_filters_that_are_not_built_in_are_refused() -> None:
    data = hdf5(lambda file: file.create_dataset("z", (4,), "u1", chunks=(4,), compression="lzf"))
    assert all(item.error is None for item in windows(data))
    # The filter's number in the object header's message (HDF5 File Format Specification 3.0, IV.A.2.l).
    at = data.index((32000).to_bytes(2, "little"))
    other = data[:at] + (32015).to_bytes(2, "little") + data[at + 2 :]
    assert only_error(other) == "RadarDecodeError: /z needs the HDF5 filter 32015, which is not built in"


def test_a_cycle_of_groups_ends() -> None:
    def cycle(file: h5py.File) -> None:
        file["self"] = file["/"]
        file.create_group("a")["b"] = file["/"]

    assert all(item.error is None for item in windows(hdf5(cycle)))


@pytest.mark.parametrize("scale", ["a word", np.array([1.0, 2.0])])
def test_packing_that_is_no_number_is_an_error_of_each_window(scale: Any) -> None:
    items = windows(event_bytes([0, 5, 10, 15], rain_attrs={"units": "mm/h", "scale_factor": scale}))
    assert {str(item.error).split(":")[0] for item in items} == {"RadarDecodeError"}
