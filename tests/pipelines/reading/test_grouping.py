"""Groups by the digits of a hash: each thing in one, and neither order nor neighbours decide which."""

import random
from collections.abc import Sequence

from pipelines.reading.grouping import DIGITS, Hashed, hashed, split


def address(name: str) -> str:
    return name.partition("#")[0]


def ten(things: Sequence[Hashed[str]]) -> bool:
    return len(things) <= 10


def groups(names: list[str]) -> dict[str, tuple[str, ...]]:
    found = list(split(hashed(names, address), address, ten))
    assert len({digits for digits, _ in found}) == len(found)
    return dict(found)


def test_things_have_digits_of_their_own_in_the_order_of_their_addresses() -> None:
    found = hashed(["b", "a#1", "a#2"], address)
    assert [name for _, name in found] == ["a#1", "a#2", "b"]
    assert len({digits for digits, _ in found}) == 3, "two at one address, too"
    assert all(len(digits) == DIGITS and set(digits) <= {"0", "1"} for digits, _ in found)
    assert found[1:] == [*hashed(["a#1", "a#2"], address)[1:], *hashed(["b"], address)], "whoever else is there"


def test_each_thing_is_in_one_small_group_whose_digits_it_has() -> None:
    names = [f"{number:05d}" for number in range(1000)]
    found = groups(random.Random(0).sample(names, len(names)))
    assert sorted(name for group in found.values() for name in group) == names
    assert found == groups(names), "in whatever order they come"
    assert all(list(group) == sorted(group) and 0 < len(group) <= 10 for group in found.values())
    digits = {name: each for each, name in hashed(names, address)}
    assert all(digits[name].startswith(each) for each, group in found.items() for name in group)
    assert 100 <= len(found) < 200, "filled by half and more"


def test_what_cannot_be_told_apart_stays_together() -> None:
    same = [("0" * DIGITS, f"{number}") for number in range(30)]
    ((digits, group),) = split(same, address, ten)
    assert (digits, len(group)) == ("0" * DIGITS, 30)
    assert groups([]) == {}
