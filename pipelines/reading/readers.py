"""One reader for each kind of shard: a stream → entries, in bounded memory.

A reader never loses data silently: a row that cannot be used is an entry with an error. Where it cannot go on it
raises, whatever it is that it stumbled over; a counter then tells how many rows there would have been.
"""

from __future__ import annotations

from pipelines.reading.formats.entry import Reader, RowCounter
from pipelines.reading.formats.netcdf import read_netcdf
from pipelines.reading.formats.parquet import count_parquet, read_parquet
from pipelines.reading.formats.tar import count_tar, read_tar
from pipelines.reading.formats.text import count_lines, gzipped, read_jsonl, read_tsv, read_txt

READERS: dict[str, Reader] = {
    ".tar": read_tar,
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".jsonl.gz": gzipped(read_jsonl),
    ".txt": read_txt,
    ".txt.gz": gzipped(read_txt),
    ".tsv": read_tsv,
    ".tsv.gz": gzipped(read_tsv),
    ".nc": read_netcdf,
}
COUNTERS: dict[str, RowCounter] = {
    ".tar": count_tar,
    ".parquet": count_parquet,
    **{suffix: count_lines for suffix in READERS if suffix.startswith((".jsonl", ".txt", ".tsv"))},
}


def is_event(uri: str) -> bool:
    """Whether a shard is a radar event, whose rows are windows that share frames."""
    return uri.lower().endswith(".nc")


def suffix_of(name: str) -> str | None:
    """Which reader an object has, by its name."""
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), None)
