"""A new hybrid is one folder, a line in the registry and a file of recipes: `python examples/new_hybrid.py FOLDER`.

Here is `tagger/`, which tells German from English sentences. This script makes a copy of the packages in FOLDER, adds
the tagger to the copy as you would add yours to the project, trains it, judges it beside its baseline, and writes a
night of the table `tags`. Nothing else was changed: training, nights, the gate and the queries know no hybrid by name.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipelines import storage
from pipelines.datasets.demo.data import prepare_demo

HERE = Path(__file__).resolve().parent
PACKAGES = ("hybrid_models", "pipelines", "jobs")
RECIPE = '''"""Recipes of the tagger."""

from hybrid_models.tagger.config import TaggerConfig
from hybrid_models.tagger.decoding import TaggerDecoding
from pipelines.training.recipe import Recipe, TrainConfig


def demo() -> Recipe:
    """German or English."""
    return Recipe("tagger", TaggerConfig(), TaggerDecoding(), TrainConfig(epochs=4, batch_size=16, metric="accuracy"))
'''


def add_the_tagger(copy: Path) -> None:
    """The three steps."""
    for package in PACKAGES:
        shutil.copytree(HERE.parent / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HERE / "tagger", copy / "hybrid_models" / "tagger")
    registry = copy / "hybrid_models" / "__init__.py"
    registry.write_text(
        registry.read_text().replace('"nowcaster": "nowcasts"', '"nowcaster": "nowcasts", "tagger": "tags"')
    )
    recipes = copy / "jobs" / "recipes"
    (recipes / "tagger.py").write_text(RECIPE)
    listed = (recipes / "__init__.py").read_text()
    listed = listed.replace(
        "import captioner, nowcaster, recogniser,", "import captioner, nowcaster, recogniser, tagger,"
    )
    listed = listed.replace('    "translator-demo"', '    "tagger-demo": tagger.demo,\n    "translator-demo"')
    (recipes / "__init__.py").write_text(listed)


def write_sentences(data: str) -> None:
    """Both languages of the demo's sentences, with their tags."""
    prepare_demo(f"{data}/demo", 8, 8, 400, night_rows=9, rows_per_shard=400, seed=0)
    for split in ("train", "val", "test"):
        lines = []
        for file in storage.list_files(f"{data}/demo/sentences/{split}"):
            for pair in map(json.loads, gzip.decompress(storage.read_bytes(file.uri)).splitlines()):
                lines += [{"text": pair[tag], "tag": tag} for tag in ("de", "en")]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_bytes(f"{data}/{split}/sentences.jsonl", text.encode())


def main(folder: str) -> None:
    """Adds the tagger, trains it, judges it, writes a night and asks it."""
    work = Path(folder).resolve()
    add_the_tagger(work / "project")
    write_sentences(str(work / "data"))
    model, tables = "models:/tagger@challenger", ["--tables", "tables"]
    for words in (
        ["train", "tagger-demo", "--data", "data", "--storage", "lake", "--pictures", "0"],
        ["evaluate", "--model", model, "--input", "data/test", "--storage", "lake", "--pictures", "0"],
        ["infer", "tags", "--model", model, "--input", "data/test", *tables, "--ds", "2026-01-31"],
        ["query", "SELECT tag, count(*) AS sentences, avg(probability) AS sure FROM tags GROUP BY ALL", *tables],
    ):
        print("hybrid", *words, flush=True)
        env = {**os.environ, "PYTHONPATH": str(work / "project")}
        subprocess.run([sys.executable, "-m", "jobs.command.cli", *words], cwd=work, env=env, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
