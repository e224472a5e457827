"""Moving digits."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest

from hybrid_models.errors import UsageError
from pipelines.datasets import moving_digits
from pipelines.datasets.moving_digits import STEP, moving_sequence, read_idx_images, sequence_rows, trajectory
from pipelines.reading.limits import Limits


def test_digits_move_straight_and_bounce_off_the_edges() -> None:
    room = 10_000  # many pixels, so that rounding does not matter
    bounced = 0
    for seed in range(20):
        corners = trajectory(60, room, np.random.default_rng(seed))
        assert corners.min() >= 0
        assert corners.max() <= room
        steps = np.diff(corners, axis=0) / room
        inside = ((corners[:-1] > 0) & (corners[:-1] < room) & (corners[1:] > 0) & (corners[1:] < room)).all(axis=1)
        np.testing.assert_allclose(np.hypot(*steps[inside].T), STEP, atol=2e-4)
        bounced += (np.diff(np.sign(steps), axis=0) != 0).any()
    assert bounced == 20


def test_the_start_follows_the_paper() -> None:
    """The position is drawn before the angle, and the first frame is one step on."""
    rng = np.random.default_rng(5)
    y, x = rng.random(2)
    angle = rng.random() * 2 * np.pi
    expected = np.clip([y + 0.1 * np.sin(angle), x + 0.1 * np.cos(angle)], 0, 1) * 36
    assert trajectory(1, 36, np.random.default_rng(5)).tolist() == [[int(expected[0]), int(expected[1])]]


def test_where_digits_overlap_the_brighter_pixel_wins() -> None:
    digits = np.stack([np.full((6, 6), 100, np.uint8), np.full((6, 6), 200, np.uint8)])
    sequence = moving_sequence(digits, 50, 8, np.random.default_rng(0))
    assert (sequence.shape, sequence.dtype) == ((50, 8, 8), np.uint8)
    for frame in sequence:
        assert (frame == 200).sum() == 36  # the brighter one is always whole
        assert set(np.unique(frame)) <= {0, 100, 200}
    assert (sequence == 100).any()


def test_rows_depend_on_the_seed_alone() -> None:
    digits = np.random.default_rng(0).integers(1, 256, (5, 4, 4)).astype(np.uint8)
    one, again = (list(sequence_rows("s", digits, 3, 6, 12, np.random.default_rng(7))) for _ in range(2))
    other = list(sequence_rows("s", digits, 3, 6, 12, np.random.default_rng(8)))
    assert one == again != other
    assert [key for key, _ in one] == ["s-000000", "s-000001", "s-000002"]
    array = np.load(io.BytesIO(one[0][1]["npy"]), allow_pickle=False)
    assert (array.shape, array.dtype) == ((6, 12, 12), np.uint8)


def idx(images: np.ndarray, magic: int = 0x803) -> bytes:
    return struct.pack(">4i", magic, *images.shape) + images.tobytes()


def test_idx_files_are_read_gzipped_or_not(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(images))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(images)))
    for name in ("plain", "packed.gz"):
        np.testing.assert_array_equal(read_idx_images(str(tmp_path / name)), images)


def test_other_files_are_named(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 4), np.uint8)
    for data in (
        b"",
        idx(images)[:-1],
        gzip.compress(idx(images))[:-9],
        gzip.compress(idx(images))[:12] + bytes(9),
        idx(images, magic=0x801),
        b"<html>not there</html>",
    ):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(UsageError, match=r"bad is not .*IDX file of images"):
            read_idx_images(str(tmp_path / "bad"))


def test_a_small_file_of_very_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving_digits, "DEFAULT_LIMITS", Limits(max_bytes=1 << 16))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(idx(np.zeros((100, 28, 28), np.uint8))))
    with pytest.raises(UsageError, match=r"bomb.gz is not a whole IDX file of images: MediaTooLarge: 65,537 bytes are"):
        read_idx_images(str(tmp_path / "bomb.gz"))
