"""All benchmarks, or some lines of them, and their report: `docs/benchmarks.md` and `docs/benchmarks.json`.

    python -m tests.benchmarks [LINE ...] [--full]

Each line runs alone in a process of its own. Without `--full` only this project is run, in 20 minutes or so: what takes
longest, once (`setup`, `demo`, `reading`, `fitting`). With it, other people's programs, too, in their own environments
(`.venv/peers/`), and the commit of this project that the goals were set against. A line has a place for each way, so
that neither takes the other's. One that fails leaves its earlier figures as they are, and the command ends
with 1.
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

import psutil
import torch
import tyro

from pipelines.cluster.connection import worker_env
from tests import tiny
from tests.benchmarks import goals, peers
from tests.benchmarks.figures import Row, readable

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
    "beside": "a night's model process and a slow device",
    "utilisation": "what is made of a device's multiplications",
}
"""A line's module here → what it is about."""
LIKE_A_WORKER = {"convlstm", "nowcasting", "utilisation"}
"""Lines that compute in their own process, with the settings that workers of a cluster have."""
PEERS = {"captioning": ("webdataset", "daft"), "translating": ("joeynmt",), "nowcasting": ("pysteps",)}
"""A line → the environments that it runs other programs in, with `--full`."""
WAYS = {True: ("Beside others", "make bench-full"), False: ("Ours alone", "make bench")}
"""`full` → a heading, and the command for all lines."""
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
    failed, began = [], time.perf_counter()
    for name in options.lines or LINES:
        print(f"{name}: {LINES[name]} …", file=sys.stderr, flush=True)
        line = run(name, options.full, commit)
        if line is None:
            failed.append(name)
            continue
        print(sections({name: line}), file=sys.stderr, flush=True)
        known[place(name, options.full)] = line
        write(known)
    print(f"{len(options.lines or LINES)} lines took {_minutes(time.perf_counter() - began)}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def place(name: str, full: bool) -> str:
    """Where a line's figures are among all."""
    return f"{name} --full" if full else name


def write(known: dict[str, Any]) -> None:
    """Both files, in the order of `LINES`."""
    places = [place(name, full) for name in LINES for full in WAYS]
    ordered = {key: known[key] for key in places if key in known}
    FIGURES.write_text(json.dumps(ordered, indent=2) + "\n")
    before, after = around_figures()
    REPORT.write_text(before + BEGIN + report(ordered) + END + after)


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
    others = {peer: peers.versions(peer) for peer in PEERS.get(name, ()) if full}  # made ready, where they are not yet
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
        "peers": others,
        "seconds": round(time.perf_counter() - began),
        "rows": json.loads(done.stdout.strip().splitlines()[-1]),
    }


def machine() -> dict[str, Any]:
    """The processor, how fast it is just now, memory, and the GPU where there is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    began, total = time.perf_counter(), 0
    for number in range(ADDITIONS):
        total += number
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "seconds_of_20_million_additions": round(time.perf_counter() - began, 2),
    }


def report(known: dict[str, Any]) -> str:
    """The figures as Markdown, and before them which goals they meet."""
    return "\n".join(["## The goals", "", *goals.table(known), "", sections(known)])


def sections(known: dict[str, Any]) -> str:
    """The figures: what ran beside others, and what ran alone."""
    text: list[str] = []
    for full, (title, command) in WAYS.items():
        lines = {key.split()[0]: line for key, line in known.items() if line["full"] is full}
        if lines:
            took = _minutes(sum(line["seconds"] for line in lines.values()))
            text += [*([""] if text else []), f"## {title}", "", f"By `{command}`; these lines took {took}.", ""]
            text += _section(lines)
    return "\n".join(text) + "\n"


def _section(lines: dict[str, dict[str, Any]]) -> list[str]:
    text = ["| what | ours | reference | times as good | goal | |", "|---|---|---|---|---|---|"]
    for name, line in lines.items():
        text.append(f"| **{name}**: {line['about']}, at {line['commit']} | | | | | |")
        text += [_row(Row(**row)) for row in line["rows"]]
    return [*text, "", "Where and when, and how again:", "", *(_where(name, line) for name, line in lines.items())]


def _where(name: str, line: dict[str, Any]) -> str:
    where = line["machine"]
    pace = f"{where['seconds_of_20_million_additions']} s for 20 million additions"
    # Figures of before these were told have none.
    memory = f", {where['memory_gib']} GiB" if "memory_gib" in where else ""
    gpu = f", {where['gpu']}" if where.get("gpu") else ""
    others = "".join(f"; beside it {_versions(found)}" for found in line.get("peers", {}).values())
    return (
        f"- **{name}**: `{line['command']}` at {line['commit']} on {line['date']}, {line['seconds']} s; "
        f"{where['cores']} cores of {where['processor']} ({pace}){memory}{gpu}, Python {where['python']}, "
        f"{_versions(line['versions'])}{others}"
    )


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in found.items())


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


def _row(row: Row) -> str:
    reference = "" if row.reference is None else f"{readable(row.reference)} {row.unit} ({row.against})"
    times = "" if row.times is None else f"{row.times:.2f}"
    met = {None: "", True: "yes", False: "no"}[row.met]
    return f"| {row.what} | {row.shown} | {reference} | {times} | {row.asked} | {met} |"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
