"""Weights alone; what artifacts make of them is in test_artifacts."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_tensors

from hybrid_models.errors import UsageError
from pipelines.models import weights
from tests import tiny


def test_what_is_packed_is_loaded_again() -> None:
    first, second = tiny.translator(0), tiny.translator(1)
    packed = weights.pack_state(first)
    assert weights.shapes(packed, "m") == {name: list(tensor.shape) for name, tensor in first.state_dict().items()}
    weights.load_state(second, packed, "m")
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_weights_of_another_net_change_nothing() -> None:
    net = tiny.translator()
    before = weights.pack_state(net)
    with pytest.raises(UsageError, match=r"^m/weights\.safetensors lacks '.*': it does not belong to its config\.json"):
        weights.load_state(net, weights.pack_state(tiny.captioner()), "m")
    assert weights.pack_state(net) == before


def test_weights_that_no_net_learns_are_refused() -> None:
    net = tiny.translator()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for kind in (torch.int8, torch.complex64):
        packed = save_tensors(state | {"bridge.weight": state["bridge.weight"].to(kind)})
        with pytest.raises(UsageError, match=r"m/weights\.safetensors: 'bridge\.weight' is of (int8|complex64), which"):
            weights.load_state(net, packed, "m")
    weights.load_state(net, save_tensors({name: tensor.half() for name, tensor in state.items()}), "m")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A device has no end, and a pipe has nobody who writes."""
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("device", "pipe"):
        with pytest.raises(UsageError, match=f"{name} is no file: it is no part of a trained model"):
            weights.read_bounded(str(tmp_path / name), 100)
    assert weights.read_bounded(str(tmp_path / "link"), 100) == b"x"


def test_pretrained_weights_are_read_or_named_as_wrong(tmp_path: Path) -> None:
    uri = str(tmp_path / "w.safetensors")
    Path(uri).write_bytes(save_tensors({"a": torch.tensor([1.0, 2.0])}))
    assert weights.read_tensors(uri)["a"].tolist() == [1.0, 2.0]
    Path(uri).write_bytes(Path(uri).read_bytes()[:-3])
    with pytest.raises(UsageError, match="is not a whole safetensors file"):
        weights.read_tensors(uri)
    with pytest.raises(UsageError, match=r"no weights at .*none: check the address"):
        weights.read_tensors(str(tmp_path / "none"))
