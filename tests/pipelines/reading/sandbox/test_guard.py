import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from hybrid_models.inputs import Cut, Visual
from pipelines import storage
from pipelines.reading import rows as reading_rows
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.rows import READ
from pipelines.reading.sandbox import guard, process
from pipelines.reading.sandbox.guard import TRIES, guarded
from pipelines.reading.sandbox.process import Child, ChildDiedError
from pipelines.reading.sandbox.protocol import Task
from pipelines.reading.shards import Shard, list_shards
from tests import tiny
from tests.pipelines.hostile import AsItIs, CrashingCut, CrashingLimits, CrashingVisual, Forger, Hostile
from tests.pipelines.reading.media.test_video import film, steady
from tests.pipelines.reading.sandbox.made import ALWAYS, LIMITS, grouped, rows, shard


@pytest.mark.parametrize(
    ("trick", "error"),
    [
        ("crash", "InputCrashed: the process that worked on this row was killed by SIGSEGV (tried 2 times)"),
        ("leave", "InputCrashed: the process that worked on this row ended with code 3 (tried 2 times)"),
        ("spin", "InputHangs: this row needs more than max_seconds=1.5 (tried 2 times)"),
        ("deadlock", "InputHangs: this row needs more than max_seconds=1.5 (tried 2 times)"),
        (
            "babble",
            "InputCrashed: the process that worked on this row answered nonsense: Expecting value: line 1 column 1 "
            "(char 0) (tried 2 times)",
        ),
        ("devour", "MemoryLimit: this row needs more memory than max_memory allows (tried 2 times)"),
    ],
)
def test_a_poison_row_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: str, error: str
) -> None:
    _check_costs_only_itself(tmp_path, monkeypatch, trick, error)


@pytest.mark.parametrize(
    ("trick", "error"),
    [
        ("begin", "InputHangs: this row needs more than max_seconds=1.5"),
        ("ask and not read", "InputHangs: this row needs more than max_seconds=1.5"),
        ("ask backwards", "ReadsTooMuch: "),
        ("ask beyond", "InputCrashed: the process that worked on this row answered nonsense: "),
        ("nest", "InputCrashed: the process that worked on this row answered nonsense: "),
    ],
)
def test_a_child_that_was_taken_over_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: str, error: str
) -> None:
    """Whatever it says to its worker, or begins to, and whatever it asks for and does not take."""
    _check_costs_only_itself(tmp_path, monkeypatch, trick, error)


def _check_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: str, error: str) -> None:
    monkeypatch.setattr(process, "STALLED", 3)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.2)
    found = rows(shard(tmp_path, "x", trick, "y"))
    assert [row["index"] for row in found] == [0, 1, 2]
    assert [row["error"] for row in found][::2] == [None, None]
    assert found[1]["error"].startswith(error)
    assert found[1]["error"].endswith("(tried 2 times)")
    assert [row["text"] for row in found] == ["x", trick, "y"]


def test_each_of_several_poison_rows_has_its_own_tries(tmp_path: Path, retried: Counter[str]) -> None:
    found = rows(shard(tmp_path, "leave", "x", "leave"))
    assert [row["error"] is None for row in found] == [False, True, False]
    assert retried == {"decoder": 2}


def test_what_happens_once_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_JAIL", "off")  # the step writes a file
    found = rows(shard(tmp_path, "x", "crash", "y"), Hostile(once=str(tmp_path / "done")))
    assert [(row["text"], row["error"]) for row in found] == [("x", None), ("crash", None), ("y", None)]
    assert (tmp_path / "done").exists()
    assert TRIES == 2


def test_blocks_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    """Row 2048 is in the second block: the first one was handed over before the crash."""
    lines = ["x"] * reading_rows.BLOCK_ROWS + ["crash"] + ["y"] * 10
    found = rows(shard(tmp_path, *lines))
    assert [row["index"] for row in found] == list(range(len(lines)))
    assert [row["index"] for row in found if row["error"]] == [reading_rows.BLOCK_ROWS]
    assert found[0]["pid"] != found[-1]["pid"]


