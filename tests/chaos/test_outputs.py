"""Attacks on every option that names an output, generated from the help texts: no command changes a user's file.

An option that nobody has classified is attacked, and a verb without a command fails: see `attacked`.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from _pytest.mark import ParameterSet

from jobs.command import cli
from jobs.command.options import TASKS
from pipelines import storage
from tests import tiny
from tests.chaos import attacked
from tests.chaos.attacked import DS, Output, snapshot
from tests.tiny import Ran

OUTPUTS = attacked.outputs()
LOG = "_delta_log"
ALIASES = (
    "local://{path}", "LOCAL://{path}", "FILE://{path}", "file:{path}", "s3a://lake{path}", "S3://lake{path}",
    "memory://x", "simplecache::file://{path}",
)  # fmt: skip
FORMS: dict[str, Callable[[Path, Path], str]] = {
    "plain": lambda path, root: str(path),
    "..": lambda path, root: f"{path}/none/../../{path.name}/.",
    "file://": lambda path, root: f"file://{path}",
    "link": lambda path, root: str(_link(root / "link", path)),
    "link above": lambda path, root: f"{_link(root / 'above', path.parent)}/{path.name}",
    "percent": lambda path, root: quote(str(path)),
    "case": lambda path, root: str(path.with_name(path.name.swapcase())),
}
"""Other names of a path."""
BELOW = {
    "train": ("runs", "features"),
    "evaluate": ("evaluations",),
    "promote": ("evaluations",),
    "nightly": ("reports",),
}
"""Verb → the folders below its output option that it writes."""


def _link(link: Path, target: Path) -> Path:
    link.symlink_to(target)
    return link


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that no command may change; its name has a percent escape."""
    return attacked.make_inputs(tmp_path_factory.mktemp("user") / "in put")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of one attack, in which commands run."""
    attacked.make_tables(tmp_path / "tables")
    return tmp_path


def unchanged(argv: list[str], code: int, root: Path, inputs: Path) -> Ran:
    """Runs a command that has to end with this exit code, one line, and every file as it was."""
    before = snapshot(root, inputs)
    ran = tiny.hybrid_here(*argv, cwd=root)
    assert snapshot(root, inputs) == before, ran.stderr
    assert ran.code == code, f"{argv}: {ran.stdout}{ran.stderr}"
    assert "Traceback" not in ran.stderr
    return ran


def refused_by(output: Output) -> int:
    """The exit code of a refusal: `doctor` reports it as a check that failed."""
    return cli.FAILED if output.words == "doctor" else cli.USAGE


def test_every_verb_that_writes_has_an_output_that_is_attacked() -> None:
    verbs = {output.words.split(" ")[0] for output in OUTPUTS}
    assert set(cli.VERBS) - verbs == {"models", "submit"}, "these write nothing but to MLflow and Ray"
    assert {output.words for output in OUTPUTS} == set(attacked.COMMANDS), "a command without an output to attack"


def test_an_option_that_nobody_classified_fails_with_what_to_add(tmp_path: Path) -> None:
    for output, expected in (
        (Output("export", "out"), "has no `export`: add a small command with --out"),
        (Output("query", "copy"), "nothing says whether it is written: add it to the command in COMMANDS"),
    ):
        with pytest.raises(pytest.fail.Exception, match=expected):
            output.argv(tmp_path, tmp_path)


def marks(output: Output) -> list[pytest.MarkDecorator]:
    """Recipes differ in nothing that matters here: of most, only `make test-long` attacks the outputs."""
    return [pytest.mark.long] if re.fullmatch(r"train (?!translator-demo).*", output.words) else []


ATTACKED = [pytest.param(output, id=str(output), marks=marks(output)) for output in OUTPUTS]


@pytest.mark.parametrize("output", ATTACKED)
def test_aliases_of_an_address_are_refused(output: Output, root: Path, inputs: Path) -> None:
    for alias in ALIASES:
        value = alias.format(path=root / "out")
        ran = unchanged(output.argv(root, inputs, **{output.option: value}), refused_by(output), root, inputs)
        assert "is no address of a known kind" in ran.stderr, ran.stderr
    assert {path.name for path in root.iterdir()} <= {"tables", "out"}, "no folder that is called like a scheme"


OVERLAPS = re.compile(r"lies in|may reach into|\bis /.*, which this command writes|cannot write|is a link")
READS = ("source", "table", "input", "data", "tables")


def overlaps() -> Iterator[ParameterSet]:
    """Each output option with each option that the same command reads."""
    for output in (output for output in OUTPUTS if output.words != "doctor"):  # which reads nothing
        for read in READS:
            if f"--{read} " in attacked.COMMANDS[output.words] and read != output.option:
                yield pytest.param(output, read, id=f"{output} --{read}", marks=marks(output))


@pytest.mark.parametrize(("output", "read"), list(overlaps()))
def test_an_output_over_an_input_is_refused(output: Output, read: str, root: Path, inputs: Path) -> None:
    """The output is what is read, or the folder that holds it; or what is written below the output is a link to it."""
    source = Path(re.split(r"/ds=|/\{task\}", output.values(root, inputs)[read])[0])
    verb, _, rest = output.words.partition(" ")
    targets = {"prepare": [source, source.parent], "query": in_log(source), "report": in_log(source)}.get(
        verb, [source]
    )
    names = [*BELOW.get(verb, ()), *([rest] if rest in TASKS else ())] or [""]
    for number, (form, target, name) in enumerate(itertools.product(FORMS, targets, names)):
        if form == "case" and not target.with_name(target.name.swapcase()).exists():
            continue
        if form == "percent" and read in ("table", "tables"):  # another place; only folders of outputs are compared so
            continue
        place = root / str(number)
        place.mkdir()
        path = _link(place / name, target).parent if name else target
        changes = {output.option: FORMS[form](path, place)}
        ran = unchanged(output.argv(root, inputs, **changes), refused_by(output), root, inputs)
        assert OVERLAPS.search(ran.stderr), ran.stderr


def in_log(tables: Path) -> list[Path]:
    """Where the log of a table has a commit, and where it will have its next one."""
    return [tables / "captions" / LOG / f"{version:020}.json" for version in (1, 2)]


@pytest.mark.parametrize("output", ATTACKED)
def test_an_output_in_the_log_of_a_delta_table_is_refused(output: Output, root: Path, inputs: Path) -> None:
    """Of any table, also one that the command does not read; a new file there would be a commit."""
    log = inputs / "tables" / "captions" / LOG
    is_file = output.words in ("query", "report") and output.option == "out"
    for name in (f"{0:020}.json", f"{2:020}.json") if is_file else ("", "new"):
        changes = {output.option: str(log / name), **({} if output.words == "query" else {"ds": DS} if is_file else {})}
        if output.words == "query":
            changes["tables"] = str(root / "tables")
        code = cli.DONE if output.words == "tidy" else refused_by(output)  # which removes what has the names of its own
        unchanged(output.argv(root, inputs, **changes), code, root, inputs)


def linked_splits(root: Path, inputs: Path) -> list[str]:
    """Splits that are made of links to the events themselves."""
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        (root / "out" / split).mkdir(parents=True)
        (root / "out" / split / f"{name}.nc").symlink_to(inputs / f"radar/{name}.nc")
    return ["prepare", "radar", "--source", f"{inputs}/radar", "--out", f"{root}/out", "--crop", "2"]


def numbered_files(root: Path, inputs: Path) -> list[str]:
    """A user's files with names of shards, in a split that the command writes and in others."""
    for name in ("train/scenes-train-00042", "other/scenes-other-00001", "train/scenes-train-00000"):
        (root / "out/scenes" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"out/scenes/{name}.tar").write_text("precious")
    return Output("prepare demo", "out").argv(root, inputs)


