"""`hybrid VERB …`: finds the verb, and turns every outcome into one JSON line or one error line and an exit code.

Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused, since too many samples were bad, shards of a
night were gone, a night could not be compacted, or a model was worse than the one in use or, the first, than its
baseline; 130 and 143 ended by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import re
import select
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, TypeVar

from jobs.command import usage
from jobs.command.errors import EndedError
from pipelines.cluster import logs
from pipelines.secrets import shown

T = TypeVar("T")
VERBS = {
    "demo": "make small data, train three hybrids, infer two nights, query them",
    "prepare": "turn a folder of your own, or a public data set, into shards",
    "train": "train a recipe on a Ray cluster and register the model",
    "evaluate": "judge a model on held-out shards, beside a baseline or another model",
    "models": "list the registered models",
    "promote": "make a model the champion, if it is not worse than the one in use",
    "infer": "run a model over shards into one night of a table",
    "nightly": "find a night's shards, infer with the champion, evaluate, report; missed nights, too",
    "query": "ask SQL about captions, nowcasts, actions and translations",
    "report": "write a page about a night, for the morning",
    "tables": "list the nights of the tables: rows, files, sizes; free space; bring a night back; fewer files; copies",
    "tidy": "free features, records and checkpoints that no run or model needs any more",
    "doctor": "check what is around a night: packages, the decoders' jail, stores, MLflow, Ray",
    "submit": "run a verb as a job on a Ray cluster: hybrid submit --address http://HEAD:8265 -- VERB ...",
}
DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
CODES = (FAILED, REFUSED, USAGE)
"""Of what went wrong, the one that counts most first: what failed may be started again."""
Main = Callable[[list[str]], dict[str, Any] | None]


SELDOM = 100_000
"""Objects between two looks for cycles: imports make many, which stay."""


def main() -> None:
    """The console script."""
    gc.set_threshold(SELDOM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        choose(sys.argv[1:])
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            _exit_now(ended.code)
        raise
    except BrokenPipeError:
        if not nobody_reads():
            raise
    finally:
        nobody_reads()
        gc.freeze()  # as it ends, Python looks for cycles in all that was imported: a quarter of a short command


def _exit_now(code: int) -> NoReturn:
    """Cleans up and ends the process without Python's finalisation, in which threads of C++ libraries that a signal
    has interrupted at work abort the process."""
    signal.alarm(0)  # by Ray's core, if it was about to start, see `connection.own_signals`
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def choose(argv: list[str]) -> None:
    """Runs the verb that comes first."""
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        sys.exit(DONE if argv else USAGE)
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"hybrid {version('hybrid-pipelines')}")
        sys.exit(DONE)
    verb, *rest = argv
    if verb not in VERBS:
        print(f"hybrid: {usage.unknown('verb', verb, list(VERBS))}", file=sys.stderr)
        sys.exit(USAGE)
    run(importlib.import_module(f"jobs.{verb}").main, rest)


def overview() -> str:
    """The text of `hybrid --help`."""
    lines = [f"  {verb:<9} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: hybrid VERB [options]      (hybrid VERB --help: a verb's options; hybrid --version)",
            "",
            "Train captioners, nowcasters, recognisers and translators on a Ray cluster, and run them every night over",
            "shards, photographs and clips in object storage into Parquet tables.",
            "",
            *lines,
            "",
            "Ray: RAY_ADDRESS names a running cluster, otherwise one is started on this machine.",
            "S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION. MLflow: MLFLOW_TRACKING_URI.",
            "Logs go to stderr (HYBRID_LOG_FORMAT=json: as JSON); the last line on stdout is the job's summary, JSON.",
            "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused: too many bad samples, shards gone, a worse model;",
            "130 and 143 ended by SIGINT and SIGTERM.",
        ]
    )


def run(verb: Main, argv: list[str]) -> None:
    """Runs a verb, prints its summary, and exits with the code that its outcome has."""
    logs.configure()
    code, message = DONE, ""
    try:
        check_words(argv)
        summarise(verb(argv))
    except KeyboardInterrupt:
        code, message = INTERRUPTED, f"interrupted; {AGAIN}"
    except SystemExit as ended:
        if not ended.code:  # of a help text; of SIGTERM it is ours, or that of Ray's own handlers
            raise
        code, message = TERMINATED, f"terminated; {AGAIN}"
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and nobody_reads()):
            code, message = outcome(error)
            summarise(getattr(error, "summary", None))
            if traced(error) is not None:
                logging.error("traceback", exc_info=error)
    if message:
        print(f"hybrid: {shown(message)}", file=sys.stderr, flush=True)
    sys.exit(code)


AGAIN = "start the same command again, it goes on"
EMPTY = re.compile(r"--[a-z0-9._-]+=\s*", re.IGNORECASE)


def check_words(argv: Sequence[str]) -> None:
    """Refuses a word that is empty, as that of a variable which is not set: an empty address is one folder or another,
    an empty date all nights.

    Raises:
        UsageError: says where it stands.
    """
    from hybrid_models.errors import UsageError

    for before, word in zip(("", *argv), argv, strict=False):
        if not word.strip() or EMPTY.fullmatch(word):
            place = before if not word.strip() else word
            raise UsageError(f"a word of the command is empty{place and f', at {place}'}: is a variable not set?")


def nobody_reads() -> bool:
    """Whether who read stdout is gone, as of `hybrid query … | head`. What was to be done is done, then, and Python is
    not to complain of it as it ends."""
    try:
        place = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is none, or a test reads it
        return False
    poll = select.poll()
    poll.register(place, 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return gone


def summarise(summary: dict[str, Any] | None) -> None:
    """A job's summary as the last line on stdout."""
    if summary is not None:
        print(logs.escaped(json.dumps(summary, default=str, ensure_ascii=False)), flush=True)


