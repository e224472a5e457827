import pytest
import s3fs

from hybrid_models.errors import UsageError
from pipelines import storage


def test_wrong_credentials_are_one_readable_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(storage.StorageError, match=r"cannot list s3://lake.*check AWS_ACCESS_KEY_ID") as caught:
            storage.list_files(s3)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match="cannot write s3://lake"):
            storage.check_writable(s3)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_unknown_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot open zzz://x"):
        storage.list_files("zzz://x")


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
    with pytest.raises(UsageError, match=f"^{slip} is no address: write {meant}$"):
        storage.absolute(slip)
    with pytest.raises(UsageError, match=f"^{slip} is no address: write {meant}$"):
        storage.list_files(slip)
