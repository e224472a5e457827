"""Few shapes, on devices that have to be waited for: what these have computed in the same shape before can be compiled
or captured once, and is faster."""

from __future__ import annotations

import torch

PLACES = 8
"""Lengths are multiples of so many, where shapes count."""


def has_shapes(device: torch.device) -> bool:
    """Whether it has to be waited for, and computes faster what it has computed in the same shape before."""
    return device.type != "cpu"


def bucket(count: int) -> int:
    """The next number from a count on that has three binary digits, and zeros after them: there are few of these, at
    most a quarter too large."""
    unit = 1 << max(0, count.bit_length() - 3)
    return -(-count // unit) * unit


def width_on(device: torch.device, width: int) -> int:
    """To how many places texts are padded that have so many at most."""
    return -(-width // PLACES) * PLACES if has_shapes(device) else width


def places(mask: torch.Tensor) -> torch.Tensor:
    """The places of True in a mask, flattened; on a device that would have to be waited for to tell how many these are,
    all places."""
    if has_shapes(mask.device):
        return torch.arange(mask.numel(), device=mask.device)
    return mask.flatten().nonzero().squeeze(1)
