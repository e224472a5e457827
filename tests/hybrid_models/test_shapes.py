import pytest
import torch

from hybrid_models import shapes

CPU = torch.device("cpu")


def test_sizes_have_three_binary_digits():
    assert sorted({shapes.bucket(n) for n in range(65)}) == [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64,
    ]  # fmt: skip
    assert all(n <= shapes.bucket(n) <= 1.25 * n for n in range(1000))


def test_lengths_are_multiples_of_eight_where_shapes_count(monkeypatch):
    assert [shapes.width_on(CPU, n) for n in (1, 8, 9)] == [1, 8, 9]
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    assert [shapes.width_on(CPU, n) for n in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize(("shaped", "found"), [(False, [1, 2, 5]), (True, [0, 1, 2, 3, 4, 5])])
def test_places_that_would_have_to_be_asked_for_are_all_places(monkeypatch, shaped, found):
    monkeypatch.setattr(shapes, "has_shapes", lambda device: shaped)
    assert shapes.places(torch.tensor([[False, True, True], [False, False, True]])).tolist() == found
