"""Every script of examples/ does what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

EXAMPLES = tiny.ROOT / "examples"


def run(script: str, *argv: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *argv], cwd=cwd, env={**tiny.environment(cwd), **env},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_is_run_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "ask_tables.py", "caption_photographs.py", "new_hybrid.py",
    ]  # fmt: skip


def test_photographs_are_captioned_and_the_tables_asked(tmp_path: Path, ray_cluster: str) -> None:
    model = tiny.write_captioner(str(tmp_path / "model"))
    tiny.write_photos(str(tmp_path / "photos/2026-01-31"), shards=1, rows=19)
    broken = tiny.tar([("broken.jpg", b"\xff\xd8\xff")])
    (tmp_path / "photos/2026-01-31/late.tar").write_bytes(broken)
    tables = str(tmp_path / "tables")
    argv = [model, f"{tmp_path}/photos/{{ds}}", tables, "2026-01-31"]
    assert '"rows": 20' in run("caption_photographs.py", *argv, cwd=tmp_path, RAY_ADDRESS=ray_cluster)
    assert Path(tables, "reports/2026-01-31.html").exists()

    told = run("ask_tables.py", tables, cwd=tmp_path).splitlines()
    assert told[:3] == ["how many", "    2026-01-31 error 1", "    2026-01-31 ok 19"]
    assert told[3:5] == ["what went wrong", "    ImageDecodeError 1"]
    assert told[5] == "newest captions"
    assert [line.split()[0] for line in told[6:]] == [f"photos-000.tar:{i}" for i in range(5)] or len(told[6:]) == 5


@pytest.mark.long
def test_a_new_hybrid_is_a_folder_a_line_and_a_recipe(tmp_path: Path, ray_cluster: str) -> None:
    env = {"RAY_ADDRESS": "", "PYTHONPATH": os.pathsep.join([str(tiny.ROOT)])}
    told = run("new_hybrid.py", str(tmp_path / "work"), cwd=tmp_path, **env)
    summary = next(line for line in told.splitlines() if '"baseline"' in line)
    assert '"name": "commonest tag"' in summary
    rows = [line.split("│") for line in told.splitlines() if line.startswith("│")]
    assert {row[1].strip() for row in rows} >= {"de", "en"}
