from hybrid_models.errors import BadSample


def test_bad_sample_tells_kind_and_message():
    error = BadSample("ImageDecodeError", "truncated after 12 bytes")
    assert str(error) == "ImageDecodeError: truncated after 12 bytes"
    assert (error.kind, error.message) == ("ImageDecodeError", "truncated after 12 bytes")
    assert isinstance(error, ValueError)
