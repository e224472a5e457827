"""`python -m tests.chaos.fuzz`: thousands of hostile shards through the three hybrids, and their table in README.md.

Each is read and decoded under guard, as a night does it, by two processes; a sample of them is a real night of each
task. Mutant *n* of a format is always the same: `--only FORMAT --number n` repeats it alone and shows its rows.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import tyro

from hybrid_models.inputs import Cut
from pipelines.reading.limits import Limits
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests.chaos.mutants import FORMATS, Mutant, mutant

README = Path(__file__).with_name("README.md")
START, END = "<!-- fuzz -->\n", "<!-- end of fuzz -->\n"
PROCESSES = 2
LIMITS = Limits(
    max_bytes=32 << 20, max_pixels=16_000_000, max_frames=2000, max_array_bytes=256 << 20, max_seconds=5,
    max_memory=1 << 30
)  # fmt: skip
MOST_MEMORY = LIMITS.max_memory + (768 << 20)
"""Bytes that the child may have at most: its libraries need some before the limit counts."""
HANG_SECONDS = 200
"""No shard takes so long under these limits: a row may be waited for ten times its seconds, twice."""
NIGHT_SECONDS = 1800
KIND = re.compile(r"[A-Z][A-Za-z0-9]+: .|EmptyShard")
TASKS = {"captions": "captioner", "nowcasts": "nowcaster", "translations": "translator"}


@dataclass(frozen=True)
class Options:
    """What is run."""

    shards: int = 5000
    """Hostile shards, in equal parts of each format."""
    seed: int = 1
    """Of all of them."""
    only: str = ""
    """One format alone; leaves the table as it is."""
    number: int = -1
    """Of a format, this mutant alone."""
    night: int = 400
    """Shards of each task's real night; 0 for none."""
    keep: str = ""
    """Folder for the mutants at which something was wrong, and what."""


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant in the three hybrids."""

    mutant: Mutant
    rows: int
    errors: Counter[str]
    """By kind."""
    lost: int
    """Rows that were said to be lost with the end of a shard."""
    seconds: float
    peak: int
    """Most bytes of memory of a child of the process that saw to it, so far."""
    problems: Sequence[str]


@dataclass(frozen=True)
class Night:
    """What came of a real night."""

    task: str
    shards: int
    code: int
    seconds: float
    rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    problems: Sequence[str] = ()


# ---- rows --------------------------------------------------------------------------------------------------------
def complaint(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with the rows of a shard; empty if each is accounted for."""
    if not rows:
        return "no row"
    if [row["index"] for row in rows] != list(range(len(rows))):
        return f"the indices of {len(rows)} rows are not 0 … {len(rows) - 1}"
    if [row["last"] for row in rows] != [False] * (len(rows) - 1) + [True]:
        return "not the last row, and no other, is the last one"
    unknown = [row["error"] for row in rows if row["error"] is not None and not KIND.match(row["error"])]
    return f"an error without its kind: {unknown[0]!r}" if unknown else ""


