"""Radar events → shards; the events are made by the tests of `reading.radar`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Window
from pipelines import storage
from pipelines.datasets import radar_data
from pipelines.datasets.radar_data import crop_event, prepare_radar
from pipelines.reading.media.radar import radar_windows
from tests.pipelines.datasets.test_writer import files
from tests.pipelines.reading.media.test_radar import event_bytes, external, hdf5


def make_events(folder: Path) -> None:
    """Four events; by name d is last, by time b."""
    folder.mkdir()
    for name, start in (("a", 0), ("b", 9000), ("c", 3000), ("d", 6000)):
        minutes = [start + 5 * i for i in range(4)]
        (folder / f"{name}.nc").write_bytes(event_bytes(minutes, attrs={"title": name, "corner_points": "gone"}))


def splits(summary: dict, out: Path) -> dict[str, list[str]]:
    return {split: sorted(p.stem for p in (out / split).iterdir()) for split in summary.splits}


def test_the_newest_events_are_kept_back(tmp_path: Path) -> None:
    make_events(tmp_path / "source")
    out = tmp_path / "out"
    summary = prepare_radar(str(tmp_path / "source"), str(out), crop=0, val=(), test=())
    assert splits(summary, out) == {"train": ["a", "c"], "val": ["d"], "test": ["b"]}
    assert summary.splits == {"train": 8, "val": 4, "test": 4}
    assert (out / "val/d.nc").read_bytes() == (tmp_path / "source/d.nc").read_bytes()


def test_splits_can_be_named_and_hold_every_event_once(tmp_path: Path) -> None:
    make_events(tmp_path / "source")
    out = tmp_path / "out"
    summary = prepare_radar(str(tmp_path / "source"), str(out), crop=2, val=("a",), test=("c.nc", "d"))
    assert splits(summary, out) == {"train": ["b"], "val": ["a"], "test": ["c", "d"]}
    first = files(out)
    prepare_radar(str(tmp_path / "source"), str(out), crop=2, val=("a",), test=("c.nc", "d"))
    assert files(out) == first
    summary = prepare_radar(str(tmp_path / "source"), str(out), crop=2, val=(), test=("a",))
    assert sorted(name for name in files(out) if name.endswith(".nc")) == [
        "test/a.nc",
        "train/b.nc",
        "train/c.nc",
        "train/d.nc",
    ]
    assert json.loads(files(out)["_manifest.json"])["options"] == {"rows_per_shard": 1, "crop": 2}


def test_a_crop_is_the_centre_packed_as_before() -> None:
    whole = event_bytes([0, 5, 10], attrs={"km_per_pixel": 2.0, "corner_points": "NW 1 2", "history": "made"})
    cropped = crop_event(whole, 2)
    window = Window(past_frames=3, horizon_minutes=5)
    (before,), (after,) = (list(radar_windows(data, window, False)) for data in (whole, cropped))
    assert before.frames is not None
    assert after.frames is not None
    np.testing.assert_array_equal(after.frames, before.frames[:, 1:3, 1:3])  # of 4 x 5 pixels
    assert (after.issue_time, after.km_per_pixel) == (before.issue_time, 2.0)
    with h5netcdf.File(io.BytesIO(cropped), "r") as file:
        rain = file.variables["rainfall_rate"]
        assert rain.dtype == np.uint16
        assert rain.attrs["_FillValue"] == 65535
        assert rain.attrs["scale_factor"] == np.float32(0.01)
        assert rain.chunks == (1, 2, 2)
        assert file.variables["x"][...].tolist() == [2000.0, 4000.0]
        assert file.attrs["history"] == "made\ncropped to the central 2 x 2 pixels"
        assert "corner_points" not in file.attrs
    assert crop_event(whole, 2) == cropped


def test_a_grid_smaller_than_the_crop_stays_whole() -> None:
    whole = event_bytes([0, 5, 10])
    (before,), (after,) = (list(radar_windows(data, Window(3, 5), False)) for data in (whole, crop_event(whole, 100)))
    np.testing.assert_array_equal(after.frames, before.frames)  # type: ignore[arg-type]


def test_a_crop_keeps_what_tells_of_the_rain_alone() -> None:
    """A variable that nobody asks for may be of a terabyte that is written nowhere."""
    buffer = io.BytesIO(event_bytes([0, 5, 10]))
    with h5netcdf.File(buffer, "a") as file:
        before = set(file.variables)
        file.variables["rainfall_rate"].attrs["grid_mapping"] = "crs"
        file.create_variable("crs", (), "i4").attrs["grid_mapping_name"] = "polar"
        file.dimensions["far"] = 1 << 20
        file.create_variable("more", ("far", "far"), "f8", chunks=(1 << 10, 1 << 10))
    with h5netcdf.File(io.BytesIO(crop_event(buffer.getvalue(), 2)), "r") as cropped:
        assert set(cropped.variables) == {*before, "crs"}
        assert cropped.variables["crs"].attrs["grid_mapping_name"] == "polar"


def test_events_are_opened_in_the_decoding_child_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    make_events(tmp_path / "source")
    expected = crop_event((tmp_path / "source/b.nc").read_bytes(), 2)
    for name in "abcd":
        storage.write_bytes(f"{s3}/source/{name}.nc", (tmp_path / f"source/{name}.nc").read_bytes())

    def opened_here(*arguments: object, **options: object) -> None:
        raise AssertionError("a stranger's file is opened beside the keys")

    monkeypatch.setattr(h5py, "File", opened_here)
    monkeypatch.setattr(h5netcdf, "File", opened_here)
    prepare_radar(f"{s3}/source", str(tmp_path / "out"), crop=2, val=(), test=())
    assert (tmp_path / "out/test/b.nc").read_bytes() == expected


def test_a_damaged_event_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSample, match=r"^RadarDecodeError: "):
        crop_event(b"not HDF5", 2)
    with pytest.raises(BadSample, match=r"^RadarDecodeError: /secret is stored in another file$"):
        crop_event(hdf5(external, event_bytes([0, 5, 10])), 2)
    make_events(tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(radar_data, "opened", lambda *_: b"7")
        with pytest.raises(UsageError, match=r"a\.nc cannot be used: the process that opened it answered nonsense$"):
            prepare_radar(str(tmp_path / "source"), str(tmp_path / "out"), crop=2, val=(), test=())
    (tmp_path / "source/c.nc").write_bytes(b"not HDF5")
    with pytest.raises(UsageError, match=r"source/c\.nc cannot be used: RadarDecodeError: .*"):
        prepare_radar(str(tmp_path / "source"), str(tmp_path / "out"), crop=2, val=(), test=())


def test_two_sites_have_no_event_of_one_name(tmp_path: Path) -> None:
    make_events(tmp_path / "source")
    (tmp_path / "source" / "site").mkdir()
    (tmp_path / "source" / "site" / "c.nc").write_bytes(event_bytes([0, 5, 10, 15]))
    with pytest.raises(UsageError, match=r"source/c\.nc and .*/source/site/c\.nc have one name, .*: rename one"):
        prepare_radar(str(tmp_path / "source"), str(tmp_path / "out"), crop=0, val=(), test=())
    assert not (tmp_path / "out" / "train").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    source, out = tmp_path / "source", str(tmp_path / "out")
    make_events(source)

    def fails(match: str, crop: int = 0, val: tuple[str, ...] = (), test: tuple[str, ...] = ()) -> None:
        with pytest.raises(UsageError, match=match):
            prepare_radar(str(source), out, crop, val, test)

    fails("there is no event 'x'; there are a, b, c, d", val=("x",))
    fails("event 'a' is in both `val` and `test`", val=("a", "b"), test=("a",))
    fails("no event is left to train on", val=("a", "b"), test=("c", "d"))
    fails("`crop` is -1", crop=-1)
    for name in "cd":
        (source / f"{name}.nc").unlink()
    fails("2 events make no three splits: say which are `val` and `test`")
    (source / "b.nc").write_bytes(b"broken")
    fails(r"b\.nc cannot be used: RadarDecodeError: ")
    for path in source.iterdir():
        path.unlink()
    fails(r"\*\.nc is not there: expected a CF NetCDF file")
