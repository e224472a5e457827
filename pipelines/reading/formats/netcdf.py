"""Radar events, CF NetCDF: every issue time with enough past frames is a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from pipelines.reading.formats.entry import Entry, ReadOptions, npy_bytes
from pipelines.reading.media.radar import radar_windows


def read_netcdf(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """A CF NetCDF radar event: every issue time with enough past frames is a sample."""
    if options.window is None:
        yield Entry(name, error="UnsupportedMedia: this hybrid does not read radar events")
        return
    stem = name.removesuffix(".nc")
    data = stream.read(options.limits.max_bytes + 1)  # one byte too many is refused by `radar_windows`
    for item in radar_windows(data, options.window, options.with_target, options.stride, options.limits):
        sample_id = f"{stem}/{item.issue_time}" if item.issue_time else stem
        if item.error is not None or item.frames is None:
            yield Entry(sample_id, error=str(item.error))
            continue
        fields = {
            "issue_time": item.issue_time,
            "step_minutes": item.step_minutes,
            "km_per_pixel": item.km_per_pixel,
        }
        yield Entry(sample_id, npy_bytes(item.frames), "npy", fields)
