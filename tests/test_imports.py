"""Imports point one way: jobs → pipelines → hybrid_models."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_models import TABLES
from jobs.command import cli
from tests import helps
from tests.benchmarks import peers

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "hybrid_models": {"hybrid_models"},
    "pipelines": {"hybrid_models", "pipelines"},
    "jobs": {"hybrid_models", "pipelines", "jobs"},
}
MODEL_LIBRARIES = {"PIL", "numpy", "pyarrow", "regex", "sacrebleu", "timm", "tokenizers", "torch"}
FORBIDDEN_IN_MODELS = {"pyarrow.dataset", "pyarrow.fs", "pyarrow.parquet"}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 5
    return found


FLOORS = ["secrets", "storage", "places", "cluster", "reading", "models", "staging"]
"""Rooms of `pipelines`, the lowest first; above them are those that import none of each other."""
ABOVE = {"datasets", "nights", "training", "judging"}
PROMISED = {"artifacts", "infer", "limits", "media", "predict", "shards"}
"""What Python and registered models import, and nothing in here."""


def rooms(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pipelines":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipelines."):
            found.add(str(node.module).split(".")[1])
    return found


def test_rooms_import_from_below_only() -> None:
    seen = set()
    for path in files("pipelines"):
        room = path.relative_to(ROOT / "pipelines").parts[0].removesuffix(".py")
        if room in PROMISED or room == "__init__":
            continue
        seen.add(room)
        below = set(FLOORS if room in ABOVE else FLOORS[: FLOORS.index(room)])
        assert rooms(path) - {room} <= below, f"{path.relative_to(ROOT)} imports from {rooms(path) - {room} - below}"
    assert seen == {*FLOORS, *ABOVE}


@pytest.mark.parametrize("package", ["jobs", "tests"])
def test_what_is_promised_to_others_is_not_used_here(package: str) -> None:
    for path in files(package):
        if path.name != "pyfunc_of_0_1.py":
            assert not rooms(path) & PROMISED, f"{path} imports {rooms(path) & PROMISED}"


@pytest.mark.parametrize("package", ALLOWED)
def test_what_benchmarks_compare_with_is_imported_by_nobody_else(package: str) -> None:
    for path in files(package):
        assert not {name.split(".")[0] for name in imports(path)} & peers.REQUIREMENTS.keys(), path


def test_layers_search_and_scores_know_no_hybrid() -> None:
    hybrids = {"captioner", "nowcaster", "recogniser", "translator"}
    for path in files("hybrid_models"):
        room = path.relative_to(ROOT / "hybrid_models").parts[0].removesuffix(".py")
        used = {name.split(".")[1] for name in imports(path) if name.startswith("hybrid_models.")}
        if room != "__init__":
            assert not (used - {room}) & hybrids, f"{path} imports {used & hybrids}"


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_say_what_lives_there_and_are_small(package: str) -> None:
    for init in (ROOT / package).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} says nothing"
        modules = {path.stem for path in init.parent.glob("*.py")} - {"__init__"}
        if package == "jobs" and init.parent.name == "jobs":
            assert modules == set(cli.VERBS), "a verb each, and nothing else"
        else:
            assert len(modules) <= 12, f"{init.parent} has too many modules"


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in files(package):
        ours = {name.split(".")[0] for name in imports(path)} & {*ALLOWED, "tests"}
        assert ours <= ALLOWED[package], f"{path.name} imports {ours - ALLOWED[package]}"


def test_models_know_neither_ray_nor_storage_nor_mlflow() -> None:
    for path in files("hybrid_models"):
        names = set(imports(path))
        libraries = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"hybrid_models"}
        assert libraries <= MODEL_LIBRARIES, f"{path.name} imports {libraries - MODEL_LIBRARIES}"
        assert not names & FORBIDDEN_IN_MODELS


@pytest.mark.parametrize("package", ["pipelines", "jobs"])
def test_no_hybrid_is_treated_apart(package: str) -> None:
    """A hybrid is one folder, one line in the registry and its recipes: nothing compares a hybrid's or table's name,
    and only recipes say a hybrid's at all."""
    names = {*TABLES, *TABLES.values()}
    for path in files(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in TABLES:
                assert path.parent.name == "recipes", f"{path.name}:{node.lineno} says {node.value}"
            if isinstance(node, ast.Compare):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not constants & names, f"{path.name}:{node.lineno} compares with {constants & names}"


TASKS = ("pipelines/reading/sandbox/process.py", "pipelines/reading/sandbox/child.py")
"""A worker pickles tasks for its own child, over a socket that nobody else has; it takes none back."""


def test_nothing_is_unpickled() -> None:
    assert "pickle.load" not in (ROOT / TASKS[0]).read_text()
    for package in ALLOWED:
        for path in files(package):
            text = path.read_text()
            assert "allow_pickle=True" not in text
            assert "weights_only=False" not in text
            known = {"pickle"} if str(path.relative_to(ROOT)) in TASKS else set()
            assert {"pickle", "cloudpickle", "dill", "joblib"} & {n.split(".")[0] for n in imports(path)} == known, path


HEAVY = {
    "aiohttp", "av", "deltalake", "duckdb", "fsspec", "h5py", "matplotlib", "mlflow", "numpy", "pandas", "polars",
    "pyarrow", "ray", "requests", "sacrebleu", "scipy", "sklearn", "timm", "torch", "xarray",
}  # fmt: skip
"""Each of these takes a twentieth of a second to some seconds to import."""


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_help_text_waits_for_nothing_that_reads_computes_or_writes(verb: str) -> None:
    """What a verb does it with is imported where it is used."""
    script = f"""
import contextlib, io, sys
from jobs.command import cli
commands = {helps.of(verb)}
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.choose([*words, "--help"])
    text = printed.getvalue()
    assert text.startswith("usage: hybrid {verb}"), (words, text)
    longer = [more for more in commands if more[: len(words)] == words != more]
    assert longer or "--help shows the options)" not in text, (words, "go on with words that are not looked at")
    if found := {HEAVY} & sys.modules.keys():
        sys.exit(" ".join([*words, "--help imports", *sorted(found)]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WRITES = {
    "copyfile", "copytree", "hardlink_to", "link", "makedirs", "mkdir", "mv", "pipe_file", "put_file",
    "removedirs", "rename", "rm", "rm_file", "rmdir", "rmtree", "symlink", "symlink_to", "touch", "truncate", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
"""Methods and functions that change files or a store's objects."""
SCRATCH = {
    "pipelines/cluster/submission.py": {"copyfile", "mkdir"},  # the job's package, in a temporary folder
    "pipelines/datasets/large_data.py": {"write_bytes"},  # a clip for the decoder, in a temporary folder
    "pipelines/models/server.py": {"mkdir", "unlink"},  # the folder and the lock of MLflow's SQLite file
    "pipelines/models/suspects.py": {"mkdir", "unlink"},  # a note on the node, which the process itself opened
    "pipelines/models/tracking.py": {
        "copyfile",
        "mkdir",
        "write_bytes",
    },  # what MLflow is handed, in a temporary folder
    "pipelines/staging/prepared.py": {"mkdir", "rename", "rmtree", "unlink"},  # the node's copies, in a private folder
    "pipelines/training/checkpoints.py": {
        "write_bytes",
        "write_text",
    },  # what Ray Train is handed, in a temporary folder
}
"""Modules that write to folders of their own on this machine, which no user names."""


def changes(path: Path) -> set[str]:
    """Names of calls in a file that change files or objects, other than by `storage`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        modes = [word for word in ast.walk(node) if isinstance(word, ast.Constant) and word.value in WRITING_MODES]
        if called in WRITES and not (isinstance(owner, ast.Name) and owner.id in ("storage", "list", "re")):
            found.add(called)
        if called == "open" and modes and not (isinstance(owner, ast.Name) and owner.id in ("tarfile", "av")):
            found.add("open")
        if (
            called in ("move", "remove", "replace")
            and isinstance(owner, ast.Name)
            and owner.id in ("os", "shutil", "fs")
        ):
            found.add(f"{owner.id}.{called}")
    return found


WRITING_MODES = {f"{mode}{kind}" for mode in ("w", "a", "x", "r+", "w+") for kind in ("", "b", "t")}


def test_files_are_written_and_removed_by_one_module() -> None:
    found = {}
    for package in ALLOWED:
        for path in files(package):
            if calls := changes(path):
                found[str(path.relative_to(ROOT))] = calls
    ours = found.pop("pipelines/storage/writing.py")
    assert {"pipe_file", "rm_file", "unlink", "link", "os.replace", "mkdir"} <= ours, "the walk sees what is there"
    assert found == SCRATCH
