"""Nets without weights: their shapes alone, without memory and without numbers being drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWN = {Tensor.normal_, Tensor.uniform_}


@contextmanager
def sketched() -> Iterator[None]:
    """What is built inside has shapes, and no values: its tensors are on torch's device `meta`."""
    with torch.device("meta"), _Bare():
        yield


class _Bare(TorchFunctionMode):
    """Draws no parameters. On `meta`, torch does that by code of its compiler, which takes 1.5 seconds to import."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in DRAWN or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)
