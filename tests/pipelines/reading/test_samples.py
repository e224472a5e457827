import io
import json
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Inputs, Preprocess, Sample, Visual
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.preprocess import NowcasterPreprocess
from hybrid_models.translator.config import TranslatorConfig
from pipelines.reading.formats.entry import npy_bytes
from pipelines.reading.limits import Limits
from pipelines.reading.raw import RAW_SCHEMA
from pipelines.reading.samples import SAMPLE_SCHEMA, Decode, TrainingTexts, pack, unpack


def test_packing_keeps_every_array_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    sample: Sample = {
        "length": np.asarray(7, dtype=np.int64),
        "half": rng.normal(size=(3, 4)).astype(np.float16),
        "frames": rng.integers(0, 255, (2, 3, 4, 3), dtype=np.uint8),
        "empty": np.zeros((0, 5), dtype=np.int32),
        "wet": np.array([True, False]),
        "missing": np.array([np.nan, -0.0, np.inf], dtype=np.float32),
        "strided": np.arange(12, dtype=np.int64).reshape(3, 4).T[::2],
    }
    again = unpack(pack(sample))
    assert again.keys() == sample.keys()
    for name, array in sample.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape), name
        assert again[name].tobytes() == array.tobytes(), name
    assert again["length"] == 7
    assert again["strided"].tolist() == [[0, 4, 8], [2, 6, 10]]


class Count(Preprocess):
    """Counts frames and letters; words of its own are errors."""

    visual = Visual(height=4, width=6, frames=1)

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        text = inputs.fields["text"]
        if text == "bad":
            raise BadSample("Nonsense", "the text is: bad")
        if text == "bug":
            raise KeyError("our own mistake")
        if text == "no memory":
            raise MemoryError
        sample = {"letters": np.asarray(len(text)), "length": np.asarray(len(text) + 1, dtype=np.int64)}
        if inputs.media is not None:
            sample["media"] = inputs.media
        return sample | ({"target": np.asarray(1)} if with_target else {})

    def output_bytes(self, sample: Sample) -> int:
        return 1000 * int(sample["letters"])


def raw(index: int, text: str | None = None, **other: Any) -> dict[str, Any]:
    row = {
        "shard": "s3://x/a.tar", "index": index, "last": index == 4, "sample_id": f"id{index}", "media": None,
        "media_type": None, "fields": json.dumps({} if text is None else {"text": text}), "error": None,
    }  # fmt: skip
    return {**row, **other}


