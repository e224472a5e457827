import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tyro
from ray.exceptions import RayTaskError

from hybrid_models import HYBRIDS, TABLES
from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.command.options import FLAT
from jobs.recipes import RECIPES
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.staging.checks import RefusedError
from tests import tiny

LEADING = {"train": ["translator-demo"], "infer": ["captions"], "prepare": ["demo"]}
OPTIONS = {
    "demo": ["--out", "--storage", "--scenes", "--digits", "--sentences", "--epochs"],
    "prepare": ["--out", "--scenes", "--digits", "--sentences", "--night-rows", "--rows-per-shard", "--seed"],
    "train": ["--data", "--storage", "--name", "--num-workers", "--mlflow", "--model.hidden-size", "--train.epochs",
              "--train.metric", "--decoding.beam-size", "--limits.max-bytes", "--resources.min-actors"],
    "evaluate": ["--model", "--input", "--storage", "--stride", "--mlflow", "--resources.batch-size",
                 "--limits.max-pixels"],
    "infer": ["--input", "--tables", "--ds", "--model", "--decoding.beam-size", "--decoding.max-length",
              "--max-error-fraction", "--retain-hours", "--mlflow", "--resources.threads", "--limits.max-frames"],
    "query": ["SQL", "--tables", "--format", "--out"],
}  # fmt: skip


