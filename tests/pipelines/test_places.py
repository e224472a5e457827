from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_models.errors import UsageError
from pipelines.places import InputOptions, check_apart, check_outside, normal_form


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
    ["s3://lake/captions/", "s3://lake//captions", "s3://lake/./x/../captions/a.tar", "s3://lake", "s3://lake/capt*"],
)
def test_in_a_bucket(read: str) -> None:
    clash(read, "s3://lake/captions")
    check_apart({"input": read}, "tables", ["s3://other/captions", "/lake/captions"])


@pytest.mark.parametrize("scheme", ["s3a", "S3", "gs", "local", "FILE", "https"])
def test_aliases_of_a_store_are_refused(scheme: str) -> None:
    for reads, writes in ((f"{scheme}://lake/x", "s3://lake"), ("s3://lake/x", f"{scheme}://lake")):
        with pytest.raises(UsageError, match="is no address of a known kind"):
            check_apart({"input": reads}, "tables", [writes])
    with pytest.raises(UsageError, match="is no address of a known kind"):
        InputOptions("image", (f"{scheme}://lake/x",)).check()


def test_percent_signs_are_read_as_delta_does() -> None:
    clash("/lake/in%70ut", "/lake/input")
    clash("s3://lake/input/x", "s3://lake/in%70ut")


def test_case_counts_where_the_file_system_minds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Photos").mkdir()
    check_apart({"input": f"{tmp_path}/photos"}, "tables", [f"{tmp_path}/Photos/out"])
    real = Path.samefile
    monkeypatch.setattr(  # a file system that ignores case
        Path, "samefile", lambda self, other: self.name.casefold() == other.name.casefold() or real(self, other)
    )
    clash(f"{tmp_path}/photos", f"{tmp_path}/Photos/out")
    clash(f"{tmp_path}/PHOTOS/new/X", f"{tmp_path}/Photos/NEW/x")


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


FOLDER = ["a", "b c", "Ä", "x%41", "A"]
WRITTEN = st.lists(st.sampled_from([*FOLDER, ".", "", "link"]) | st.just("a/.."), min_size=0, max_size=5)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with folders in it, and in each a link back to it."""
    root = tmp_path_factory.mktemp("tree").resolve()
    for one in FOLDER:
        for two in FOLDER:
            (root / one / two).mkdir(parents=True)
        (root / one / "link").symlink_to(root)
    (root / "link").symlink_to(root)
    return root


@given(parts=WRITTEN, more=WRITTEN, scheme=st.sampled_from(["", "file://"]))
def test_two_addresses_overlap_exactly_if_their_folders_do(
    tree: Path, parts: list[str], more: list[str], scheme: str
) -> None:
    """However they are written: with links, dots, empty parts, `file://`."""
    one, two = "/".join([f"{tree}", *parts]), scheme + "/".join([f"{tree}", *more])
    real_one, real_two = Path(one).resolve(), Path("/".join([f"{tree}", *more])).resolve()
    apart = not (real_one.is_relative_to(real_two) or real_two.is_relative_to(real_one))
    try:
        check_apart({"input": one}, "tables", [two])
    except UsageError:
        assert not apart or unquote(f"{real_one}{real_two}") != f"{real_one}{real_two}"
    else:
        assert apart
    if real_one == real_two:
        assert normal_form(one) == normal_form(two)
