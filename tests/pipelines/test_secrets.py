import pytest

from pipelines.secrets import is_secret, shown, without_login


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://someone:pass@host:5000/x", "http://***@host:5000/x"),
        ("http://:pass@host/x", "http://***@host/x"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("https://ghp_token:x-oauth-basic@host/x", "https://***@host/x"),
        ("http://some@one:p@ss@host/x", "http://***@host/x"),
        ("http://some%40one:p%3A%40ss@host/x", "http://***@host/x"),
        ("http://some%3Apass@host/x", "http://***@host/x"),
        ("postgresql+psycopg2://u:pa/ss@host/db", "postgresql+psycopg2://***@host/db"),
        ("postgresql://u:p#a?s:s@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql://host/db?user=u&password=pass&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("HTTP://u:pass@host", "HTTP://***@host"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("sftp://me:pass@host/x", "sftp://***@host/x"),
        ("sftp://me%3Apass@host/x", "sftp://***@host/x"),
        ("https://h/c/b?sv=1&sig=pass%2Fs&se=2", "https://h/c/b?sv=1&sig=***&se=2"),
        (
            "https://h/b?X-Amz-Credential=AK%2F2&X-Amz-Date=1&X-Amz-Signature=pass&X-Amz-Security-Token=pass",
            "https://h/b?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***&X-Amz-Security-Token=***",
        ),
        ("https://h/b?AWSAccessKeyId=AK&Signature=pass&Expires=1", "https://h/b?AWSAccessKeyId=***&Signature=***&Expires=1"),
        ("https://h/b?X-Goog-Signature=pass", "https://h/b?X-Goog-Signature=***"),
        ("http://h/#access_token=pass&state=1", "http://h/#access_token=***&state=1"),
        ("http://h/?api_key=pass&key=pass&TOKEN=pass", "http://h/?api_key=***&key=***&TOKEN=***"),
        ("host=h user=u password=pass", "host=h user=u password=***"),
        ("cannot open http://u:pass@h/x: Max retries with url: /?token=pass (by http://v:pass@h)",
         "cannot open http://***@h/x: Max retries with url: /?token=*** (by http://***@h)"),
        ("'http://u:pass@h1','http://u:pass@h2'", "'http://***@h2'"),
    ],
)  # fmt: skip
def test_no_login_and_no_token_is_shown(address: str, expected: str) -> None:
    assert shown(address) == expected
    assert "pass" not in without_login(address).replace("password=", "")
    assert shown(shown(address)) == shown(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://host:5000/x@y",
        "http://[::1]:5000/x",
        "s3://lake/photos/ds=2026-01-31/a@b:c.tar",
        "s3://lake/what?/x.tar",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://me@host/x",
        "sqlite:////tmp/me@home/mlflow.db",
        "models:/captioner@champion",
        "http://host:80: refused for me@home",
        "MediaTooLarge: 9 bytes are more than max_bytes=5",
        "hybrid infer --model models:/captioner@champion --input s3://lake/x",
        "/home/me@work/a:b@c",
    ],
)
def test_other_text_stays(address: str) -> None:
    assert shown(address) == address
    assert without_login(address) == address


def test_a_link_for_others_has_no_login() -> None:
    assert without_login("http://someone:pass@host:5000/#/runs") == "http://host:5000/#/runs"
    assert without_login("https://token@host") == "https://host"


@pytest.mark.parametrize("piece", ["a", "a://", "a://b:", "?", "a:1/", "http://u:p@h/ ", '"', "?key"])
def test_a_text_may_be_long(piece: str) -> None:
    """A stranger's manifest may have a megabyte for an address: looked at by the square of it, it would take days."""
    long = piece * (1_000_000 // len(piece))
    assert shown(long) == long.replace("u:p@", "***@")
    assert shown(f"http://u:p@h {long}") == f"http://***@h {shown(long)}"
    assert shown(f"{'x' * 1_000_000}://u:p@h") == f"{'x' * 1_000_000}://***@h"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HF_TOKEN", "x", True),
        ("AWS_ACCESS_KEY_ID", "x", True),
        ("FSSPEC_FTP_PASSWORD", "x", True),
        ("AZURE_STORAGE_CONNECTION_STRING", "x", True),
        ("client_secret", "x", True),
        ("HTTPS_PROXY", "http://me:pass@proxy:3128", True),
        ("HTTPS_PROXY", "http://proxy:3128", False),
        ("AWS_PROFILE", "x", False),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token", False),
        ("RAY_AUTH_TOKEN_PATH", "/run/token", False),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/x", False),
        ("HYBRID_JAIL", "off", False),
    ],
)
def test_variables_that_hold_a_secret_are_known_by_name_or_value(name: str, value: str, expected: bool) -> None:
    assert is_secret(name, value) is expected
