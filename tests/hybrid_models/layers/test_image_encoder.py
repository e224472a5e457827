"""The encoder against timm's own net, and the mean over time."""

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from torch import nn

from hybrid_models.errors import UsageError
from hybrid_models.layers import image_encoder
from hybrid_models.layers.image_encoder import FRAMES_AT_A_TIME, Encoder, pool_time

SIZE, ENCODER = 32, "test_resnet"


def test_encoder_is_the_timm_net_on_normalised_pixels(monkeypatch):
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)
    encoder = Encoder(ENCODER, SIZE).eval()
    frames = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    config = encoder.cnn.pretrained_cfg
    pixels = (frames.float() / 255 - torch.tensor(config["mean"])) / torch.tensor(config["std"])
    expected = encoder.cnn.forward_features(pixels.permute(0, 3, 1, 2))
    found = encoder(frames)
    assert found.shape == (2, expected.shape[2] * expected.shape[3], encoder.channels)
    torch.testing.assert_close(found[:, 0], expected[:, :, 0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, -1], expected[:, :, -1, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_net", "'no_such_net' cannot be built"),
        ("test_vit", "'test_vit' gives no spatial grid"),
        ("test_mambaout", "'test_mambaout' gives no spatial grid"),  # 4-D, channels last
        ("hf-hub:someone/model", "'hf-hub:someone/model' cannot be built: it is none of timm's own models"),
        ("local-dir:/etc", "'local-dir:/etc' cannot be built: it is none of timm's own models"),
        ("test_resnet.nonsense", "'test_resnet.nonsense' cannot be built"),
    ],
)
def test_wrong_encoders(name, message):
    with pytest.raises(UsageError, match=message):
        Encoder(name, SIZE)


@pytest.mark.parametrize(
    ("name", "left"),
    [("test_resnet", set()), ("test_convnext", {"head.norm"}), ("mobilenetv3_small_050", {"conv_head"})],
)
def test_what_no_grid_is_made_of_does_not_learn(name: str, left: set[str]) -> None:
    """DDP ends a training of several workers in its second step where a weight that learns gets no gradient."""
    encoder = Encoder(name, SIZE)
    before = {name for name, weight in encoder.cnn.named_parameters() if not weight.requires_grad}
    encoder.learn()
    encoder.train()(torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)).sum().backward()
    learns = {name: weight for name, weight in encoder.cnn.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None for weight in learns.values())
    others = {name.rpartition(".")[0] for name, _ in encoder.cnn.named_parameters() if name not in learns}
    assert (before, others) == (set(), left)


def test_many_frames_go_through_in_parts(monkeypatch):
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)
    encoder = Encoder(ENCODER, SIZE).eval()
    frames = torch.randint(0, 256, (FRAMES_AT_A_TIME + 3, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(frames)[-3:], encoder(frames[-3:]), atol=1e-5, rtol=1e-4)


# ---- batch norm, folded ----------------------------------------------------------------------------------------------
def trained(name: str) -> Encoder:
    """An encoder whose batch norms do something."""
    torch.manual_seed(1)
    encoder = Encoder(name, SIZE).eval().requires_grad_(False)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.4, 2.0), (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):  # fmt: skip
                nn.init.uniform_(values, low, high)
    return encoder


def seen_without(encoder: Encoder, frames: torch.Tensor) -> torch.Tensor:
    """What it sees with its batch norm as it is."""
    pixels = (frames.permute(0, 3, 1, 2).float() / 255 - encoder.mean) / encoder.std
    return encoder.cnn.forward_features(pixels).flatten(2).transpose(1, 2)


def norms(module: nn.Module) -> int:
    return sum(isinstance(one, nn.BatchNorm2d) for one in module.modules())


FRAMES = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    ("name", "left"),
    [("efficientnet_lite0", 0), ("test_resnet", 1), ("test_efficientnet", 0), ("densenet121", 62), ("resnetv2_50", 17)],
)
def test_folded_batch_norm_sees_the_same(name: str, left: int) -> None:
    """Of nets with activations of their own, of dense ones, and of ones that normalise before they convolve."""
    encoder = trained(name)
    names = list(encoder.state_dict())
    torch.testing.assert_close(encoder(FRAMES), seen_without(encoder, FRAMES), atol=1e-4, rtol=1e-3)
    assert norms(encoder._quick()) == left < norms(encoder.cnn)
    assert list(encoder.state_dict()) == names