def forged_journal(root: Path, inputs: Path) -> list[str]:
    """A journal of an earlier version, which names a user's file."""
    (root / "out/scenes/photos").mkdir(parents=True)
    (root / "out/scenes/photos/x.jpg").write_bytes(b"photo")
    (root / "out/scenes/_unfinished").write_text("photos/x.jpg\n")
    return Output("prepare demo", "out").argv(root, inputs)


def own_run_folder(root: Path, inputs: Path) -> list[str]:
    """A folder of a run's name that is no run."""
    run = root / "out/runs/translator-demo"
    for name in ("summary.json", "history.jsonl", "artifact/config.json", "checkpoint_epoch_0001/weights.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    return Output("train translator-demo", "storage").argv(root, inputs)


@pytest.mark.parametrize("layout", [linked_splits, numbered_files, forged_journal, own_run_folder])
def test_a_layout_that_users_have_is_refused_whole(
    layout: Callable[[Path, Path], list[str]], root: Path, inputs: Path
) -> None:
    unchanged(layout(root, inputs), cli.USAGE, root, inputs)


VARIANTS = ("file", "link", "linked folder")


@pytest.mark.parametrize(
    "output", [output for output in OUTPUTS if output.words.split(" ")[0] in ("prepare", "query", "report")], ids=str
)
def test_a_users_file_where_a_command_writes_is_refused(
    output: Output, root: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that a command writes on an empty disk is there before it: a file, a link, or in a linked folder."""
    below = paths_written(output, root / "clean", inputs, monkeypatch)
    assert below, "the command writes something"
    for number, (path, variant) in enumerate(itertools.product(representatives(below), VARIANTS)):
        place = root / f"attack-{number}"
        if not put(variant, place, path):
            continue
        unchanged(output.argv(place, inputs, **tables_of(output, place)), cli.USAGE, root, inputs)


ON_A_CLUSTER = ("infer translations", "nightly translations", "train translator-demo", "evaluate")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "output",
    [
        pytest.param(output, id=str(output), marks=[pytest.mark.long] if "infer" not in output.words else [])
        for output in OUTPUTS
        if output.words in ON_A_CLUSTER
    ],
)
def test_a_users_file_where_a_job_on_a_cluster_writes_stays(
    output: Output, root: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of these are refused before the job starts; in any case the user's things stay as they are."""
    by_folder = {path.parent: path for path in reversed(paths_written(output, root / "clean", inputs, monkeypatch))}
    for number, (path, variant) in enumerate(itertools.product(representatives([*by_folder.values()]), VARIANTS)):
        place = root / f"attack-{number}"
        if not put(variant, place, path):
            continue
        ran = stays(output.argv(place, inputs, **tables_of(output, place)), place, inputs)
        # A file with the name of a part file, which holds a hash, is taken for a damaged one.
        assert ran.code == cli.USAGE or (ran.code == cli.FAILED and path.suffix == ".parquet"), f"{path}: {ran}"


def stays(argv: list[str], root: Path, inputs: Path) -> Ran:
    """Runs a command that may write, and after which every earlier file is as it was."""
    before = snapshot(root, inputs)
    ran = tiny.hybrid_here(*argv, cwd=root)
    after = snapshot(root, inputs)
    assert {path: after.get(path) for path in before} == before, ran.stderr
    return ran


@pytest.mark.parametrize(
    "path",
    [
        "tables/captions/photo.jpg",
        "tables/translations/_delta_log/00000000000000000000.json",
        "tables/reports/2026-01-02.html",
        pytest.param("data/digits/test/digits-test-00000.tar", marks=pytest.mark.long),
        pytest.param("runs/captioner-demo/summary.json", marks=pytest.mark.long),
        pytest.param("runs/nowcaster-demo/run.json", marks=pytest.mark.long),
    ],
)
def test_the_demo_changes_no_users_file(path: str, root: Path, inputs: Path, request: pytest.FixtureRequest) -> None:
    """Tables and page are checked before a cluster starts, data sets and runs before each of them is written."""
    if not path.startswith("tables/"):
        request.getfixturevalue("ray_cluster")
    theirs = root / "out" / path
    theirs.parent.mkdir(parents=True)
    theirs.write_text("the user's")
    argv = Output("demo", "out").argv(root, inputs, storage=str(root / "out"))
    assert stays(argv, root, inputs).code == cli.USAGE


def tables_of(output: Output, place: Path) -> dict[str, str]:
    """A page is written below its tables unless `out` says otherwise."""
    if output.words == "report":
        shutil.copytree(place.parent / "tables", place / "tables", dirs_exist_ok=True)
    return {}


def paths_written(output: Output, place: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Relative paths of what a command writes on an empty disk, what it removes again included."""
    place.mkdir()
    changes = tables_of(output, place)
    written: set[Path] = set()
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "write_new"):
            patch.setattr(storage, name, partial(_noting, written, getattr(storage, name)))
        before = snapshot(place)
        ran = tiny.hybrid_here(*output.argv(place, inputs, **changes), cwd=place)
    assert ran.code == cli.DONE, ran.stderr
    written |= {Path(path) for path in snapshot(place).keys() - before.keys()}
    found = [path.relative_to(place) for path in written if not path.name.startswith("_write_check_")]
    return sorted(path for path in found if not path.parts[0].startswith("mlflow"))


def _noting(written: set[Path], write: Callable[..., None], uri: str, *args: object) -> None:
    written.add(Path(storage.absolute(uri)))
    write(uri, *args)


def representatives(paths: list[Path]) -> list[Path]:
    """The first of each kind of path: they differ in numbers and splits alone."""
    kinds = {re.sub(r"[0-9a-f]{8,}|\d+|train|val|test", "#", str(path)): path for path in reversed(paths)}
    return sorted(kinds.values())


def put(variant: str, place: Path, path: Path) -> bool:
    """Puts a user's thing where a command will write; returns whether that makes sense for this path."""
    theirs, target = place / "theirs", place / path
    theirs.mkdir(parents=True)
    (theirs / "photo.jpg").write_bytes(b"the user's")
    if variant == "linked folder":
        if len(path.parts) < 3:  # the folder that the command names may be a link
            return False
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        target.parent.symlink_to(theirs)
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    if variant == "link":
        target.symlink_to(theirs / "photo.jpg")
    else:
        target.write_bytes(b"the user's")
    return True
