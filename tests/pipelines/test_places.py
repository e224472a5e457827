from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines.places import check_apart, check_outside


def clash(read: str, *written: str) -> str:
    with pytest.raises(UsageError) as caught:
        check_apart({"input": read}, "tables", written)
    return str(caught.value)


def test_an_input_in_a_folder_of_outputs_is_refused() -> None:
    assert clash("/lake/captions/ds=2026-01-01/*", "/lake/nowcasts", "/lake/captions") == (
        "`input` /lake/captions/ds=2026-01-01/* lies in /lake/captions, which this command writes: give another "
        "`tables`, such as a new folder beside the input, or name the input more closely"
    )
    assert " is /lake/captions, which" in clash("/lake/captions", "/lake/captions")
    assert " may reach into /lake/captions, which" in clash("/lake", "/lake/captions")
    assert " may reach into /lake/captions, which" in clash("/", "/lake/captions")


@pytest.mark.parametrize(
    "read",
    [
        "/lake/captions/",
        "/lake/./captions",
        "/lake//captions",
        "/lake/other/../captions",
        "file:///lake/captions",
        "/lake/*",
        "/lake/*/ds=2026-01-01/*.tar",
        "/lake/capt*",
        "/lake/c[a-z]*/x.tar",
        "/lake/captions*",
        "/lake/captions/a.tar",
        "/*",
    ],
)
def test_however_it_is_written(read: str) -> None:
    clash(read, "/lake/captions")
    clash(read, "/lake/photos/../captions/")


@pytest.mark.parametrize(
    "read",
    ["s3://lake/captions/", "s3://lake//captions", "s3://lake/./x/../captions/a.tar", "s3://lake", "S3://lake/capt*"],
)
def test_in_a_bucket(read: str) -> None:
    clash(read, "s3://lake/captions")
    check_apart({"input": read}, "tables", ["s3://other/captions", "/lake/captions"])


@pytest.mark.parametrize(("scheme", "other"), [("gs", "gcs"), ("abfs", "abfss"), ("az", "abfs"), ("s3a", "s3")])
def test_in_a_store_of_two_names(scheme: str, other: str) -> None:
    assert " lies in gs://lake/captions, " in clash("gcs://lake/captions/x.tar", "gs://lake/captions")
    clash(f"{scheme}://lake/captions/a.tar", f"{other}://lake/captions")
    clash(f"{other}://lake/*", f"{scheme}://lake/captions")
    with pytest.raises(UsageError, match="lies in the tables"):
        check_outside("out", f"{scheme}://lake/captions/x", [f"{other}://lake/captions"], "the tables")


@pytest.mark.parametrize(
    "read",
    ["/lake/captions-in", "/lake/photos/*.tar", "/lake/captio", "/lake/p*", "/lake/captions-*/x", "/lake/captions.tar"],
)
def test_a_root_may_be_shared(read: str) -> None:
    check_apart({"input": read}, "tables", ["/lake/captions", "/lake/nowcasts"])
    check_apart({"input": "s3:/" + read}, "tables", ["s3://lake/captions"])


def test_links_and_the_working_directory_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake/captions").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "lake")
    monkeypatch.chdir(tmp_path)
    for read in ("link/captions", "lake/captions/*", "link", "*", "./link/*/x", f"{tmp_path}/link/capt*"):
        clash(read, "lake/captions")
        clash(read, "link/captions")
    check_apart({"input": "in/*"}, "tables", ["link/captions"])


def test_an_output_outside_of_folders() -> None:
    check_outside("out", "/lake/reports/x.html", ["/lake/captions"], "the table")
    check_outside("out", "/lake", ["/lake/captions"], "the table")
    for place in ("/lake/captions/x.html", "/lake/captions", "/lake/a/../captions/_delta_log/x.json"):
        with pytest.raises(UsageError, match=f"^`out` {place} lies in the table /lake/captions: give a place outside"):
            check_outside("out", place, ["/lake/captions"], "the table")
