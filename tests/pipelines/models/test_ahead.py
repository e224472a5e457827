import threading

import pytest

from pipelines.models.ahead import made_ahead


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_each_is_made_once_in_order(ahead: int) -> None:
    calls: list[int] = []

    def make(number: int) -> int:
        calls.append(number)
        return 10 * number

    assert [(number, made()) for number, made in made_ahead(make, range(5), ahead)] == [
        (number, 10 * number) for number in range(5)
    ]
    assert calls == list(range(5))
    assert list(made_ahead(make, [], ahead)) == []


def test_later_ones_are_made_while_an_earlier_one_is_worked_on() -> None:
    begun = [threading.Event() for _ in range(5)]

    def make(number: int) -> int:
        begun[number].set()
        return number

    for number, made in made_ahead(make, range(5), 2):
        assert made() == number
        assert all(event.wait(60) for event in begun[number : number + 3])
        assert not any(event.is_set() for event in begun[number + 3 :])


def test_nothing_is_made_before_it_is_asked_for() -> None:
    calls: list[int] = []
    for number, made in made_ahead(calls.append, range(3), 0):
        assert len(calls) == number
        made()


def test_what_failed_beside_other_work_is_made_again_by_its_call() -> None:
    """A device's memory may have been another batch's."""
    calls: list[int] = []

    def make(number: int) -> int:
        calls.append(number)
        if calls.count(number) == 1 and number == 1:
            raise MemoryError
        return number

    assert [made() for _, made in made_ahead(make, range(3), 1)] == [0, 1, 2]
    assert sorted(calls) == [0, 1, 1, 2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_by_its_own_call(ahead: int) -> None:
    told: list[object] = []
    for _, made in made_ahead(lambda number: 6 // number, (1, 0, 3), ahead):
        try:
            told.append(made())
        except ZeroDivisionError:
            told.append("none")
    assert told == [6, "none", 2]
