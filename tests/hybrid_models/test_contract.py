"""The few parts of the contract that do something themselves."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hybrid_models import contract
from hybrid_models.contract import Hybrid, Loss, autocast, bf16_is_fast, half_type, module_device, to_device
from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig, HybridConfig

GIVEN = {"name": "minimal", "Decoding": DecodingConfig}
Minimal = type("Minimal", (Hybrid,), {**GIVEN, **dict.fromkeys(Hybrid.__abstractmethods__)})
"""The least that a hybrid must define."""


def test_losses_of_batches_add_up_to_the_exact_mean():
    parts = [Loss(torch.tensor(6.0), torch.tensor(3)), Loss(torch.tensor(1.0), torch.tensor(1))]
    assert sum(part.total for part in parts) / sum(part[1] for part in parts) == 7 / 4


def test_a_hybrid_needs_every_abstract_method():
    with pytest.raises(TypeError, match="abstract"):
        Hybrid(HybridConfig(), {})  # type: ignore[abstract]


def test_defaults_learn_nothing_and_freeze_nothing():
    assets = {"a.json": "{}"}
    hybrid = Minimal(HybridConfig(), assets)
    samples = [{"length": np.int64(1)}]
    assert hybrid.assets == assets
    assert hybrid.assets is not assets
    assert Minimal.learn_assets(HybridConfig(), ["a"]) == {}
    assert hybrid.pretrained() == {}
    assert hybrid.decoding == DecodingConfig()
    assert not hybrid.has_frozen_features
    assert hybrid.featurize(samples) == samples
    with pytest.raises(UsageError, match="minimal has no pretrained part 'cnn'"):
        hybrid.load_pretrained("cnn", None)


@pytest.mark.parametrize(("device", "rounds"), [("cuda", False), ("cpu", True)])
def test_on_a_gpu_float32_is_float32(device: str, rounds: bool) -> None:
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        contract.compute_exactly(torch.device(device))
        assert [place.allow_tf32 for place in places] == [rounds, rounds]
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def test_module_device_is_that_of_its_weights():
    assert module_device(nn.Linear(1, 1)) == torch.device("cpu")
    assert module_device(nn.Linear(1, 1, device="meta")) == torch.device("meta")


def test_to_device_copies_to_a_gpu_beside_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pinned memory, on a stream of its own that this thread waits for; what is no tensor stays."""
    done: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            done.append("waited")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        done.append("beside")
        yield
        done.append("back")

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        done.append(f"copied to {device}, {'not ' * non_blocking}blocking")
        return tensor.clone()

    beside = Stream()
    monkeypatch.setattr(contract, "_copying", lambda device: beside)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "its own")
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: done.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: done.append(f"kept for {stream}"))
    moved = to_device({"a": torch.arange(3), "counts": [3], "b": torch.zeros(2)}, torch.device("cuda:0"))
    each = ["pinned", "copied to cuda:0, not blocking"]
    assert done == ["beside", *each, *each, "back", "waited", "kept for its own", "kept for its own"]
    assert list(moved) == ["a", "counts", "b"]
    assert (moved["a"].tolist(), moved["counts"]) == ([0, 1, 2], [3])


def test_to_device_moves_every_tensor():
    batch = {"a": torch.arange(3), "b": torch.zeros(2, 2)}
    moved = to_device(batch, torch.device("meta"))
    assert {name: tensor.device.type for name, tensor in moved.items()} == {"a": "meta", "b": "meta"}


@pytest.mark.parametrize(
    ("native", "capability", "kind"),
    [
        (True, (8, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),
        (False, (7, 0), torch.float16),
        (False, (6, 1), None),
    ],
)
def test_gpus_compute_in_what_they_are_fast_in(
    monkeypatch: pytest.MonkeyPatch, native: bool, capability: tuple[int, int], kind: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert half_type(torch.device("cuda")) is kind
    assert half_type(torch.device("cpu")) is (torch.bfloat16 if bf16_is_fast(torch.device("cpu")) else None)


def test_autocast_is_bf16_where_it_is_fast_and_nothing_elsewhere():
    cpu = torch.device("cpu")
    with autocast(cpu):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bf16_is_fast(cpu) else torch.float32)
