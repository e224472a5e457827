from pipelines.cluster.words import count, duration, number, size


def test_numbers_are_for_people() -> None:
    assert [size(each) for each in (0, 7, 1030, 1024**2 * 1.5, 999 * 1024**3)] == [
        "0 B", "7 B", "1.01 KiB", "1.5 MiB", "999 GiB",
    ]  # fmt: skip
    assert [number(value) for value in (0.123456, 12.345, 1234.5)] == ["0.123", "12.3", "1,234"]
    assert [duration(seconds) for seconds in (0, 89, 90, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]
    assert [count(each, "process") for each in (1, 2)] == ["1 process", "2 processes"]
    assert [count(each, "shard") for each in (0, 1, 3000)] == ["0 shards", "1 shard", "3,000 shards"]