def outcome(error: Exception) -> tuple[int, str]:
    """Exit code and one readable line for an error, which may quote a stranger's file."""
    code, message = _outcome(error)
    return code, logs.escaped(" ".join(message.splitlines()))


def _outcome(error: Exception) -> tuple[int, str]:
    from hybrid_models.errors import UsageError
    from pipelines.staging.checks import RefusedError
    from pipelines.storage import CredentialsError

    if isinstance(error, EndedError):
        return error.code, with_flags(str(error))
    if isinstance(inner := getattr(error, "cause", None), UsageError | RefusedError):
        error = inner  # of a task, whose own error has its class, too, and Ray's words
    if isinstance(error, UsageError):
        return USAGE, with_flags(str(error))
    if isinstance(error, RefusedError):
        return REFUSED, with_flags(str(error))
    where = "" if is_unforeseen(error) else " (HYBRID_TRACEBACK=1 shows where)"
    cause = root_cause(error)
    if isinstance(cause, CredentialsError):
        return USAGE, with_flags(str(cause))
    return FAILED, f"failed: {with_flags(described(cause)) if is_own(cause) else described(cause)}{where}"


FIELD = re.compile(r"`([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)`")


def with_flags(message: str) -> str:
    """A message in which the fields that pipelines name, as `max_error_fraction`, are the flags that set them."""
    return FIELD.sub(lambda match: "--" + match[1].replace("_", "-"), message)


def is_own(error: BaseException) -> bool:
    """Whether the message is the project's: a library's backquotes name no fields of ours."""
    return isinstance(error, FloatingPointError) or type(error).__module__.split(".")[0] in (
        "pipelines",
        "hybrid_models",
    )