def kinds(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Error rows by kind."""
    return Counter(row["error"].split(":")[0] for row in rows if row["error"] is not None)


def lost_rows(rows: Iterable[Mapping[str, Any]]) -> int:
    """Rows that were said to be lost."""
    return sum(row.get("lost_rows") or 0 for row in rows)


# ---- one mutant --------------------------------------------------------------------------------------------------
def decoders() -> dict[str, Decode]:
    """The hybrids' own decoding, by task; the captioner's of clips that are cut into windows, too."""
    from tests import tiny  # torch is not for the processes whose children are measured

    hybrids = {"captions": tiny.captioner(), "nowcasts": tiny.nowcaster(), "translations": tiny.translator()}
    found = {task: Decode(hybrid.preprocess(hybrid.config, hybrid.assets), LIMITS) for task, hybrid in hybrids.items()}
    return {**found, "windows": replace(found["captions"], cut=Cut(0.2, 0.1))}


class HangError(Exception):
    """A shard has taken too long."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raises `HangError` inside after so many seconds; for a process's main thread."""

    def ring(number: int, frame: Any) -> None:
        raise HangError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(uri: str, decode: Decode, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of a shard without their samples; whatever would have ended a night is a problem."""
    rows: list[dict[str, Any]] = []
    try:
        (shard,) = list_shards(uri, cut=decode.cut is not None)
        with alarm(HANG_SECONDS):
            for block in guarded(shard, decode.options(), decode):
                rows += _without_samples(block)
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
        return rows
    problems += filter(None, [complaint(rows)])
    return rows


def _without_samples(block: pa.Table) -> list[dict[str, Any]]:
    missing = block["sample"].is_null().to_pylist()
    rows: list[dict[str, Any]] = block.drop_columns(["sample"]).to_pylist()
    for row, none in zip(rows, missing, strict=True):
        if none != (row["error"] is not None):
            raise AssertionError(f"row {row['index']} has neither a sample nor an error, or both")
    return rows


def attend(kind: str, number: int, seed: int, decoders: Mapping[str, Decode]) -> Outcome:
    """One mutant in all decoders, one after the other."""
    made = mutant(kind, number, seed)
    rows, errors, lost = 0, Counter[str](), 0
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder, made.name)
        path.write_bytes(made.content)
        started = time.perf_counter()
        for task, decode in decoders.items():
            wrong: list[str] = []
            found = read(str(path), decode, wrong)
            rows, errors, lost = rows + len(found), errors + kinds(found), lost + lost_rows(found)
            problems += [f"{task}: {problem}" for problem in wrong]
            if wrong:  # the others would say the same
                break
    return Outcome(made, rows, errors, lost, time.perf_counter() - started, peak_memory(), problems)


def peak_memory() -> int:
    """Most bytes that one of this process's children had, those that are gone included."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for child in psutil.Process().children(recursive=True):
        status = Path(f"/proc/{child.pid}/status")
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
        peak = max(peak, int(found[1]) if found else 0)
    return peak * 1024


# ---- many --------------------------------------------------------------------------------------------------------
def fuzz(kinds: Sequence[str], count: int, options: Options) -> Iterator[Outcome]:
    """So many mutants of each format, those of one format together in fresh processes."""
    steps = decoders()
    for kind in kinds:
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(partial(attend, kind, seed=options.seed, decoders=steps), range(count))


def night(task: str, options: Options) -> Night:
    """A real night over mutants of all formats, `hybrid infer` as a process of its own."""
    from pipelines.nights import query
    from tests import tiny

    write_model = {
        "captions": tiny.write_captioner,
        "nowcasts": tiny.write_nowcaster,
        "translations": tiny.write_translator,
    }
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        folder = Path(scratch)
        (folder / "in").mkdir()
        for i in range(options.night):
            made = mutant(FORMATS[i % len(FORMATS)], i // len(FORMATS), options.seed + 1)
            (folder / "in" / made.name).write_bytes(made.content)
        limits = [
            word for name, value in vars(LIMITS).items() for word in (f"--limits.{name.replace('_', '-')}", str(value))
        ]
        started = time.perf_counter()
        ran = tiny.hybrid(
            "infer", task, "--input", f"{folder}/in", "--tables", f"{folder}/tables", "--ds", "2026-01-31",
            "--model", write_model[task](f"{folder}/model"), "--max-error-fraction", "1", *limits,
            cwd=folder, timeout=NIGHT_SECONDS,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if ran.code != 0:
            return Night(task, options.night, ran.code, seconds, problems=[ran.stderr.strip().splitlines()[-1]])
        rows = query.query(f"SELECT * FROM {task}_all ORDER BY shard, index", f"{folder}/tables", [task]).to_pylist()
        shards: dict[str, list[dict[str, Any]]] = {f"{folder}/in/{path.name}": [] for path in (folder / "in").iterdir()}
        for row in rows:
            shards[row["shard"].removeprefix("file://")].append(row)
        problems = [f"{Path(uri).name}: {problem}" for uri, found in shards.items() if (problem := complaint(found))]
        return Night(task, options.night, ran.code, seconds, len(rows), kinds(rows), lost_rows(rows), problems)


# ---- the table ---------------------------------------------------------------------------------------------------
def table(outcomes: Sequence[Outcome], nights: Sequence[Night], options: Options) -> str:
    """What is written to README.md."""
    wrong = [outcome for outcome in outcomes if outcome.problems]
    lines = [
        f"`make fuzz SHARDS={options.shards} SEED={options.seed}`: {len(outcomes)} hostile shards, each in three "
        f"hybrids; {len(outcomes) - len(wrong)} with every row accounted for.",
        "",
        "| format | mutants | rows | error rows | rows lost | seconds | peak memory of the child, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(outcome.mutant.format for outcome in outcomes):
        some = [outcome for outcome in outcomes if outcome.mutant.format == kind]
        rows, lost = sum(o.rows for o in some), sum(o.lost for o in some)
        bad, seconds = sum(o.errors.total() for o in some), sum(o.seconds for o in some)
        peak = max(o.peak for o in some) >> 20
        lines.append(f"| {kind} | {len(some)} | {rows:,} | {bad:,} | {lost:,} | {seconds:.0f} | {peak:,} |")
    if nights:
        lines += [
            "",
            "| night of | hostile shards | rows | error rows | rows lost | seconds | exit code |",
            "|---|---|---|---|---|---|---|",
        ]
    lines += [
        f"| {n.task} | {n.shards} | {n.rows:,} | {n.errors.total():,} | {n.lost:,} | {n.seconds:.0f} | {n.code} |"
        for n in nights
    ]
    lines.append("")
    said = [f"- {o.mutant.format} {o.mutant.number} ({o.mutant.mutator}): {'; '.join(o.problems)}" for o in wrong]
    said += [f"- night of {n.task}: {problem}" for n in nights for problem in n.problems]
    return "\n".join(lines + [line[:300] for line in said] + [""] * bool(said))


def write_table(text: str) -> None:
    """Puts the results between the marks in README.md."""
    readme = README.read_text()
    README.write_text(readme.split(START)[0] + START + text + END + readme.split(END)[1])


def keep(outcome: Outcome, folder: Path) -> None:
    """The mutant and what was wrong with it, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / outcome.mutant.name).write_bytes(outcome.mutant.content)
    (folder / f"{outcome.mutant.name}.txt").write_text("\n".join(outcome.problems) + "\n")


def show(kind: str, number: int, options: Options) -> bool:
    """Prints the rows of one mutant; whether they are right."""
    made = mutant(kind, number, options.seed)
    right = True
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        path = Path(options.keep or scratch, made.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.content)
        for task, decode in decoders().items():
            problems: list[str] = []
            rows = read(str(path), decode, problems)
            for row in [*rows[:20], *rows[20:][-3:]]:
                print(json.dumps({"task": task, **row}, default=str)[:400])
            print(f"{task}: {len(rows)} rows; {problems or 'right'}")
            right = right and not problems
    return right


def main() -> None:
    """Exit code 1 if a row is unaccounted for, a night did not end well, or a child needed too much memory."""
    options = tyro.cli(Options, description=__doc__)
    if options.number >= 0:
        sys.exit(not show(options.only, options.number, options))
    kinds = [options.only] if options.only else FORMATS
    outcomes: list[Outcome] = []
    for outcome in fuzz(kinds, -(-options.shards // len(kinds)), options):
        outcomes.append(outcome)
        if outcome.problems:
            print(f"{outcome.mutant.name}: {'; '.join(outcome.problems)}"[:500], file=sys.stderr, flush=True)
            if options.keep:
                keep(outcome, Path(options.keep))
    nights = [] if options.only else [night(task, options) for task in TASKS if options.night]
    text = table(outcomes, nights, options)
    print(text)
    print("errors by kind:", dict(sum((o.errors for o in outcomes), Counter[str]()).most_common()))
    if not options.only:
        write_table(text)
    greedy = {o.mutant.format for o in outcomes if o.peak > MOST_MEMORY}
    if greedy:
        print(f"more than {MOST_MEMORY >> 20} MB of memory: {', '.join(sorted(greedy))}", file=sys.stderr)
    sys.exit(bool(greedy) or any(o.problems for o in outcomes) or any(n.problems for n in nights))


if __name__ == "__main__":
    main()
