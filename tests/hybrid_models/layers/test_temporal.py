"""The RNN over a clip's frames: against nn.LSTM clip by clip, and what is where in a frame."""

import numpy as np
import pytest
import torch
from torch import nn

from hybrid_models.layers.temporal import TemporalEncoder, clips_of, frame_places, pool_places


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_each_clip_is_read_as_if_it_were_alone(cell):
    torch.manual_seed(0)
    encoder = TemporalEncoder(channels=3, hidden_size=5, cell=cell)
    counts = torch.tensor([4, 1, 3])
    frames = torch.randn(int(counts.sum()), 12)
    places = torch.from_numpy(frame_places(counts.tolist()))
    states, last = encoder(clips_of(frames, places, (3, 4)), counts)
    alone = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](5, 5)
    alone.load_state_dict(encoder.rnn.state_dict())
    for row, clip in enumerate(frames.split(counts.tolist())):
        normed = (clip - clip.mean(1, keepdim=True)) / (clip.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected, _ = alone(torch.tanh(normed @ encoder.look.weight.T + encoder.look.bias))
        torch.testing.assert_close(states[row, : len(clip)], expected)
        torch.testing.assert_close(last[row], expected[-1])


def test_places_are_means_of_a_frames_quarters():
    grid = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)  # frames, rows, columns, channels
    pooled = pool_places(torch.from_numpy(grid.reshape(2, 16, 3))).unflatten(1, (3, 2, 2)).numpy()
    for row in range(2):
        for column in range(2):
            quarter = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(axis=(1, 2))
            np.testing.assert_allclose(pooled[:, :, row, column], quarter, atol=1e-6)


def test_clips_are_padded_with_zeros_at_their_end():
    frames = torch.arange(1.0, 7).view(6, 1)
    places = frame_places([1, 3, 2])
    assert places.tolist() == [0, 3, 4, 5, 6, 7]
    padded = clips_of(frames, torch.from_numpy(places), (3, 3))
    assert padded.squeeze(2).tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
