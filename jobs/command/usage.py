"""What is wrong with a command line, in one line: an option that is missing, a word that nobody knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

FRAME = re.compile(r"\x1b\[[0-9;]*m|[│╭╮╰╯]")
OWN_MESSAGE = re.compile(r"Error parsing [^:-][^:]*: (.*)")
"""An error that options raise themselves, as tyro frames it."""


def unknown(what: str, word: str, choices: Sequence[str], otherwise: str = "") -> str:
    """Names the choice that looks most like an unknown word, or all of them."""
    by_tail = {_tail(choice): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.75)
    close += [by_tail[name] for name in difflib.get_close_matches(_tail(word), by_tail, n=1, cutoff=0.75)]
    if close:
        return f"unknown {what} '{word}': did you mean {close[0]}?{f' Otherwise {otherwise}' if otherwise else ''}"
    return f"unknown {what} '{word}': {otherwise or 'use ' + ', '.join(choices)}"


def _tail(option: str) -> str:
    """The last name of an option, as of `--train.batch-size`."""
    return option.rpartition(".")[2].lstrip("-").lower().replace("_", "-")


def flags(help_page: str) -> list[str]:
    """The options that a help page of tyro lists, such as `--train.epochs`."""
    return list(dict.fromkeys(re.findall(r"(?:^|│|  ) *(?:-h, )?(--[a-z][a-z0-9.-]*)", help_page, re.MULTILINE)))


def refusal(box: str, prog: str, known: Sequence[str]) -> str:
    """Says in one line what tyro refuses in a box of several.

    Args:
        box: tyro's error, unwrapped.
        prog: The verb, as `hybrid infer captions`.
        known: The verb's options.
    """
    lines = [line for line in FRAME.sub("", box).splitlines() if line.strip(" ─")]
    text = " ".join(line.strip() for line in lines[1:])
    see = f"see `{prog} --help`"
    if words := re.findall(r"Unrecognized options:\s+(.*?)(?: Perhaps you meant:| For full helptext|$)", text):
        strange = re.split(r",? ", words[0].strip())
        option = next((word.partition("=")[0] for word in strange if word.startswith("-")), None)
        return unknown("option", option, known, see) if option else f"unexpected words: {' '.join(strange)}: {see}"
    if "Missing from" in text:
        missing = [line.strip() for line in lines if re.match(r" {5}\S", line) and prog not in line]
        names = [option.split()[0] for option in missing]
        verb = "is" if len(names) == 1 else "are"
        return f"{' and '.join(names)} {verb} missing: usage: {prog} {' '.join(missing)} [OPTIONS]"
    message = re.split(r" (?:Argument helptext:|For full helptext)", text)[0]
    own = OWN_MESSAGE.fullmatch(message)
    return own[1] if own else message
