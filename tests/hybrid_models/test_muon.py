"""AdamW, and Muon beside the equations and torch's own for matrices."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hybrid_models.muon import Muon, matrices_of, orthogonal
from pipelines.training import checkpoints
from pipelines.training.checkpoints import Progress
from pipelines.training.loop import make_optimizer, step
from pipelines.training.recipe import TrainConfig
from tests import tiny

UNSCALED = torch.amp.GradScaler("cpu", enabled=False)
MUON = TrainConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.1)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 on every machine."""
    monkeypatch.setattr("hybrid_models.contract.half_type", lambda device: None)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quintic(values: Tensor) -> Tensor:
    """Five times Jordan's polynomial, of numbers."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


# ---- orthogonal ----------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 5)])
def test_a_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = random(*shape).double()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    torch.testing.assert_close(found, u @ torch.diag(quintic(s / s.norm())) @ vt, atol=1e-9, rtol=1e-9)
    assert torch.equal(orthogonal(1000 * matrix.float()), orthogonal(1000 * matrix.float()))
    torch.testing.assert_close(orthogonal(1000 * matrix), found)


@pytest.mark.parametrize("shape", [(64, 200), (200, 64)])
def test_singular_values_come_to_about_one_also_in_numbers_of_two_bytes(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = random(*shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    for kind in (None, torch.bfloat16):
        monkeypatch.setattr("hybrid_models.contract.half_type", lambda device, kind=kind: kind)
        found = orthogonal(matrix)
        assert found.dtype == torch.float32
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.5
        assert values.max() < 1.5
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        alike = ((u @ vt) * found).sum() / math.sqrt(min(shape)) / found.norm()
        assert alike > 0.95


def test_a_matrix_of_zeros_stays() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("size", [1e-12, 1e-20, 1e-25, 1e-30, 1e-40])
def test_next_to_nothing_comes_to_less_than_a_direction(size: float) -> None:
    """Whose squares float32 does not hold."""
    assert orthogonal(size * random(6, 20)).norm() < 0.1


def test_a_matrix_whose_gradients_have_ended_comes_to_rest() -> None:
    layer = nn.Linear(20, 16)
    made = make_optimizer(layer, replace(MUON, weight_decay=0.0))
    places = []
    for number in range(2000):
        layer.weight.grad = 0.01 * random(16, 20) if number == 0 else torch.zeros(16, 20)
        layer.bias.grad = torch.zeros(16)
        step(layer, made, 0.01, 1.0, UNSCALED)
        places.append(layer.weight.detach().clone())
    assert torch.equal(places[-1], places[1000])
    assert not torch.equal(places[50], places[0])


# ---- which weights -------------------------------------------------------------------------------------------------
class Net(nn.Module):
    """All kinds of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.words.weight
        self.recurrent = nn.LSTM(4, 3)
        self.kernel = nn.Conv2d(3, 4, 3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_matrices_and_kernels_are_muons_embeddings_and_biases_are_not() -> None:
    net = Net()
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in matrices_of(net)} == {
        "recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "kernel.weight",
    }  # fmt: skip
    made = make_optimizer(net, MUON)
    assert isinstance(made, Muon)
    stepped = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(stepped) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_adamw_steps_all_that_learn_in_one_group() -> None:
    net = Net()
    made = make_optimizer(net, TrainConfig(learning_rate=0.5, weight_decay=0.25))
    assert type(made) is torch.optim.AdamW
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.5, 0.25, True)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]


# ---- steps ---------------------------------------------------------------------------------------------------------
RATES = (0.01, 0.02, 0.005)


def steps_of(kernel: Tensor, rates: tuple[float, ...], grads: list[Tensor]) -> Tensor:
    """The equations, by singular values in float64."""
    weight, mean = kernel.detach().double().flatten(1), torch.zeros_like(kernel).double().flatten(1)
    for rate, grad in zip(rates, grads, strict=True):
        flat = grad.double().flatten(1)
        mean = 0.95 * mean + 0.05 * flat
        u, s, vt = torch.linalg.svd(0.05 * flat + 0.95 * mean, full_matrices=False)
        direction = u @ torch.diag(quintic(s / s.norm())) @ vt
        weight = (1 - rate * 0.1) * weight - rate * 0.2 * math.sqrt(max(weight.shape)) * direction
    return weight.view_as(kernel).float()


