import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.models.suspects import Note, Rows, halve
from tests import tiny

MODEL = """
import os, sys
from pathlib import Path
from pipelines.models.suspects import Note, halve

bad, innocent = {bad}, Path({innocent!r})
def work(rows):
    if not innocent.exists():  # somebody else kills it
        innocent.touch()
        os._exit(9)
    if bad & set(rows):
        os._exit(9)
    return [10 * row for row in rows]

with Note(Path(sys.argv[1])) as note:
    print([found for batch in ((0, 1, 2, 3, 4), (5, 6)) for found in halve(batch, work, note)])
"""


DEVICE = """
import os, sys
from pathlib import Path
from pipelines.models.suspects import Note, halve

dead = False
def work(rows):
    global dead
    dead = dead or 3 in rows
    if dead:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return [10 * row for row in rows]

def failed():
    if dead:
        os._exit(9)

with Note(Path(sys.argv[1])) as note:
    print([found for batch in ((0, 1, 2, 3, 4), (5, 6)) for found in halve(batch, work, note, failed)])
"""
"""A device that fails all that comes after, as its process does not."""


def work(rows: Rows) -> list[int]:
    if 3 in rows:
        raise MemoryError("no room\nfor it")
    return [10 * row for row in rows]


def test_a_failing_batch_is_halved_down_to_the_row() -> None:
    with Note(None) as note:
        assert list(halve((0, 1, 2, 3, 4), work, note)) == [
            ((0, 1), [0, 10]),
            ((2,), [20]),
            ((3,), "PredictionError: MemoryError: no room"),
            ((4,), [40]),
        ]
        assert note.retried == 6, "four halves, two of which are a row, and the two of the last one"
        assert list(halve((3,), work, note)) == [((3,), "PredictionError: MemoryError: no room")]
        assert list(halve((1, 2), work, note)) == [((1, 2), [10, 20])]
        assert note.retried == 6, "first tries of others"


def test_a_note_of_work_that_ended_accuses_nobody(tmp_path: Path) -> None:
    path = tmp_path / "notes" / "one"
    with Note(path) as note:
        assert not note.inherited
        list(halve((0, 3), work, note))
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()
    path.write_text("[0, 1]\nend\n[2, 3]\n[2, 3]\nend\n[4, 5]\n")
    with Note(path) as note:
        assert dict(note.deaths) == {(2, 3): 1, (4, 5): 1}
        assert note.inherited
        assert list(halve((4, 5), work, note)) == [((4, 5), [40, 50])]
        assert note.retried == 1, "as it was"


@pytest.mark.parametrize(("bad", "deaths"), [({3}, 1 + 1 + 1 + 1 + 2), (set(), 1)])
def test_the_halving_goes_on_when_the_process_dies(tmp_path: Path, bad: set[int], deaths: int) -> None:
    code = MODEL.format(bad=bad or "set()", innocent=str(tmp_path / "innocent"))
    starts, said = started_until_it_ends(code, tmp_path / "note")
    assert starts == deaths
    found = [(0, 1), (2,), (3,), (4,), (5, 6)] if bad else [(0, 1, 2, 3, 4), (5, 6)]
    assert said == str([(rows, DIED if set(rows) <= bad else [10 * row for row in rows]) for rows in found])


def test_the_halving_goes_on_when_a_device_fails_for_good(tmp_path: Path) -> None:
    """The process ends itself then, and has died of the rows that it worked on: another one would fail on them, too."""
    starts, said = started_until_it_ends(DEVICE, tmp_path / "note")
    assert starts == 2 + 1 + 1 + 2, "the batch, its half, the half of that, the row"
    expected = [
        (rows, DIED if rows == (3,) else [10 * row for row in rows]) for rows in [(0, 1), (2,), (3,), (4,), (5, 6)]
    ]
    assert said == str(expected)


DIED = "PredictionCrashed: the process that predicted this row died (2 times)"


def started_until_it_ends(code: str, note: Path) -> tuple[int, str]:
    """How often a program died before it did not, and what it printed then."""
    for starts in range(20):
        done = subprocess.run(
            [sys.executable, "-c", code, str(note)],
            env={**os.environ, "PYTHONPATH": str(tiny.ROOT)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode == 0:
            assert not note.exists()
            return starts, done.stdout.strip()
    raise AssertionError(done.stderr)


def test_without_a_place_for_its_note_a_batch_is_predicted_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file where a folder should be")
    with Note(tmp_path / "notes" / "one") as note:
        assert list(halve((1, 2), work, note)) == [((1, 2), [10, 20])]
