"""The options of all verbs that hold an address, from their help texts, and a command for each verb that has one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from jobs.command import cli
from pipelines.models import artifacts
from pipelines.models.tracking import Tracker
from tests import helps, tiny
from tests.pipelines.datasets import test_clip_captions, test_large_data, test_public_data, test_radar_data

ADDRESS = re.compile(r"\b(uris?|urls?|folders?|files?|database|addresses|address)\b", re.IGNORECASE)
"""Words of the help text of an option that holds an address."""
OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9.-]*) (?:STR|\[STR|STR STR)\b(?P<text>.*)")
READ_ONLY = {
    "address", "allow-prefix", "data", "input", "mlflow", "model", "model.encoder-weights", "references", "source",
    "table",
}  # fmt: skip
"""Options that name what a verb reads, whatever the verb. `mlflow` is written by MLflow alone."""
NO_ADDRESS = {"caption-column", "ds", "file-column", "group-column", "languages"}
"""Options whose description speaks of an address and that hold none."""
READ_ONLY_OF = {("query", "tables"), ("tables", "tables"), ("tables export", "tables")}
"""Verb and option that only this verb reads by."""
DS = "2026-01-31"

# `{inputs}` is a folder that no command may change, `{root}` the folder of one attack.
_PUBLIC = "--source {{inputs}}/{0} --out {{root}}/out"
_MLFLOW = "--mlflow sqlite:///{root}/mlflow.db"
_TRAIN = "--data {inputs}/pairs --storage {root}/out " + _MLFLOW
COMMANDS: dict[str, str] = {
    "demo": "--scenes 8 --digits 8 --sentences 16 --epochs 1 --out {root}/out --storage {root}/lake",
    "prepare demo": "--scenes 8 --digits 8 --sentences 16 --night-rows 3 --out {root}/out",
    "prepare folder": "--source {inputs}/photos --table {inputs}/captions.csv --val 0.3 --test 0.3 --out {root}/out",
    "prepare manifest": "--source {inputs}/manifest.jsonl --uri-column photo --val 0.3 --test 0.3 --out {root}/out",
    "prepare multi30k": _PUBLIC.format("multi30k"),
    "prepare flickr8k": _PUBLIC.format("flickr8k") + " --val-images 2",
    "prepare radar": _PUBLIC.format("radar") + " --crop 2",
    "prepare moving-mnist": _PUBLIC.format("mnist") + " --train 3 --val 2 --test 1",
    "prepare moving-scenes": "--train 2 --val 1 --test 1 --out {root}/out",
    "prepare coco": _PUBLIC.format("coco") + " --val-images 2",
    "prepare iwslt14": _PUBLIC.format("iwslt14"),
    "prepare kth": _PUBLIC.format("kth"),
    "prepare msvd": _PUBLIC.format("msvd"),
    "prepare msrvtt": _PUBLIC.format("msrvtt"),
    **{f"train {recipe}": _TRAIN for recipe in helps.FURTHER["train"]},
    "train translator-demo": _TRAIN + " --model.hidden-size 16 --model.vocab-size 300 --train.epochs 1 "
    "--train.batch-size 16 --pictures 0",
    "evaluate": "--model {inputs}/translator --input {inputs}/pairs/val --pictures 0 --storage {root}/out " + _MLFLOW,
    "promote translator": "--model models:/translator/1 --input {inputs}/pairs/val --storage {root}/out "
    "--mlflow sqlite:///{inputs}/mlflow.db",
    **{
        f"infer {task}": f"--model {{inputs}}/{model} --input {{inputs}}/{shards} --ds {DS} --tables {{root}}/out "
        + _MLFLOW
        for task, model, shards in (
            ("captions", "captioner", "photos"), ("nowcasts", "nowcaster", "radar"),
            ("actions", "recogniser", "photos"), ("translations", "translator", "sentences"),
        )
    },
    **{
        f"nightly {task}": f"--model {{inputs}}/translator --input {{inputs}}/nights/ds={{{{ds}}}} --ds {DS} "
        "--tables {root}/out " + _MLFLOW
        for task in ("captions", "nowcasts", "actions", "translations")
    },
    "nightly --all-tasks": f"--input {{inputs}}/nights/{{{{task}}}}/ds={{{{ds}}}} --ds {DS} --tables {{root}}/out "
    "--mlflow sqlite:///{inputs}/mlflow.db",
    "query": "--tables {inputs}/tables --format csv --out {root}/out/rows.csv",
    "report": f"--tables {{root}}/tables --ds {DS} --out {{root}}/out/page.html " + _MLFLOW,
    "tables tidy": "--tables {root}/tables",
    "tables restore captions": "--tables {root}/tables --as-of 1",
    "tables compact captions": "--tables {root}/tables",
    "tables export": f"--tables {{inputs}}/tables --ds {DS} --out {{root}}/out",
    "tidy": "--storage {root}/out --mlflow sqlite:///{inputs}/mlflow.db",
    "doctor": "--tables {root}/tables --storage {root}/out",
}  # fmt: skip
"""A small command of each verb that has an option for outputs."""
WITHOUT = {("report", "tables"): "out"}
"""Verb and option → the option without which it names an output."""
FIRST = {"query": ("SELECT sample_id FROM captions",)}
"""Words before the options."""


@dataclass(frozen=True)
class Output:
    """An option of a verb that names what the verb writes or removes."""

    words: str
    option: str

    def __str__(self) -> str:
        return f"{self.words} --{self.option}"

    def values(self, root: Path, inputs: Path) -> dict[str, str]:
        """The options of a small command, by name."""
        if self.words not in COMMANDS:
            pytest.fail(f"COMMANDS of {__name__} has no `{self.words}`: add a small command with --{self.option}")
        words = COMMANDS[self.words].split(" ")
        filled = [word.format(root=root, inputs=inputs) for word in words]
        values = {name.removeprefix("--"): value for name, value in zip(filled[::2], filled[1::2], strict=True)}
        values.pop(WITHOUT.get((self.words, self.option), ""), None)
        if self.option not in values:
            pytest.fail(
                f"`{self}` holds an address, and nothing says whether it is written: add it to the command in COMMANDS "
                f"of {__name__}, or to READ_ONLY_OF if `{self.words}` only reads there"
            )
        return values

    def argv(self, root: Path, inputs: Path, **changes: str) -> list[str]:
        """A command with some options changed."""
        values = {**self.values(root, inputs), **changes}
        words = [*self.words.split(" "), *FIRST.get(self.words, ())]
        return [*words, *(word for name, value in values.items() for word in (f"--{name}", value))]


@cache
def outputs() -> tuple[Output, ...]:
    """Every option of every verb that holds an address and is not known to be only read."""
    found: list[Output] = []
    for words in helps.every():
        joined = "promote translator" if words[0] == "promote" else " ".join(words)
        for name in _addresses(words):
            if (
                name not in READ_ONLY | NO_ADDRESS
                and (joined, name) not in READ_ONLY_OF
                and Output(joined, name) not in found
            ):
                found.append(Output(joined, name))
    return tuple(found)


def _addresses(words: list[str]) -> Iterator[str]:
    """Names of the options in a help text that are texts and whose description speaks of an address."""
    lines: list[str] = []
    for line in _help(words).splitlines():
        text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", line).strip()
        if text.startswith("--") or line.startswith("╭") or not lines:
            lines.append(text)
        else:
            lines[-1] += " " + text
    for option in filter(None, map(OPTION.fullmatch, lines)):
        if ADDRESS.search(option["text"]):
            yield option["name"]


def _help(words: list[str]) -> str:
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", ["hybrid", *words, "--help"])
        patch.setenv("COLUMNS", "80")  # a wider page has two columns
        cli.main()
    return printed.getvalue()


def make_inputs(folder: Path) -> Path:
    """What the commands read: sources of data sets, shards, models, an MLflow database and tables."""
    folder.mkdir(parents=True)
    test_public_data.make_multi30k(folder / "multi30k", test_public_data.COUNTS, packed=True)
    test_public_data.make_repacked(folder / "flickr8k", 12, 3, same={})
    test_public_data.make_mnist(folder / "mnist")
    test_radar_data.make_events(folder / "radar")
    test_large_data.make_coco(folder / "coco", zipped=False)
    test_large_data.make_iwslt14(folder / "iwslt14")
    test_large_data.make_kth(folder / "kth")
    test_clip_captions.make_msvd(folder / "msvd")
    test_clip_captions.make_msrvtt(folder / "msrvtt", zipped=False)
    (folder / "photos").mkdir()
    for number in range(12):
        (folder / f"photos/{number}.jpg").write_bytes(tiny.jpeg(number))
    rows = [{"photo": f"photos/{number}.jpg", "caption": f"photo {number}"} for number in range(12)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "captions.csv").write_text("file,caption\n" + "".join(f"{n}.jpg,photo {n}\n" for n in range(12)))
    for kind in ("captioner", "nowcaster", "recogniser", "translator"):
        getattr(tiny, f"write_{kind}")(f"{folder}/{kind}")
    tiny.write_sentences(f"{folder}/sentences", shards=1, rows=3)
    tiny.write_sentences(f"{folder}/nights/ds={DS}", shards=1, rows=3)
    for split, seed in (("train", 1), ("val", 2)):
        tiny.write_pairs(f"{folder}/pairs/{split}", 40, seed)
    make_tables(folder / "tables")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db")
    tracker.start("train", {}, {})
    tracker.register("translator", dict(artifacts.read(f"{folder}/translator").files))
    tracker.finish()
    return folder


def make_tables(folder: Path) -> None:
    """A table of captions with one row."""
    tiny.write_rows(str(folder), "captions", DS, [{"sample_id": "a", "caption": "a photo"}])


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file and link below folders: the digest of its content, or where it leads."""
    found: dict[str, str] = {}
    for folder in folders:
        for parent, names, files in os.walk(folder):
            for name in (*names, *files):
                path = Path(parent, name)
                if path.is_symlink():
                    found[str(path)] = f"link to {path.readlink()}"
                elif path.is_file():
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
