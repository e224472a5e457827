"""Imports point one way: jobs → pipelines → hybrid_models."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "hybrid_models": {"hybrid_models"},
    "pipelines": {"hybrid_models", "pipelines"},
    "jobs": {"hybrid_models", "pipelines", "jobs"},
}
MODEL_LIBRARIES = {"PIL", "numpy", "pyarrow", "sacrebleu", "timm", "tokenizers", "torch"}
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
    """A fourth hybrid is one file, one registry line and one recipe: nothing compares a hybrid's or table's name."""
    names = {"captioner", "nowcaster", "translator", "captions", "nowcasts", "translations"}
    for path in files(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not constants & names, f"{path.name}:{node.lineno} compares with {constants & names}"


def test_nothing_is_unpickled() -> None:
    for package in ALLOWED:
        for path in files(package):
            text = path.read_text()
            assert "allow_pickle=True" not in text
            assert "weights_only=False" not in text
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & {n.split(".")[0] for n in imports(path)}, path