# ---- real processes ----------------------------------------------------------------------------------------------
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    ran = tiny.hybrid("infer", "captions", "--ds", "2026-01-31", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("hybrid: ")
    assert "--input" in line


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--ds", "", "--as-of", "1"], ", at --ds"),
        (["--tables", " "], ", at --tables"),
        (["--ds="], ", at --ds="),
        ([""], ""),
    ],
)
def test_an_empty_word_is_no_choice_of_the_users(
    words: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--ds "$DS"` at two in the morning, and all nights would be restored."""
    code, out, err = ended(raising(AssertionError("it went on")), capsys, words)
    assert (code, out, err) == (2, "", f"hybrid: a word of the command is empty{place}: is a variable not set?\n")
    cli.check_words(["--input=s3://lake/ds=", "--out", "x=", "-- a comment =", "SELECT 1"])


def test_a_wrong_address_is_one_line(tmp_path: Path) -> None:
    ran = tiny.hybrid("tables", "--tables", "zzz://lake", cwd=tmp_path)
    assert (ran.code, ran.stderr) == (
        2,
        "hybrid: zzz://lake is no address of a known kind: write s3://BUCKET/KEY, file:///PATH or a path\n",
    )


def test_an_unknown_verb_is_told_from_its_likes_and_the_version_is_shown(tmp_path: Path) -> None:
    ran = tiny.hybrid("infre", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == "hybrid: unknown verb 'infre': did you mean infer?\n"
    ran = tiny.hybrid("--version", cwd=tmp_path)
    assert (ran.code, ran.stderr) == (0, "")
    assert re.fullmatch(r"hybrid \d+\.\d+\.\d+\n", ran.stdout)


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["infer", "captions", "--help"], ["prepare", "moving-scenes", "--out", "lake", "--train", "2"]],
    ids=["overview", "help", "summary"],
)
def test_who_reads_the_output_may_leave(argv: list[str], tmp_path: Path) -> None:
    """As `head` does. What was done is done: that nobody reads the summary does not fail a job."""
    argv += ["--val", "2", "--test", "2"] if argv[0] == "prepare" else []
    reader, writer = os.pipe()
    os.close(reader)
    command = [Path(sys.executable).with_name("hybrid"), *argv]
    try:
        ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    finally:
        os.close(writer)
    assert ran.returncode == 0, ran.stderr
    assert "Error" not in ran.stderr
    assert "Broken pipe" not in ran.stderr


def test_python_m_is_the_same_as_the_command(tmp_path: Path) -> None:
    import subprocess
    import sys

    argv = ["SELECT 1", "--tables", str(tmp_path)]
    ours = tiny.hybrid("query", *argv, cwd=tmp_path)
    module = subprocess.run(
        [sys.executable, "-m", "jobs.query", *argv], cwd=tmp_path, env=tiny.environment(tmp_path),
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert (module.returncode, module.stdout, module.stderr) == (ours.code, ours.stdout, ours.stderr)
    assert ours.code == 2
    assert ours.stderr.startswith(f"hybrid: no tables at {tmp_path}: ")


# ---- outcomes ----------------------------------------------------------------------------------------------------
def ended(
    verb: Callable[[list[str]], dict[str, Any] | None],
    capsys: pytest.CaptureFixture[str],
    argv: Sequence[str] = ("argument",),
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a verb."""
    with pytest.raises(SystemExit) as caught:
        cli.run(verb, list(argv))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def verb(argv: list[str]) -> None:
        assert argv == ["argument"]
        raise error

    return verb


def test_a_summary_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ended(lambda argv: {"caption": "grün", "path": Path("/x"), "argv": argv}, capsys)
    assert (code, err) == (0, "")
    assert out == '{"caption": "grün", "path": "/x", "argv": ["argument"]}\n'
    assert ended(lambda argv: None, capsys) == (0, "", "")


@dataclass
class WrappedError(Exception):
    """An error as Ray wraps it: the cause is an attribute."""

    cause: Exception


def test_every_outcome_has_its_exit_code_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    where = "(HYBRID_TRACEBACK=1 shows where)"
    assert ended(raising(UsageError("--ds 'x' is not a date")), capsys) == (2, "", "hybrid: --ds 'x' is not a date\n")
    assert ended(raising(RefusedError("too many")), capsys) == (3, "", "hybrid: too many\n")
    of_a_task = RayTaskError("f", "ray::f()\n  File x", RefusedError("too many")).as_instanceof_cause()
    assert ended(raising(of_a_task), capsys) == (3, "", "hybrid: too many\n")
    assert ended(raising(ConnectionError("x")), capsys) == (1, "", f"hybrid: failed: ConnectionError: x {where}\n")
    keys = storage.CredentialsError("cannot list s3://lake: Unable to locate credentials")
    assert ended(raising(WrappedError(keys)), capsys) == (2, "", f"hybrid: {keys}\n")
    code, out, err = ended(raising(KeyboardInterrupt()), capsys)
    assert (code, out, err) == (130, "", "hybrid: interrupted; start the same command again, it goes on\n")
    for code in (1, 15, 143):  # of Ray's handlers of SIGTERM, and of ours
        terminated = (143, "", "hybrid: terminated; start the same command again, it goes on\n")
        assert ended(raising(SystemExit(code)), capsys) == terminated
    wrapped = WrappedError(WrappedError(OSError("the disk is full\nmore words")))
    assert ended(raising(wrapped), capsys) == (1, "", f"hybrid: failed: OSError: the disk is full {where}\n")


WAITS = """
import atexit, os, sys, time, types
from jobs.command import cli

class Aborts:
    def __del__(self, abort=os.abort):
        abort()

def verb(argv):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("left", flush=True)

sys.modules["jobs.demo"] = types.ModuleType("jobs.demo")
sys.modules["jobs.demo"].main, sys.modules["jobs.demo"].held = verb, Aborts()
sys.argv = ["hybrid", "demo"]
atexit.register(print, "cleaned up")
cli.main()
"""
"""A verb that waits for a signal, beside a library that aborts in Python's finalisation."""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_command_with_its_code_after_cleaning_up(number: int, code: int, word: str) -> None:
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "left\ncleaned up\n")
    assert err == f"hybrid: {word}; start the same command again, it goes on\n"


def test_the_innermost_cause_is_named() -> None:
    outer = RuntimeError("cannot read")
    outer.__cause__ = ConnectionError("refused")
    assert cli.described(cli.root_cause(outer)) == "ConnectionError: refused"
    stored = storage.failed("read", "s3://lake/a.parquet", OSError(28, "no space"))
    stored.__cause__ = OSError(28, "no space")
    line = "StorageError: cannot read s3://lake/a.parquet: [Errno 28] no space"
    assert cli.described(cli.root_cause(stored)) == line
    of_a_task = RayTaskError("read", "ray::read()\n  File x\nTo change retries, configure `no_such_field`", stored)
    assert cli.described(cli.root_cause(of_a_task.as_instanceof_cause())) == line
    text = "\x1b[36mray::f()\x1b[39m (pid=1)\n  File x\nZeroDivisionError: division by zero"
    assert cli.described(RuntimeError(text)) == "RuntimeError: ZeroDivisionError: division by zero"
    assert cli.described(ValueError()) == "ValueError: "


def test_a_traceback_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HYBRID_TRACEBACK", "1")
    assert ended(raising(ConnectionError("x")), capsys)[0] == 1
    assert [record.message for record in caplog.records if record.exc_info] == ["traceback"]


@pytest.mark.parametrize("error", [KeyError("x"), WrappedError(AttributeError("x")), AssertionError()])
def test_what_nobody_foresaw_shows_its_traceback_at_once(
    error: Exception, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    code, _, err = ended(raising(error), capsys)
    assert code == 1
    assert "HYBRID_TRACEBACK" not in err
    assert [record.message for record in caplog.records if record.exc_info] == ["traceback"]


def because_of(cause: Exception, error: Exception) -> Exception:
    """An error that was raised from another one."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        UsageError("x"),
        RefusedError("x"),
        WrappedError(UsageError("x")),
        FloatingPointError("x"),
        OSError("x"),
        because_of(KeyError("y"), UsageError("x")),
        because_of(ValueError("y"), RefusedError("x")),
        because_of(TypeError("y"), EndedError(1, "x")),
        WrappedError(because_of(ValueError("y"), UsageError("x"))),
    ],
)
def test_what_was_foreseen_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ended(raising(error), capsys)
    assert not [record for record in caplog.records if record.exc_info]


# ---- the command line --------------------------------------------------------------------------------------------
def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for argv, code in ((["hybrid", "--help"], 0), (["hybrid", "-h"], 0), (["hybrid"], 2)):
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == code
        printed = capsys.readouterr().out
        for verb, text in cli.VERBS.items():
            assert re.search(rf"^  {verb} +{re.escape(text)}$", printed, re.MULTILINE)
    assert set(OPTIONS) <= set(cli.VERBS)


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_mentions_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"jobs.{verb}").main([*LEADING.get(verb, []), "--help"])
    assert not caught.value.code
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert [option for option in OPTIONS[verb] if option not in printed] == []


@pytest.mark.parametrize(("verb", "choices"), [("train", list(RECIPES)), ("infer", list(TABLES.values()))])
def test_the_leading_word_is_one_of_the_choices(
    verb: str, choices: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"jobs.{verb}").main
    what = {"train": "recipe", "infer": "task"}[verb]
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[2:]] == choices
    for argv, message in (
        (["qqq", "--x"], f"unknown {what} 'qqq': use {', '.join(choices)}"),
        ([f"{choices[0][:-1]}"], f"unknown {what} '{choices[0][:-1]}': did you mean {choices[0]}?"),
        ([], f"hybrid {verb} needs a {what} first: {', '.join(choices)}"),
        (["--model", "x"], f"hybrid {verb} needs a {what} first: {', '.join(choices)}"),
    ):
        with pytest.raises(UsageError) as refused:
            main(argv)
        assert str(refused.value) == message


@dataclass(frozen=True)
class Options:
    """Options of a verb."""

    number: int
    """How many."""
    name: str = "x"
    """What it is called."""


def test_options_are_parsed_or_refused_in_one_line() -> None:
    assert cli.parse(Options, ["--number", "3"], "hybrid x", "Text.") == Options(3)
    assert cli.parse(Options, ["--name", "y"], "hybrid x", "Text.", Options(7)) == Options(7, "y")
    for argv, message in (
        ([], "--number is missing: usage: hybrid x --number INT [OPTIONS]"),
        (["--number"], "Missing value for argument '--number'. Expected 1 values."),
        (["--number", "many"], "Error parsing --number: invalid literal for int() with base 10: 'many'"),
        (["--numbr", "1"], "unknown option '--numbr': did you mean --number? Otherwise see `hybrid x --help`"),
        (["--number", "1", "--colour=red"], "unknown option '--colour': see `hybrid x --help`"),
        (["--number", "1", "many", "more"], "unexpected words: many more: see `hybrid x --help`"),
    ):
        with pytest.raises(UsageError) as caught:
            cli.parse(Options, argv, "hybrid x", "Text.")
        assert str(caught.value) == message
    with pytest.raises(UsageError) as caught:
        cli.parse(Positional, [], "hybrid x", "Text.")
    message = "STR and --one.number are missing: usage: hybrid x STR --one.number INT [OPTIONS]"
    assert str(caught.value) in (message, message.replace("STR", "WORD"))
    with pytest.raises(UsageError) as caught:
        cli.parse(Positional, ["w", "--nmber", "3"], "hybrid x", "Text.")
    assert str(caught.value).startswith("unknown option '--nmber': did you mean --one.number?")


@dataclass(frozen=True)
class Positional:
    """Options after a word."""

    word: tyro.conf.Positional[str]
    """The word."""
    one: Options
    """More."""


@dataclass(frozen=True)
class Checked:
    """Options."""

    resources: Resources = field(default_factory=Resources)
    """More."""


def test_what_options_say_themselves_is_said_as_it_is() -> None:
    with pytest.raises(UsageError, match=r"^`resources\.threads` is -2: it must be at least 0$"):
        cli.parse(Checked, ["--resources.threads", "-2"], "hybrid x", "Text.")
    with pytest.raises(UsageError, match=r"Error parsing --resources\.threads: invalid literal for int\(\) .* 'x'"):
        cli.parse(Checked, ["--resources.threads", "x"], "hybrid x", "Text.")


@dataclass(frozen=True)
class Several:
    """Options."""

    words: tuple[str, ...] = ()
    """Some words."""
    one: Options = field(default_factory=lambda: Options(1))
    """More."""


def test_an_option_of_several_values_that_stands_there_twice_is_refused() -> None:
    assert cli.parse(Several, ["--words", "a", "b"], "hybrid x", "Text.") == Several(("a", "b"))
    with pytest.raises(UsageError) as caught:
        cli.parse(Several, ["--words", "a", "--words", "b"], "hybrid x", "Text.")
    assert str(caught.value) == "--words stands there 2 times, of which the last would count: say --words A B"
    twice = cli.parse(Several, ["--one.number", "2", "--one.number", "3"], "hybrid x", "Text.")
    assert twice.one.number == 3, "the last one counts, as a script's defaults are overridden"


def test_peek_finds_an_option_before_the_others_are_known() -> None:
    assert cli.peek(["captions", "--model", "a", "--ds", "x"], "--model") == "a"
    assert cli.peek(["--model=b"], "--model") == "b"
    assert cli.peek(["--models", "c", "--model.hidden-size", "3"], "--model") is None
    assert cli.peek(["--model"], "--model") is None
    assert json.dumps(cli.peek([], "--model")) == "null"


# ---- fields and flags --------------------------------------------------------------------------------------------
def flags_of(kind: Any, prefix: str = "") -> set[str]:
    """The fields of an options class as pipelines name them, such as `limits.max_bytes`."""
    found: set[str] = set()
    for name, hint in get_type_hints(kind, include_extras=True).items():
        flat = FLAT in getattr(hint, "__metadata__", ())
        inner = next((one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one)), None)
        found |= {f"{prefix}{name}"} if inner is None else flags_of(inner, prefix if flat else f"{prefix}{name}.")
    return found


def every_flag() -> set[str]:
    found: set[str] = set()
    for verb in cli.VERBS:
        module = importlib.import_module(f"jobs.{verb}")
        for name, kind in vars(module).items():
            is_own = is_dataclass(kind) and kind.__module__ == module.__name__
            if is_own and (name.endswith("Options") or verb == "prepare"):
                found |= flags_of(kind)
    for hybrid in HYBRIDS.values():  # what `hybrid train` has for each of them
        found |= {f"model.{field.name}" for field in fields(hybrid.Config)}
    return found


def messages() -> list[tuple[str, str]]:
    """Texts of pipelines and hybrid_models, f-strings with `{}` for what is filled in, without docstrings."""
    found = []
    for package in ("pipelines", "hybrid_models"):
        for path in sorted((tiny.ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | parts:
                    text = node.value
                else:
                    continue
                found.append((f"{path.name}:{node.lineno}", text))
    assert len(found) > 1000
    return found


def test_pipelines_name_fields_that_are_flags() -> None:
    known, named = every_flag(), set()
    for place, text in messages():
        assert not re.search(r"(?<![-`\w])--[a-z]", re.sub(r"`hybrid [^`]*`", "", text)), (
            f"{place} names a flag: {text}"
        )
        for name in cli.FIELD.findall(text):
            named.add(name)
            assert name in known, f"{place} names {name}, which no verb has"
    assert {"max_error_fraction", "retain_hours", "train.learning_rate", "num_workers", "as_of", "tables"} <= named


def test_the_command_line_names_flags() -> None:
    said = "5 of 9 are bad, more than `max_error_fraction` 0.05: mend `train.batch_size`; `hybrid tables` lists `x y`"
    assert cli.with_flags(said) == (
        "5 of 9 are bad, more than --max-error-fraction 0.05: mend --train.batch-size; `hybrid tables` lists `x y`"
    )
    assert cli.outcome(UsageError("no variable 'a\nb\x1b[31m'")) == (cli.USAGE, "no variable 'a b\\u001b[31m'")
    assert cli.outcome(UsageError("use another `name`")) == (cli.USAGE, "use another --name")
    assert cli.outcome(RefusedError("raise `max_error_fraction`")) == (cli.REFUSED, "raise --max-error-fraction")
    wrapped = RuntimeError("x")
    wrapped.__cause__ = FloatingPointError("lower `train.learning_rate`")
    assert cli.outcome(wrapped)[1].startswith("failed: FloatingPointError: lower --train.learning-rate")
    assert cli.outcome(OSError("`num_cpus` of a library"))[1].startswith("failed: OSError: `num_cpus` of a library")


@pytest.mark.parametrize("words", [["tables"], ["tables", "tidy"], ["query", "SELECT 1"]])
def test_who_asks_the_tables_does_not_wait_for_torch_ray_and_mlflow(words: list[str], tmp_path: Path) -> None:
    told = f"""
import contextlib, sys
from jobs.command import cli
with contextlib.suppress(SystemExit):
    cli.choose({[*words, "--tables", str(tmp_path)]})
print(*sorted({{"torch", "ray", "mlflow", "pandas"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert done.stderr.startswith(f"hybrid: no tables at {tmp_path}: ")
