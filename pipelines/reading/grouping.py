"""Things with addresses in groups that do not depend on the order in which they come, or on what lies in other groups.

A group is found by the digits of a hash of its things' addresses, so many that it is small enough: a thing that comes,
goes or changes is a matter of its own group, and of nothing else.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
Hashed = tuple[str, T]
"""`DIGITS` binary digits, and whose they are."""
DIGITS = 64
"""Of a hash; things that share them all are at one address."""


def hashed(things: Iterable[T], address: Callable[[T], str]) -> list[Hashed[T]]:
    """Things in the order of their addresses, with their digits; of two at one address each has its own."""
    seen: Counter[str] = Counter()
    found: list[Hashed[T]] = []
    for thing in sorted(things, key=address):
        uri = address(thing)
        found.append((_digits(f"{uri}\0{seen[uri]}"), thing))
        seen[uri] += 1
    return found


def _digits(text: str) -> str:
    return f"{int.from_bytes(hashlib.sha256(text.encode()).digest()[: DIGITS // 8], 'big'):0{DIGITS}b}"


def split(
    things: Iterable[Hashed[T]], address: Callable[[T], str], small: Callable[[Sequence[Hashed[T]]], bool]
) -> Iterator[tuple[str, tuple[T, ...]]]:
    """Groups of things: the digits that they share, and the things in the order of their addresses."""
    return _split(sorted(things, key=_first), "", address, small)


def _first(thing: Hashed[T]) -> str:
    return thing[0]


def _split(
    things: Sequence[Hashed[T]], digits: str, address: Callable[[T], str], small: Callable[[Sequence[Hashed[T]]], bool]
) -> Iterator[tuple[str, tuple[T, ...]]]:
    """Of things sorted by digits, all of which begin with these."""
    if small(things) or len(digits) == DIGITS:
        if things:
            yield digits, tuple(sorted((thing for _, thing in things), key=address))
        return
    cut = bisect_left(things, digits + "1", key=_first)
    yield from _split(things[:cut], digits + "0", address, small)
    yield from _split(things[cut:], digits + "1", address, small)
