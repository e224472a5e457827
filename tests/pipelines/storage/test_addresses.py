import pytest
import s3fs

from hybrid_models.errors import UsageError
from pipelines import storage


def test_wrong_credentials_are_one_readable_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(storage.CredentialsError, match=r"cannot list s3://lake.*check AWS_ACCESS_KEY_ID") as caught:
            storage.list_files(s3)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match=r"cannot write s3://lake.*check AWS_ACCESS_KEY_ID"):
            storage.check_writable(s3)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_missing_credentials_are_told_with_how_to_give_them(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(storage.CredentialsError, match=r"Unable to locate credentials; set the AWS_… credentials"):
            storage.list_files(s3)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_unknown_scheme_is_a_usage_error() -> None:
    advice = "is no address of a known kind: write s3://BUCKET/KEY, file:///PATH or a path$"
    for uri in ("zzz://x", "gs://lake/x", "memory://x", "http://host/x", "://x", "a b://x"):
        with pytest.raises(UsageError, match=advice):
            storage.list_files(uri)
    for uri, meant in (
        ("s3a://lake/x", "s3://lake/x"), ("local:///etc/x", "file:///etc/x"), ("local://etc/x", "file:///etc/x"),
        ("S3A://lake", "s3://lake"), ("S3://lake", "s3://lake"), ("FILE:///x", "file:///x"), ("Local:/x", "file:///x"),
    ):  # fmt: skip
        for touch in (storage.list_files, storage.check_writable, storage.exists, storage.read_bytes):
            with pytest.raises(UsageError, match=f"^{uri} is no address of a known kind: write {meant}$"):
                touch(uri)
        with pytest.raises(UsageError, match="no address of a known kind"):
            storage.write_bytes(uri, b"", storage.anything)
    with pytest.raises(UsageError, match=r"^http://\*\*\*@host/x is no address") as caught:
        storage.absolute("http://user:secret@host/x")
    assert "secret" not in str(caught.value)


def test_an_empty_address_is_none() -> None:
    for empty in ("", " "):
        with pytest.raises(UsageError, match=r"^an address is empty: is a variable not set\?$"):
            storage.absolute(empty)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("s3:/lake/tables", "s3://lake/tables"), ("s3:lake", "s3://lake"), ("file:/lake", "file:///lake")],
)
def test_an_address_that_lacks_a_slash_is_no_folder_of_that_name(slip: str, meant: str) -> None:
    """Else a night's tables would lie on the driver's own disk, and it would end well."""
    with pytest.raises(UsageError, match=f"^{slip} is no address of a known kind: write {meant}$"):
        storage.absolute(slip)
    with pytest.raises(UsageError, match=f"^{slip} is no address of a known kind: write {meant}$"):
        storage.list_files(slip)
