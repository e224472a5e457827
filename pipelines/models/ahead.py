"""What a thread makes ahead of whoever needs it, so that a device that computes does not wait for the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def made_ahead(make: Callable[[K], T], things: Iterable[K], ahead: int) -> Iterator[tuple[K, Callable[[], T]]]:
    """Each thing in order, with a call that gives, or raises, what `make` makes of it.

    Args:
        make: called once for each, in order; again by the call, if it failed beside other work, which may have had the
            memory that it needed.
        things: what it is called with.
        ahead: how many later ones a thread makes meanwhile; with 0 the call itself makes it.
    """
    if not ahead:
        yield from ((thing, partial(make, thing)) for thing in things)
        return

    def taken(thing: K, made: Future[T]) -> T:
        return make(thing) if made.exception() is not None else made.result()

    coming = iter(things)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque((thing, thread.submit(make, thing)) for thing in islice(coming, ahead))
        while waiting:
            thing, made = waiting.popleft()
            waiting.extend((later, thread.submit(make, later)) for later in islice(coming, 1))
            yield thing, partial(taken, thing, made)