def decode(rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    table = Decode(Count(), Limits(), **options)(pa.Table.from_pylist(rows, schema=RAW_SCHEMA))
    assert table.schema == SAMPLE_SCHEMA
    return table.to_pylist()


def test_every_row_gives_one_row_in_order() -> None:
    rows = [raw(3, "abc"), raw(0, "bad"), raw(4, "xy"), raw(1, error="LineTooLong: 3: more than 2"), raw(2, "")]
    decoded = decode(rows)
    for row, given in zip(decoded, rows, strict=True):
        assert {key: row[key] for key in ("shard", "index", "last", "sample_id")} == {
            key: given[key] for key in ("shard", "index", "last", "sample_id")
        }
    assert [row["length"] for row in decoded] == [4, None, 3, None, 1]
    assert [row["error"] for row in decoded] == [
        None,
        "Nonsense: the text is: bad",
        None,
        "LineTooLong: 3: more than 2",  # the reader's own words, unchanged
        None,
    ]
    assert [None if row["sample"] is None else int(unpack(row["sample"])["letters"]) for row in decoded] == [
        3, None, 2, None, 0,
    ]  # fmt: skip
    assert all(row["decode_seconds"] >= 0 for row in decoded)


def test_targets_only_where_they_are_asked_for() -> None:
    assert "target" not in unpack(decode([raw(0, "a")])[0]["sample"])
    assert unpack(decode([raw(0, "a")], with_target=True)[0]["sample"])["target"] == 1


def test_media_are_decoded_to_the_wanted_size_or_named_as_broken() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (10, 20, 30)).save(buffer, "PNG")
    png = buffer.getvalue()
    good, broken = decode(
        [raw(0, "a", media=png, media_type="png"), raw(1, "a", media=png[: len(png) // 2], media_type="png")]
    )
    assert np.array_equal(unpack(good["sample"])["media"], np.full((1, 4, 6, 3), [10, 20, 30], dtype=np.uint8))
    assert broken["error"].startswith("ImageDecodeError: ")
    small = Decode(Count(), Limits(max_pixels=50))
    (row,) = small(pa.Table.from_pylist([raw(0, "a", media=png, media_type="png")], schema=RAW_SCHEMA)).to_pylist()
    assert row["sample"] is None
    assert row["error"] == "ImageTooLarge: 12 x 8 pixels are more than max_pixels=50"


def test_what_nobody_thought_of_is_an_error_row_and_only_the_machines_trouble_raises() -> None:
    good, bad = decode([raw(0, "fine"), raw(1, "bug")])
    assert good["error"] is None
    assert bad["error"] == "UnexpectedError: KeyError: 'our own mistake'"
    with pytest.raises(MemoryError):
        decode([raw(0, "no memory")])


def test_training_texts_are_those_of_rows_that_could_be_read() -> None:
    rows = [
        {"fields": json.dumps({"en": "a dog", "de": "ein Hund"}), "error": None},
        {"fields": json.dumps({"en": "no target"}), "error": None},
        {"fields": json.dumps({"en": "torn", "de": "zerrissen"}), "error": "ShardReadError: torn"},
    ]
    texts = TrainingTexts(TranslatorConfig())(pa.Table.from_pylist(rows))
    assert texts.to_pylist() == [{"text": "source\ta dog"}, {"text": "target\tein Hund"}]


def test_a_prediction_that_would_be_too_large_is_a_bad_sample() -> None:
    table = pa.Table.from_pylist([raw(0, "abc"), raw(1, "abcde")], schema=RAW_SCHEMA)
    rows = Decode(Count(), Limits(max_output_bytes=4000))(table).to_pylist()
    assert [row["output_bytes"] for row in rows] == [3000, None]
    assert rows[1]["error"] == "OutputTooLarge: its prediction would have 5,000 bytes, more than max_output_bytes=4,000"


def test_what_is_lost_with_a_row_is_kept() -> None:
    rows = decode([raw(0, "abc"), raw(1, error="ShardReadError: x", lost_rows=7)])
    assert [row["lost_rows"] for row in rows] == [None, 7]


def test_fields_stay_with_a_row_if_they_are_kept() -> None:
    fields = json.dumps({"text": "abc", "sku": "A-7", "size": {"m": float("nan"), "l": [1.5, float("inf")]}, "x": 1})
    rows = [raw(0, fields=fields), raw(1, "bad", error="ImageDecodeError: torn"), raw(2, "abc")]
    kept = decode(rows, keep=("sku", "size", "none"))
    assert [row["fields"] and json.loads(row["fields"]) for row in kept] == [
        {"sku": "A-7", "size": {"m": None, "l": [1.5, None]}}, {}, {},
    ]  # fmt: skip
    assert decode([raw(1, "xyz", error="ImageDecodeError: torn")], keep=("text",))[0]["fields"] == '{"text": "xyz"}'
    assert [row["fields"] for row in decode(rows)] == [None] * 3
    (large,) = decode([raw(0, "x" * 70_000)], keep=("text",))
    assert large["error"] == (
        "FieldsTooLarge: those to be kept have 70,012 characters, at most 65,536 are allowed: `keep` fewer"
    )
    assert large["sample"] is None


@pytest.mark.parametrize(
    ("container", "codec", "pixels"), [("mp4", "libx264rgb", "rgb24"), ("matroska", "ffv1", "bgr0")]
)
@pytest.mark.parametrize("shape", [(6, 16, 16), (6, 16, 16, 3)])
@pytest.mark.parametrize("colour", [False, True])
def test_a_lossless_clip_is_the_array_that_it_was_made_of(
    container: str, codec: str, pixels: str, shape: tuple[int, ...], colour: bool
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.width, stream.height, stream.pix_fmt = 16, 16, pixels
        for frame in frames:
            coloured = frame if frame.ndim == 3 else np.stack([frame] * 3, axis=2)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(coloured, format="rgb24").reformat(format=pixels)))
        output.mux(stream.encode())
    config = NowcasterConfig(
        past_frames=3, horizon_minutes=3, height=16, width=16, unit="intensity", colour=colour, augment=False
    )
    decode = Decode(NowcasterPreprocess(config), Limits(), with_target=True)
    clip = {"media": buffer.getvalue(), "media_type": {"matroska": "mkv"}.get(container, container)}
    array = {"media": npy_bytes(frames), "media_type": "npy"}
    rows = pa.Table.from_pylist([{**raw(0), **clip}, {**raw(1), **array}], schema=RAW_SCHEMA)
    found = decode(rows).to_pylist()
    assert [row["error"] for row in found] == [None, None]
    assert found[0]["sample"] == found[1]["sample"]
    sample = unpack(found[0]["sample"])
    assert sample["past"].shape == (3, 16, 16, 3)[: 3 + colour]
    if colour:
        whole = np.broadcast_to(frames.reshape(6, 16, 16, -1), (6, 16, 16, 3))
        np.testing.assert_allclose(np.concatenate([sample["past"], sample["future"]]), whole / 255, atol=5e-4)