UNFORESEEN = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""What a mistake in the program raises; what the world does to it comes as other errors."""


def is_unforeseen(error: Exception) -> bool:
    """Whether this is a mistake in the program, of which one line says too little."""
    from hybrid_models.errors import UsageError

    cause = root_cause(error)
    return isinstance(cause, UNFORESEEN) and not isinstance(cause, UsageError | FloatingPointError)


def traced(error: Exception) -> Exception | None:
    """The error, if its traceback is to be shown: nobody foresaw it, or HYBRID_TRACEBACK=1 asks for all."""
    return error if os.environ.get("HYBRID_TRACEBACK") == "1" or is_unforeseen(error) else None


def root_cause(error: BaseException) -> BaseException:
    """The innermost cause: Ray wraps a worker's error several times over. Our own errors tell theirs in their line."""
    from hybrid_models.errors import UsageError
    from pipelines.staging.checks import RefusedError
    from pipelines.storage import StorageError

    telling = StorageError | UsageError | RefusedError | EndedError

    cause: BaseException = error
    while True:
        inner = getattr(cause, "cause", None) or (None if isinstance(cause, telling) else cause.__cause__)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    for failure in getattr(cause, "worker_failures", {}).values():
        return root_cause(failure)
    return cause


def described(cause: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines and lines[0].startswith(("\x1b", "ray::", "Traceback")) else (lines or [""])[0]
    return f"{type(cause).__name__}: {text}"


def parse(kind: type[T], argv: Sequence[str], prog: str, description: str, default: T | None = None) -> T:
    """Options of a verb as a dataclass, by tyro.

    Raises:
        UsageError: what is wrong, in one line.
    """
    import tyro

    from hybrid_models.errors import UsageError

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), _unwrapped(argv):
            options: dict[str, Any] = {} if default is None else {"default": default}
            parsed: T = tyro.cli(kind, args=list(argv), prog=prog, description=description, **options)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        known = usage.flags(help_page(kind, prog, default))
        raise UsageError(usage.refusal(errors.getvalue(), prog, known)) from None
    flags = Counter(word.partition("=")[0] for word in argv if word.startswith("--"))
    for flag, count in flags.items():
        name = flag.rsplit(".", 1)[-1].lstrip("-").replace("-", "_")
        if count > 1 and name in _lists(parsed):
            raise UsageError(f"{flag} stands there {count} times, of which the last would count: say {flag} A B")
    return parsed


def _lists(options: Any) -> set[str]:
    """Names of the options that take several values."""
    names: set[str] = set()
    for field in fields(options):
        value = getattr(options, field.name)
        names |= {field.name} if isinstance(value, tuple) else _lists(value) if is_dataclass(value) else set()
    return names


@contextmanager
def _unwrapped(argv: Sequence[str]) -> Iterator[None]:
    """Error messages as wide as they are: half an address cannot be told from other text."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(argv):
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def help_page(kind: type[Any], prog: str, default: Any = None) -> str:
    """What `--help` of a verb prints."""
    import tyro

    page = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(page), _unwrapped([]):
        tyro.cli(kind, args=["--help"], prog=prog, **({} if default is None else {"default": default}))
    return page.getvalue()


def peek(argv: Sequence[str], option: str) -> str | None:
    """The value of one option, before the others can be parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value")
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        value: str | None = parser.parse_known_args(list(argv))[0].value
        return value
    return None


def positional(
    argv: Sequence[str], what: str, choices: Sequence[str] | Mapping[str, str], prog: str
) -> tuple[str, list[str]]:
    """The leading word of a verb's arguments, one of `choices` (a mapping has a help text of each), and the rest.

    Raises:
        UsageError: it is missing or unknown; lists the choices.
    """
    from hybrid_models.errors import UsageError

    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {prog} {what.upper()} [options]      ({prog} {what.upper()} --help shows the options)\n")
        texts = choices if isinstance(choices, Mapping) else dict.fromkeys(choices, "")
        width = max(map(len, choices)) + 4
        for choice, text in texts.items():
            line = f"  {choice:<{width - 2}}{' '.join(text.split())}".rstrip()
            print(textwrap.fill(line, 110, subsequent_indent=" " * width, break_on_hyphens=False))
        sys.exit(DONE)
    if not argv or argv[0].startswith("-"):
        raise UsageError(f"{prog} needs a {what} first: {', '.join(choices)}")
    if argv[0] not in choices:
        raise UsageError(usage.unknown(what, argv[0], list(choices)))
    return argv[0], list(argv[1:])


if __name__ == "__main__":
    main()
