import pytest
import torch
from torch import nn

from hybrid_models.layers.sketch import sketched


def net() -> nn.Module:
    layers = nn.ModuleList([nn.Linear(3, 4), nn.Conv2d(2, 3, 3), nn.LSTM(3, 5), nn.Embedding(7, 2), nn.BatchNorm2d(2)])
    drawn = nn.Parameter(torch.empty(2, 3).normal_())
    for draw in (nn.init.xavier_normal_, nn.init.orthogonal_, nn.init.trunc_normal_, nn.init.normal_):
        assert draw(drawn) is drawn  # type: ignore[operator]
    assert nn.init.uniform_(tensor=drawn) is drawn
    layers.register_parameter("drawn", drawn)
    return layers


def test_a_sketch_has_the_shapes_of_its_net_and_draws_nothing() -> None:
    expected = {name: tensor.shape for name, tensor in net().state_dict().items()}
    before = torch.get_rng_state()
    with sketched():
        found = net().state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == expected
    assert {tensor.device.type for tensor in found.values()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_made_afterwards_has_values() -> None:
    with pytest.raises(ZeroDivisionError), sketched():
        raise ZeroDivisionError
    assert nn.Linear(3, 4).weight.std() > 0