@pytest.mark.usefixtures("exact")
def test_steps_are_those_of_the_equations_of_torchs_muon_and_for_the_rest_of_adamw() -> None:
    """Torch's Muon knows matrices alone, and iterates in bfloat16 everywhere."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 30))
    theirs = copy.deepcopy(ours)
    kernel = nn.Parameter(theirs[0].weight.detach().flatten(1))
    made = make_optimizer(ours, MUON)
    muon = torch.optim.Muon([kernel, theirs[1].weight], lr=1.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([theirs[0].bias, theirs[1].bias], lr=1.0, weight_decay=0.1)
    start, seen = copy.deepcopy(ours), []
    for number, rate in enumerate(RATES):
        grads = [random(*p.shape, seed=10 * number + i) for i, p in enumerate(ours.parameters())]
        norm = math.sqrt(sum(grad.square().sum().item() for grad in grads))
        for p, grad in zip(ours.parameters(), grads, strict=True):
            p.grad = grad.clone()
        assert step(ours, made, rate, 1.0, UNSCALED).item() == pytest.approx(norm)
        seen.append([grad / norm for grad in grads])
        flat, theirs[0].bias.grad, theirs[1].weight.grad, theirs[1].bias.grad = seen[-1]
        kernel.grad = flat.flatten(1)
        for each in (muon, adam):
            each.param_groups[0]["lr"] = rate
            each.step()
    for i in (0, 1):
        torch.testing.assert_close(ours[i].bias, theirs[i].bias)
        wanted = steps_of(start[i].weight, RATES, [grads[2 * i] for grads in seen])
        torch.testing.assert_close(ours[i].weight.detach(), wanted, atol=1e-5, rtol=1e-4)
        moved = (wanted - start[i].weight).norm()
        of_torch = (kernel.view_as(start[0].weight), theirs[1].weight)[i]
        assert (ours[i].weight - of_torch).norm() < 0.05 * moved
        length = moved.item() / math.sqrt(wanted.numel())
        assert length == pytest.approx(0.2 * sum(RATES), rel=0.4), "as far as AdamW, by its rate"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_where_gradients_are_not_finite_nothing_changes(value: float) -> None:
    layer = nn.Linear(3, 2)
    made = make_optimizer(layer, MUON)
    for number in range(3):
        before = copy.deepcopy((layer.state_dict(), made.state_dict()["state"]))
        for p in layer.parameters():
            p.grad = random(*p.shape, seed=number)
        if number == 1:
            layer.weight.grad[0, 0] = value
        step(layer, made, 0.1, 1.0, UNSCALED)
        after = layer.state_dict(), made.state_dict()["state"]
        same = [torch.equal(before[0][name], after[0][name]) for name in after[0]]
        assert same == [number == 1] * 2
        if number == 1:
            kept = [torch.equal(before[1][i][key], state[key]) for i, state in after[1].items() for key in state]
            assert all(kept), "nor what is remembered of gradients"
    assert {state["step"].item() for state in made.state.values()} == {2.0}


def test_a_scaler_is_obeyed_as_adamw_does() -> None:
    layers, norms = [nn.Linear(3, 2) for _ in range(2)], []
    layers[1].load_state_dict(layers[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for layer, own in zip(layers, (UNSCALED, scaler), strict=True):
        made = make_optimizer(layer, MUON)
        own.scale(layer(torch.tensor([[1.0, 2.0, 3.0]])).sum()).backward()
        norms.append(step(layer, made, 0.1, 1.0, own).item())
    assert norms[0] == pytest.approx(norms[1])
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
    before = layers[1].weight.clone()
    scaler.scale((layers[1].weight * math.inf).sum()).backward()
    step(layers[1], made, 0.1, 1.0, scaler)
    assert torch.equal(layers[1].weight, before)
    assert scaler.get_scale() == 2.0**9


def test_a_checkpoint_goes_on_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "get_device", lambda: torch.device("cpu"))

    def stepped(hybrid: nn.Module, made: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            for i, p in enumerate(hybrid.parameters()):
                p.grad = random(*p.shape, seed=100 * seed + i)
            step(hybrid, made, 0.1, 1.0, UNSCALED)

    whole, again = tiny.translator(seed=1), tiny.translator(seed=2)
    made = make_optimizer(whole, MUON)
    stepped(whole, made, range(2))
    checkpoints.write_checkpoint(tmp_path, whole, made, Progress(step=2))
    stepped(whole, made, range(2, 4))
    resumed = make_optimizer(again, MUON)
    checkpoints.load_checkpoint(again, resumed, str(tmp_path))
    stepped(again, resumed, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