@pytest.mark.usefixtures("float32")
def test_what_is_folded_follows_the_weights() -> None:
    """Loaded, changed in place, moved to another type and back, copied."""
    encoder, other = trained("test_resnet"), trained("test_resnet")
    with torch.no_grad():
        for weight in other.cnn.parameters():
            weight.mul_(1.1)
    before = encoder(FRAMES)
    assert encoder._quick() is encoder._quick(), "made once"
    encoder.load_state_dict(other.state_dict())
    torch.testing.assert_close(encoder(FRAMES), other(FRAMES))
    assert not torch.allclose(encoder(FRAMES), before, rtol=1e-2)
    with torch.no_grad():
        next(encoder.cnn.buffers()).add_(0.5)
    torch.testing.assert_close(encoder(FRAMES), seen_without(encoder, FRAMES), atol=1e-4, rtol=1e-3)
    for weight in encoder.cnn.parameters():
        weight.data = 1.1 * weight.data
    torch.testing.assert_close(encoder(FRAMES), seen_without(encoder, FRAMES), atol=1e-4, rtol=1e-3)
    for one in (encoder, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(one(FRAMES), seen_without(encoder, FRAMES), atol=1e-4, rtol=1e-3)
    assert len(pickle.dumps(encoder)) < 1.2 * len(pickle.dumps(trained("test_resnet"))), "nothing of it is saved"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_are_not_folded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: dtype == torch.bfloat16)
    encoder = trained("test_resnet")
    before = encoder(FRAMES)
    encoder.to(dtype)
    assert encoder._quick() is encoder.cnn
    torch.testing.assert_close(encoder(FRAMES), before, atol=0.2, rtol=0.2)
    encoder.float()
    assert encoder._quick() is not encoder.cnn


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_an_optimizer_that_leaves_no_trace_is_seen(name: str) -> None:
    """A fused one changes weights and not their versions; nets without batch norm count no batches either."""
    encoder = Encoder(name, SIZE).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05, fused=True)
    for _ in range(2):
        with torch.inference_mode():
            seen = encoder.eval()(FRAMES)
        torch.testing.assert_close(seen, seen_without(encoder, FRAMES).detach(), atol=1e-4, rtol=1e-3)
        optimizer.zero_grad()
        encoder.train()(FRAMES).square().mean().backward()
        optimizer.step()
        with torch.inference_mode():
            assert not torch.allclose(encoder.eval()(FRAMES), seen, rtol=1e-2)


@pytest.mark.usefixtures("float32")
def test_an_encoder_that_learns_has_its_batch_norm() -> None:
    encoder = trained("test_resnet").requires_grad_(True)
    encoder(FRAMES).sum().backward()
    assert all(weight.grad is not None for weight in encoder.cnn.parameters())
    with torch.inference_mode():
        seen = encoder(FRAMES)
    with torch.no_grad():
        for weight in encoder.cnn.parameters():
            weight.sub_(1e-2 * weight.grad)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(FRAMES), seen_without(encoder, FRAMES), atol=1e-4, rtol=1e-3)
        assert not torch.allclose(encoder(FRAMES), seen, rtol=1e-3)
    means = [module.running_mean.clone() for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    encoder.train()(FRAMES)
    after = [module.running_mean for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(torch.equal(one, two) for one, two in zip(means, after, strict=True)), "it counts its batches"


class Crossed(nn.Module):
    """A batch norm that is declared after a convolution, and is not behind it."""

    pretrained_cfg: ClassVar = {"input_size": (3, SIZE, SIZE)}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(pixels).relu())


@pytest.mark.usefixtures("float32")
def test_a_net_that_would_see_something_else_stays_as_it_is() -> None:
    net = Crossed().eval()
    assert image_encoder._folded(net) is not net, "nothing is normalised yet"
    nn.init.constant_(net.norm.running_mean, 0.5)
    nn.init.constant_(net.norm.running_var, 4.0)
    assert image_encoder._folded(net) is net


def test_in_bfloat16_it_is_as_near_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = trained("efficientnet_lite0")
    exact = seen_without(encoder, FRAMES)
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: True)
    off = (encoder(FRAMES) - exact).norm() / exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        without = (seen_without(encoder, FRAMES).float() - exact).norm() / exact.norm()
    assert 0 < off < 1.5 * without


def test_pool_time_is_each_clips_mean():
    features = torch.arange(12.0).view(6, 2, 1)
    pooled = pool_time(features, torch.tensor([0, 1, 1, 1, 2, 2]), torch.tensor([1, 3, 2]))
    expected = torch.stack([features[:1].mean(0), features[1:4].mean(0), features[4:].mean(0)])
    torch.testing.assert_close(pooled, expected)
