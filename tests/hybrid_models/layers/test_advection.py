"""Motion is found where it is known, and transport follows it exactly."""

import math

import numpy as np
import pytest
import torch

from hybrid_models.layers.advection import blur, estimate_motion, move, stays_inside, trajectories


def showers(height, width, seed=0, n=60):
    """Centres, widths and strengths of smooth blobs scattered over (and beyond) a grid."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(n, 2, generator=generator) * torch.tensor([width * 1.6, height * 1.6])
    place -= 0.3 * torch.tensor([width, height])
    return place, 3 + 5 * torch.rand(n, generator=generator), torch.rand(n, generator=generator)


def draw(place, size, strength, height, width):
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    distance = (x[..., None] - place[:, 0]) ** 2 + (y[..., None] - place[:, 1]) ** 2
    return (strength * torch.exp(-distance / (2 * size**2))).sum(-1).clamp(max=1)


def test_move_shifts_by_whole_and_half_pixels_and_repeats_the_edge():
    field = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).expand(3, 4)[None, None]
    right = torch.zeros(1, 2, 3, 4)
    right[:, 0] = 1
    assert move(field, right)[0, 0, 0].tolist() == pytest.approx([1, 1, 2, 4], abs=1e-5)
    assert move(field, -right / 2)[0, 0, 0].tolist() == pytest.approx([1.5, 3, 6, 8], abs=1e-5)
    down = torch.zeros(1, 2, 3, 4)
    down[:, 1] = 1
    rows = torch.arange(3.0)[:, None].expand(3, 4)[None, None]
    assert move(rows, down)[0, 0, :, 0].tolist() == pytest.approx([0, 0, 1], abs=1e-5)


def test_stays_inside_knows_what_comes_from_outside():
    displacement = torch.zeros(1, 2, 3, 4)
    displacement[:, 0] = 1.5
    displacement[:, 1] = -1
    assert stays_inside(displacement)[0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("velocity", [(2.0, 1.0), (-0.7, 0.4), (9.0, -6.0), (0.0, 0.0)])
def test_motion_of_moving_showers_is_found(velocity):
    place, size, strength = showers(128, 128)
    frames = torch.stack([draw(place + t * torch.tensor(velocity), size, strength, 128, 128) for t in range(5)])
    motion = estimate_motion(frames[None], torch.ones(1, 5, 128, 128))[0]
    for component, expected in zip(motion, velocity, strict=True):
        assert component.median().item() == pytest.approx(expected, abs=0.05)
        inner = component[16:-16, 16:-16]
        assert (inner - expected).abs().quantile(0.9).item() < 0.25


def test_motion_that_differs_by_place_is_found():
    place, size, strength = showers(128, 256, n=160)
    speed = torch.where(place[:, 0] < 128, 2.0, -2.0)
    frames = torch.stack(
        [draw(place + t * torch.stack((0 * speed, speed), 1), size, strength, 128, 256) for t in range(5)]
    )
    motion = estimate_motion(frames[None], torch.ones(1, 5, 128, 256))[0]
    assert motion[1, 20:-20, 20:90].median().item() == pytest.approx(2, abs=0.2)
    assert motion[1, 20:-20, 166:-20].median().item() == pytest.approx(-2, abs=0.2)


def test_missing_pixels_do_not_move():
    place, size, strength = showers(128, 128)
    frames = torch.stack([draw(place + t * torch.tensor([3.0, 0.0]), size, strength, 128, 128) for t in range(5)])
    covered = torch.zeros(1, 5, 128, 128)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    covered[..., (y - 64) ** 2 + (x - 64) ** 2 < 50**2] = 1  # a still circle, as a radar's
    motion = estimate_motion(frames[None] * covered, covered)[0]
    assert motion[0, 34:94, 34:94].median().item() == pytest.approx(3, abs=0.2)


def test_nothing_to_see_is_no_motion():
    motion = estimate_motion(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64))
    assert not motion.any()


def test_trajectories_of_a_uniform_motion_are_its_multiples():
    motion = torch.zeros(1, 2, 16, 16)
    motion[:, 0], motion[:, 1] = 1.5, -0.5
    path = trajectories(motion, 4)
    assert path.shape == (1, 4, 2, 16, 16)
    for lead in range(4):
        torch.testing.assert_close(path[:, lead], (lead + 1) * motion)


def test_trajectories_follow_a_rotation():
    angle = math.radians(6)
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    motion = torch.stack((-angle * y, angle * x))[None]
    displacement = trajectories(motion, 15)[0, -1]  # a quarter turn
    # what arrives at (x, y) started a quarter turn earlier, at (y, -x)
    near = x**2 + y**2 < 25**2
    assert (x - displacement[0] - y)[near].abs().max() < 0.1
    assert (y - displacement[1] + x)[near].abs().max() < 0.1


@pytest.mark.parametrize(("sigma", "shape"), [(1.0, (2, 5, 40, 33)), (4.0, (1, 2, 30, 7)), (2.0, (1, 1, 1, 9))])
def test_blur_is_a_convolution_with_a_gaussian_and_zeros_outside(sigma, shape):
    fields = np.random.default_rng(0).normal(size=shape)
    radius = math.ceil(2.5 * sigma)
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = fields
    for axis in (2, 3):
        padded = np.pad(expected, [(radius, radius) if axis == one else (0, 0) for one in range(4)])
        expected = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    np.testing.assert_allclose(blur(torch.from_numpy(fields), sigma), expected, atol=1e-12)
