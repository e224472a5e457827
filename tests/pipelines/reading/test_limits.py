"""Limits and the conversion of decoders' complaints."""

from __future__ import annotations

import errno
import math
import struct

import pyarrow as pa
import pytest

from hybrid_models.errors import BadSample, UsageError
from pipelines.nights.rules import QueryLimits
from pipelines.reading.limits import Limits, bad_sample, check_size, is_memory_error


@pytest.mark.parametrize("error", [struct.error("short"), SyntaxError("short"), OSError(5, "short")])
def test_any_decoder_error_becomes_a_bad_sample_of_the_kind(error: Exception) -> None:
    with pytest.raises(BadSample) as caught, bad_sample("ImageDecodeError"):
        raise error
    assert str(caught.value) == "ImageDecodeError: short"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("absurd"), OSError(errno.ENOMEM, "x"), pa.ArrowMemoryError("malloc of size 9 failed"),
        RuntimeError("std::bad_alloc"), ValueError("Unable to allocate 8.00 EiB for an array"),
    ],
)  # fmt: skip
def test_too_little_memory_is_known_by_what_it_is(error: Exception) -> None:
    told = r"^MemoryLimit: this row needs more memory than max_memory allows$"
    with pytest.raises(BadSample, match=told), bad_sample("ImageDecodeError"):
        raise error
    assert is_memory_error(error)
    assert not is_memory_error(ValueError("the file is short"))


def test_only_the_first_line_is_kept_and_an_empty_message_becomes_the_type() -> None:
    with pytest.raises(BadSample, match=r"^K: one$"), bad_sample("K"):
        raise ValueError("one\ntwo")
    with pytest.raises(BadSample, match=r"^K: KeyError$"), bad_sample("K"):
        raise KeyError
    with pytest.raises(BadSample, match=r"^K: No such file$"), bad_sample("K"):
        raise OSError(2, "No such file", "<none>")


@pytest.mark.parametrize("error", [ImportError("no h5py"), BadSample("Other", "inner")])
def test_the_machines_trouble_and_inner_bad_samples_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, bad_sample("ImageDecodeError"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["max_bytes", "max_seconds", "max_wasted_seconds", "max_shard_rows", "max_shard_seconds"]
)
def test_a_limit_is_a_number_above_0(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"`limits.{name}` is {value}: it must be a number above 0"):
        Limits(**{name: value})
    with pytest.raises(UsageError, match=r"`limits\.max_seconds` is "):
        QueryLimits(max_seconds=value)


def test_a_shard_may_have_rows_and_take_time_by_its_size() -> None:
    limits = Limits()
    assert limits.shard_rows(44_000) == 904_000
    assert limits.shard_seconds(4096 * 100) == 3700
    limits.check_rows(200_016, 1)
    with pytest.raises(
        BadSample, match=r"^TooManyRows: more than 200,016 rows \(by default 200,000 and 16 for each of"
    ):
        limits.check_rows(200_017, 1)
    own = Limits(max_shard_rows=7, max_shard_seconds=0.5)
    assert (own.shard_rows(1 << 30), own.shard_seconds(1 << 30)) == (7, 0.5)
    assert own.too_long(10) == (
        "ShardTakesTooLong: more than 0.5 s of CPU (by default 3,600 and one for each 4,096 of its 10 bytes); "
        "`limits.max_shard_seconds` allows more"
    )


def test_size_is_checked_against_the_limit() -> None:
    check_size(b"12345", Limits(max_bytes=5))
    with pytest.raises(BadSample, match="MediaTooLarge: 6 bytes are more than max_bytes=5"):
        check_size(b"123456", Limits(max_bytes=5))
