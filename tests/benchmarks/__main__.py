"""All benchmarks, or some lines of them, and their report: `docs/benchmarks.md` and `docs/benchmarks.json`.

    python -m tests.benchmarks [LINE ...] [--full]

Each line runs alone in a process of its own. Without `--full` only this project is run;
with it, other people's programs, too, in their own environments (`.venv/peers/`), and the commit of this project that
the goals were set against. A line that fails leaves its earlier figures as they are, and the command ends with 1; one
that ran `--full` is not replaced by one without.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from pipelines.cluster.connection import worker_env
from tests import tiny
from tests.benchmarks import peers
from tests.benchmarks.figures import Row

LINES = {
    "setup": "`make setup`, the package cache warm",
    "demo": "`hybrid demo` from nothing",
    "waiting": "waiting for an answer",
    "captioning": "photographs in tars on S3 → a committed table",
    "reading": "photographs and clips as lone objects on S3",
    "translating": "a translator of 6.7 M weights",
    "fitting": "training a captioner by `hybrid train`, features kept",
    "convlstm": "ConvLSTM in OpenSTL's configuration",
    "nowcasting": "nowcasts with probabilities",
}
"""A line's module here → what it is about."""
LIKE_A_WORKER = {"convlstm", "nowcasting"}
"""Lines that compute in their own process, with the settings that workers of a cluster have."""
REPORT = tiny.ROOT / "docs" / "benchmarks.md"
FIGURES = REPORT.with_suffix(".json")
WRITTEN = (REPORT, FIGURES)
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
ADDITIONS = 20_000_000


@dataclass(frozen=True)
class Options:
    """What to run."""

    lines: tyro.conf.Positional[tuple[str, ...]] = ()
    """Lines by name; all by default."""
    full: bool = False
    """Beside other programs and the commit that goals were set against."""
    alone: bool = False
    """Internal: this process is the line's own, and prints its rows."""


def main(options: Options) -> int:
    """Runs, writes both files, and tells how it ended."""
    if unknown := set(options.lines) - set(LINES):
        print(f"no such line: {', '.join(sorted(unknown))}; there are {', '.join(LINES)}", file=sys.stderr)
        return 2
    if options.alone:
        print(json.dumps([asdict(row) for name in options.lines for row in measured(name, options.full)]))
        return 0
    known: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    around_figures()  # a page without its marks is told before anything is measured
    changed = peers.git("status", "--porcelain", "--", ".", *(f":!{path.relative_to(tiny.ROOT)}" for path in WRITTEN))
    commit = peers.git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    failed = []
    for name in options.lines or LINES:
        print(f"{name}: {LINES[name]} …", file=sys.stderr, flush=True)
        line = run(name, options.full, commit)
        if line is None:
            failed.append(name)
            continue
        print(report({name: line}), file=sys.stderr, flush=True)
        if options.full or not known.get(name, {}).get("full"):
            known[name] = line
            FIGURES.write_text(json.dumps({name: known[name] for name in LINES if name in known}, indent=2) + "\n")
            before, after = around_figures()
            REPORT.write_text(before + BEGIN + report(json.loads(FIGURES.read_text())) + END + after)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def around_figures() -> tuple[str, str]:
    """The report's text before and after its figures.

    Raises:
        ValueError: it does not say, once, where they are.
    """
    before, rest = REPORT.read_text().split(BEGIN)
    _, after = rest.split(END)
    return before, after


def measured(name: str, full: bool) -> list[Row]:
    """The rows of a line, measured here and now."""
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[Row] = importlib.import_module(f"tests.benchmarks.{name}").rows(full, Path(scratch))
        return rows


def run(name: str, full: bool, commit: str) -> dict[str, Any] | None:
    """A line, measured in a process of its own, and when and where that was; None if it failed."""
    command = ["-m", "tests.benchmarks", name, *(["--full"] if full else [])]
    env = peers.clean(**(worker_env() if name in LIKE_A_WORKER else {}))
    began = time.perf_counter()
    words = [sys.executable, *command, "--alone"]
    done = subprocess.run(words, cwd=tiny.ROOT, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return None
    return {
        "about": LINES[name],
        "command": " ".join(["python", *command]),
        "full": full,
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": machine(),
        "versions": {package: version(package) for package in ("torch", "ray", "pyarrow", "mlflow")},
        "seconds": round(time.perf_counter() - began),
        "rows": json.loads(done.stdout.strip().splitlines()[-1]),
    }


def machine() -> dict[str, Any]:
    """The processor, and how fast it is just now."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    began, total = time.perf_counter(), 0
    for number in range(ADDITIONS):
        total += number
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "seconds_of_20_million_additions": round(time.perf_counter() - began, 2),
    }


def report(lines: dict[str, Any]) -> str:
    """The figures as Markdown."""
    text = ["| what | ours | reference | times as good | goal | |", "|---|---|---|---|---|---|"]
    for name, line in lines.items():
        text.append(f"| **{name}**: {line['about']} | | | | | |")
        text += [_row(Row(**row)) for row in line["rows"]]
    text += ["", "Where and when, and how again:", ""]
    for name, line in lines.items():
        where, versions = line["machine"], ", ".join(f"{k} {v}" for k, v in line["versions"].items())
        pace = f"{where['seconds_of_20_million_additions']} s for 20 million additions"
        text.append(
            f"- **{name}**: `{line['command']}` at {line['commit']} on {line['date']}, {line['seconds']} s; "
            f"{where['cores']} cores of {where['processor']} ({pace}), Python {where['python']}, {versions}"
        )
    return "\n".join(text) + "\n"


def _row(row: Row) -> str:
    reference = "" if row.reference is None else f"{_shown(row.reference)} {row.unit} ({row.against})"
    times = "" if row.times is None else f"{row.times:.2f}"
    goals = []
    if row.goal is not None:
        goals.append(f"{'≤' if row.small else '≥'} {row.goal:g} {row.unit}")
    if row.goal_times is not None:
        goals.append(f"≥ {row.goal_times:g} times")
    met = {None: "", True: "yes", False: "no"}[row.met]
    return f"| {row.what} | {_shown(row.ours)} {row.unit} | {reference} | {times} | {', '.join(goals)} | {met} |"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
