"""Reading and decoding in a process of their own: an input that crashes it, hangs in it or eats its memory costs a row.

Native decoders (JPEG, H.264, HDF5, Parquet) run on bytes from strangers. A worker hands its shards to a child process,
which streams samples back. When the child dies, a note in shared memory tells at which row. That row is tried again; if
it fails `TRIES` times it becomes an error row, and the rest of the shard goes on.

The child is locked in (`jail`), and asks its worker for bytes (`serving`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from pipelines.cluster import counters
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.rows import DEMUX, READ, last_row, unwatched
from pipelines.reading.sandbox import jail
from pipelines.reading.sandbox.process import Child, ChildDiedError
from pipelines.reading.sandbox.protocol import STARTING, Poison, Step, Task
from pipelines.reading.shards import Shard

TRIES = 2


def guarded(
    shard: Shard, options: ReadOptions, step: Step, until: int | None = None, jail_mode: str = "off"
) -> Iterator[pa.Table]:
    """What `step` makes of a shard's rows, in a child process; whatever happens to it, no row is lost or repeated.

    Args:
        shard: what is read.
        options: how.
        step: what is made of its rows.
        until: the first row that is not wanted any more. Who leaves the loop instead ends the child, and the next
            shard waits half a second for another one.
        jail_mode: what the command asks for on another machine; this machine's HYBRID_JAIL counts where it is stricter.

    Raises:
        UsageError: all of the jail is required, and this machine lacks a part of it.
        StorageError: the store failed; worth a new start.
        RuntimeError: the machine failed: a library is missing, or no child can be started.
    """
    mode = jail.wanted_mode(jail_mode)
    poison, failures, done, wasted = Poison(), Counter[tuple[str, int]](), shard.first, 0.0
    seconds = left = options.limits.shard_seconds(shard.size)
    members = 0 if shard.cut else len(shard.members)
    while until is None or done < until:
        child = _child(options.limits.max_memory, mode)
        try:
            for stop, block in child.run(Task(shard, options, step, done, poison, until), left):
                yield _own(block, shard)
                done = stop
        except ChildDiedError as death:
            wasted += death.seconds
            left -= child.spent
            if left <= 0:
                if done in poison.read and not members:
                    yield _last(step, shard, done, poison.read[done], 0)
                    return
                reason = options.limits.too_long(shard.size)
                poison.read.update({i: reason for i in range(done, max(done + 1, members)) if i not in poison.read})
                left = math.inf if members else seconds  # only to count the rows that are lost
                continue
            # A clip that cannot be read ends where it did when its rows were done: before them, perhaps.
            row = death.row if death.row == STARTING or death.phase == DEMUX else max(death.row, done)
            failures[death.phase, row] += 1
            if failures[death.phase, row] < TRIES:
                counters.count_retries("decoder")
            else:
                if row == STARTING:
                    raise RuntimeError(f"cannot read {shard.uri}: {death} before it began") from None
                if row in poison.uncounted:  # whatever it dies of, it is not to be read again
                    yield _last(step, shard, done, poison.read[row], row - done)
                    return
                _give_up(poison, death, row, wasted, options.limits, members, done)
            continue
        except BaseException:
            child.kill()
            raise
        _idle.append(child)
        return


def _give_up(
    poison: Poison, death: ChildDiedError, row: int, wasted: float, limits: Limits, members: int, done: int
) -> None:
    """A row becomes an error; where rows like it have cost too much, nothing after it is read: of a group's `members`
    each is an error, then."""
    reason = f"{death.kind}: {death} (tried {TRIES} times)"
    if members and wasted > limits.max_wasted_seconds:
        given_up = f"GroupGivenUp: {_given_up(wasted, limits)}; {reason}"
        poison.read.update({index: given_up for index in range(row, members) if index not in poison.read})
        return
    if row in poison.read:
        poison.uncounted.add(row)
    elif death.phase == READ:
        poison.read[row] = reason
    elif wasted > limits.max_wasted_seconds and row >= done:
        poison.read[row] = f"ShardGivenUp: {_given_up(wasted, limits)}; {reason}"
    else:
        (poison.demux if death.phase == DEMUX else poison.decode)[row] = reason


def _given_up(wasted: float, limits: Limits) -> str:
    return f"its failing rows took {wasted:.0f} s, more than max_wasted_seconds={limits.max_wasted_seconds:g}"


def _last(step: Step, shard: Shard, done: int, reason: str, lost: int) -> pa.Table:
    """The row that ends a shard which no child is to read again."""
    return _own(step(last_row(shard, done, reason, lost), unwatched), shard)


def _own(block: pa.Table, shard: Shard) -> pa.Table:
    """Rows as this shard's and its objects', whatever the child calls them."""
    if "shard" not in block.column_names:
        return block
    sources = [shard.source(index) for index in block["index"].to_pylist()]
    own = {
        "shard": pa.repeat(shard.uri, len(block)),
        "object": pa.array(sources, pa.string()),
    }
    for name, values in own.items():
        if (column := block.schema.get_field_index(name)) >= 0:
            block = block.set_column(column, block.schema.field(column), values)
    return block


_idle: list[Child] = []  # a worker process keeps its child from shard to shard: starting one takes half a second


def _child(max_memory: int, mode: str) -> Child:
    """One that waits, or a new one; a bound on memory cannot be raised again, nor a jail be left."""
    fits = next((child for child in _idle if (child.max_memory, child.mode) == (max_memory, mode)), None)
    if fits is None:
        return Child(max_memory, mode)
    _idle.remove(fits)
    return fits