def test_a_step_may_give_fewer_rows_than_it_gets(tmp_path: Path) -> None:
    count = reading_rows.BLOCK_ROWS
    found = rows(shard(tmp_path, *["x", "left out"] * (count // 2), "crash", "y"))
    assert [row["index"] for row in found] == [*range(0, count, 2), count, count + 1]


def test_rows_that_are_not_wanted_are_not_made_and_the_child_goes_on(tmp_path: Path) -> None:
    """One that is left in the middle of a shard could not: its next shard would wait for another one."""

    def first(count: int, *lines: str) -> list[dict]:
        blocks = guarded(shard(tmp_path, *lines), ReadOptions(limits=LIMITS), ALWAYS, count)
        return [row for block in blocks for row in block.to_pylist()]

    size = reading_rows.BLOCK_ROWS
    found = first(3, "x", "y", "z", "crash", *["w"] * size)
    assert [(row["index"], row["text"], row["error"]) for row in found] == [
        (0, "x", None), (1, "y", None), (2, "z", None),
    ]  # fmt: skip
    for count in (size, size + 1):
        found += (longer := first(count, *["x"] * (size + 9)))
        assert [row["index"] for row in longer] == list(range(count))
    assert len({row["pid"] for row in found}) == 1
    (x, crashed) = first(2, "x", "crash", "y")
    assert (x["error"], crashed["index"]) == (None, 1)
    assert crashed["error"].startswith("InputCrashed")
    assert [row["text"] for row in first(9, "x", "y")] == ["x", "y"]


def test_a_row_that_cannot_be_read_ends_its_shard(tmp_path: Path) -> None:
    (block,) = guarded(shard(tmp_path, "x", "y", "z"), ReadOptions(limits=CrashingLimits()), ALWAYS)
    error = "InputCrashed: the process that worked on this row was killed by SIGSEGV (tried 2 times)"
    assert [(row["index"], row["error"], row["lost_rows"]) for row in block.to_pylist()] == [(0, error, 2)]


def test_a_shard_that_kills_whoever_counts_its_rows_has_a_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying:
        max_memory = 0
        spent = 0.0

        def run(self, task: Task, most: float) -> Iterator[None]:
            raise ChildDiedError("InputCrashed", "the process died", READ, 1, 0.1)

    monkeypatch.setattr(guard, "_child", lambda *_: Dying())
    (row,) = rows(shard(tmp_path, "x", "y"))
    assert (row["index"], row["error"], row["lost_rows"]) == (0, "InputCrashed: the process died (tried 2 times)", 1)


@pytest.mark.parametrize("trick", ["twice", "less"])
def test_other_columns_are_nonsense(tmp_path: Path, trick: str) -> None:
    """With which rows would be the child's to name, or not fit to others."""
    (row,) = rows(shard(tmp_path, trick))
    nonsense = "the process that worked on this row answered nonsense: a table with other columns"
    assert row["error"] == f"InputCrashed: {nonsense} (tried 2 times)"


def test_failing_rows_do_not_cost_a_shard_more_than_it_may(tmp_path: Path) -> None:
    limits = Limits(max_wasted_seconds=0.1)
    found = rows(shard(tmp_path, "x", "leave", "leave", *["y"] * 7), limits=limits)
    assert [row["index"] for row in found] == [0, 1]
    assert re.match(
        r"ShardGivenUp: its failing rows took \d+ s, more than max_wasted_seconds=0\.1; InputCrashed: ",
        found[1]["error"],
    )
    assert found[1]["lost_rows"] == 8


@pytest.fixture
def overspent(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Tasks that children are given; each one overspends its time while an entry is None in place of its task."""
    tasks, run = [], Child.run

    def overspend(child: Child, task: Task, most: float) -> Iterator[tuple[int, pa.Table]]:
        if None in tasks:
            tasks[tasks.index(None)] = task
            child.kill()
            child.spent = most + 1
            raise ChildDiedError("ShardTakesTooLong", "it takes too long", READ, 0, 0.1)
        tasks.append(task)
        yield from run(child, task, most)

    monkeypatch.setattr(Child, "run", overspend)
    return tasks


TOO_LONG = (
    "ShardTakesTooLong: more than 9.0 s of CPU (by default 3,600 and one for each 4,096 of its {} bytes); "
    "`limits.max_shard_seconds` allows more"
)


def test_a_shard_that_takes_too_long_ends_at_the_rows_that_are_done(tmp_path: Path, overspent: list[Task]) -> None:
    one, limits = replace(shard(tmp_path, "x", "y", "z"), first=1), Limits(max_shard_seconds=9)
    for times, lost in ((1, 1), (2, None)):
        overspent[:] = [None] * times
        (row,) = rows(one, limits=limits)
        assert (row["index"], row["last"], row["lost_rows"]) == (1, True, lost)
        assert row["error"] == TOO_LONG.format(one.size)
        assert len(overspent) == 2, "it is read again once, to be counted"


def test_objects_of_a_group_that_takes_too_long_are_error_rows(tmp_path: Path, overspent: list[Task]) -> None:
    one = replace(grouped(tmp_path, "x", "y", "z"), first=1)
    overspent[:] = [None]
    found = rows(one, limits=Limits(max_shard_seconds=9))
    assert [row["index"] for row in found] == [1, 2]
    assert {row["error"] for row in found} == {TOO_LONG.format(one.size)}


# ---- groups of lone objects --------------------------------------------------------------------------------------
def test_an_object_costs_its_own_row_only(tmp_path: Path) -> None:
    one = grouped(tmp_path, "x", "crash", "y", "z", "w")
    Path(one.members[2].uri).unlink()
    Path(one.members[3].uri).write_bytes(b"another one")
    found = rows(one)
    assert [row["text"] for row in found if row["error"] is None] == ["x", "w"]
    assert [row["error"] and row["error"].split(":")[0] for row in found] == [
        None, "InputCrashed", "ObjectGone", "ObjectChanged", None,
    ]  # fmt: skip
    assert {row["shard"] for row in found} == {f"{tmp_path}/@"}


def test_what_a_row_was_made_of_is_not_the_childs_to_say(tmp_path: Path) -> None:
    one = grouped(tmp_path, "x", "y")
    found = [row for block in guarded(one, ReadOptions(), Forger()) for row in block.to_pylist()]
    assert [row["object"] for row in found] == [member.uri for member in one.members]
    assert [row["media"] for row in found] == [b"photo 0", b"photo 1"]
    (row,) = [row for block in guarded(shard(tmp_path, "x"), ReadOptions(), Forger()) for row in block.to_pylist()]
    assert row["object"] is None


# ---- windows of clips -----------------------------------------------------------------------------------------------
WINDOWS = ReadOptions(visual=Visual(24, 32, 4), cut=Cut(1.0, 1.0))
SCHEMA_KEPT = ("index", "sample_id", "error", "last", "start_seconds", "end_seconds", "media")


def places(folder: Path) -> list[Shard]:
    """A clip that lies there alone, and a tar with a clip between two texts."""
    clip = film("mp4", steady(110))
    storage.write_bytes(str(folder / "in/a.mp4"), clip)
    members = [("0.txt", b"text"), ("1.mp4", clip), ("2.txt", b"text")]
    storage.write_bytes(str(folder / "in/b.tar"), tiny.tar(members))
    archive, alone = list_shards(str(folder / "in"), cut=True)
    return [alone, archive]


def windows(one: Shard, options: ReadOptions = WINDOWS) -> list[dict]:
    found = [row for block in guarded(one, options, AsItIs()) for row in block.to_pylist()]
    assert [row["index"] for row in found] == list(range(one.first, one.first + len(found)))
    assert [row["last"] for row in found] == [False] * (len(found) - 1) + [True]
    return [{name: row[name] for name in SCHEMA_KEPT} for row in found]


def test_a_window_that_kills_its_decoder_costs_itself(tmp_path: Path) -> None:
    deadly = replace(WINDOWS, visual=CrashingVisual(24, 32, 4, second=2.0))
    for one, bad in zip(places(tmp_path), (2, 3), strict=True):
        good, found = windows(one), windows(one, deadly)
        assert len(good) == len(found) == (5 if one.cut else 7)
        assert "InputCrashed" in found[bad]["error"]
        assert [row for row in found if row["index"] != bad] == [row for row in good if row["index"] != bad]
        assert (found[bad]["start_seconds"], found[bad]["end_seconds"]) == (2.0, 3.0)


def test_windows_and_objects_that_are_not_wanted_are_not_decoded(tmp_path: Path) -> None:
    deadly = replace(WINDOWS, visual=CrashingVisual(24, 32, 4, second=2.0))
    group = grouped(tmp_path, "x", "y", "z")
    for one, options, most in [*((clips, deadly, 2) for clips in places(tmp_path)), (group, ReadOptions(), 2)]:
        good = [row for block in guarded(one, options, AsItIs()) for row in block.to_pylist()]
        for first in (0, 1):
            blocks = guarded(replace(one, first=first), options, AsItIs(), most)
            found = [row for block in blocks for row in block.to_pylist()]
            assert [{**row, "last": False} for row in found] == good[first:most]
            assert [row["error"] for row in found] == [None] * (most - first)
        assert list(guarded(replace(one, first=2), options, AsItIs(), most)) == [], "there is none that is wanted"


def test_rows_that_are_done_are_not_looked_for_when_their_child_dies_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, count = shard(tmp_path, *["x"] * 9), 0
    for block in guarded(one, ReadOptions(limits=LIMITS), ALWAYS, 3):
        count += len(block)
        monkeypatch.setattr(Child, "_answer", lambda *args: (_ for _ in ()).throw(EOFError))
    assert count == 3


def test_a_window_that_cannot_be_read_ends_its_clip_and_nothing_else(tmp_path: Path) -> None:
    deadly = replace(WINDOWS, cut=CrashingCut(1.0, 1.0, number=3))
    alone, archive = places(tmp_path)
    good, found = windows(alone), windows(alone, deadly)
    assert [row["index"] for row in found] == [0, 1, 2, 3]
    assert [{**row, "last": False} for row in found[:3]] == good[:3]
    assert "InputCrashed" in found[3]["error"]
    assert (found[3]["sample_id"], found[3]["start_seconds"], found[3]["end_seconds"]) == ("a.mp4#t=3", 3.0, None)
    good, found = windows(archive), windows(archive, deadly)
    assert found[:4] == good[:4]
    assert "InputCrashed" in found[4]["error"]
    assert {**found[5], "index": 6} == good[6], "what comes after it in the archive is there"


def test_a_clip_that_cannot_be_read_ends_where_it_did_when_later_rows_are_read(tmp_path: Path) -> None:
    """Its death is its own window's, though rows after it are done: they keep their numbers; nothing is given up."""
    deadly = replace(WINDOWS, cut=CrashingCut(1.0, 1.0, number=3))
    _, archive = places(tmp_path)
    whole = windows(archive, deadly)
    assert len(whole) == 6
    assert windows(replace(archive, first=5), deadly) == whole[5:]
    swift = replace(deadly, limits=Limits(max_wasted_seconds=1e-9))
    assert windows(replace(archive, first=5), swift) == whole[5:]


def test_a_clip_goes_on_at_a_window(tmp_path: Path) -> None:
    for one in places(tmp_path):
        good = windows(one)
        assert windows(replace(one, first=3)) == good[3:]


def test_what_happens_to_a_lone_clip_is_its_own_rows_trouble(tmp_path: Path) -> None:
    alone, _ = places(tmp_path)
    place = Path(alone.members[0].uri)
    place.write_bytes(film("mp4", steady(90)))
    (row,) = windows(alone)
    assert row["error"].startswith(f"ObjectChanged: {place} was replaced after it had been listed")
    place.unlink()
    (row,) = windows(alone)
    assert row["error"] == f"ObjectGone: {place} was removed after it had been listed"


def test_failing_objects_do_not_cost_a_group_more_than_it_may(tmp_path: Path) -> None:
    found = rows(grouped(tmp_path, "x", "leave", "leave", *["y"] * 4), limits=Limits(max_wasted_seconds=0.1))
    assert len(found) == 7
    assert found[0]["error"] is None
    assert all(row["error"].startswith("GroupGivenUp: its failing rows took ") for row in found[1:])


def test_the_store_and_the_machine_are_not_the_inputs_fault(tmp_path: Path) -> None:
    one = shard(tmp_path, "import")
    with pytest.raises(RuntimeError, match="no module named 'codec'"):
        rows(one)
    Path(one.uri).unlink()
    with pytest.raises(storage.StorageError, match="was removed after it had been listed"):
        rows(one)
