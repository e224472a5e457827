"""The encoder against timm's own net, and the mean over time."""

import pytest
import torch

from hybrid_models.errors import UsageError
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
        ("test_vit", "'test_vit'"),
        ("hf-hub:someone/model", "'hf-hub:someone/model' cannot be built: it is none of timm's own models"),
        ("local-dir:/etc", "'local-dir:/etc' cannot be built: it is none of timm's own models"),
        ("test_resnet.nonsense", "'test_resnet.nonsense' cannot be built"),
    ],
)
def test_wrong_encoders(name, message):
    with pytest.raises(UsageError, match=message):
        Encoder(name, SIZE)


def test_many_frames_go_through_in_parts(monkeypatch):
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)
    encoder = Encoder(ENCODER, SIZE).eval()
    frames = torch.randint(0, 256, (FRAMES_AT_A_TIME + 3, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(frames)[-3:], encoder(frames[-3:]), atol=1e-5, rtol=1e-4)


def test_pool_time_is_each_clips_mean():
    features = torch.arange(12.0).view(6, 2, 1)
    pooled = pool_time(features, torch.tensor([0, 1, 1, 1, 2, 2]), torch.tensor([1, 3, 2]))
    expected = torch.stack([features[:1].mean(0), features[1:4].mean(0), features[4:].mean(0)])
    torch.testing.assert_close(pooled, expected)
