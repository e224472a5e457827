import io

import numpy as np
import pytest

from hybrid_models.errors import BadSample
from pipelines.reading.formats.entry import json_object, npy_bytes


def test_an_object_is_read() -> None:
    assert json_object('{"a": [1, null], "ü": "x"}') == {"a": [1, None], "ü": "x"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "Expecting value"), ("[1]", "expected an object, found list"), ("null", "found NoneType"), ("{", "Expecting"),
     (b"\xff", "codec can't decode"), ("[" * 100_000, "")],
)  # fmt: skip
def test_anything_else_is_a_bad_sample(text: bytes | str, reason: str) -> None:
    with pytest.raises(BadSample, match=f"^JsonDecodeError: .*{reason}"):
        json_object(text)


def test_arrays_are_kept_without_pickling() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    np.testing.assert_array_equal(np.load(io.BytesIO(npy_bytes(array)), allow_pickle=False), array)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        npy_bytes(np.array([{}]))
