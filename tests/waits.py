"""What would wait for a GPU, counted on a CPU: numbers, shapes and copies that Python asks of tensors.

Seen are operators whose results the host needs, by a dispatch mode, in inference mode as in training; and methods that
dispatch nothing on a CPU, by patching them, of the thread that counts. `to` counts where the project's code tells it a
device (not where `to_device` or torch itself does) and does not say `non_blocking`: whichever way such a copy goes, the
host waits for it. `torch.tensor` counts where it is told a device, and `new_tensor` anywhere; `numpy` of what `cpu`
gave does not count again. Other copies from a device are known by both tensors' devices, which on a CPU are the same:
they are not seen there, nor is what is waited for without a tensor (streams, events).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Self
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_models.contract import to_device

OPERATORS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::allclose",
    "aten::bincount", "aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
}  # fmt: skip
"""Their results, or the shapes of these, are needed on the host, whichever the overload."""
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""With a mask, they look for its places."""
METHODS = ("tolist", "cpu", "numpy", "item", "new_tensor", "__bool__", "__int__", "__float__", "__index__")
"""Dispatch nothing on a CPU, or not always."""


class Waits:
    """Counts within a `with` block."""

    def __init__(self) -> None:
        self.count = 0
        self._counting = True

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._stack = ExitStack()
        for name in METHODS:
            self._patch(torch.Tensor, name, lambda args, kwargs, asked_by: True)
        self._patch(torch, "tensor", lambda args, kwargs, asked_by: kwargs.get("device") is not None)
        self._patch(
            torch.Tensor, "to", lambda args, kwargs, asked_by: _waits_to(args, kwargs) and not _is_known(asked_by)
        )
        self._stack.enter_context(_Operators(self.note))
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """What happens in here does not count."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    def note(self) -> None:
        """Something waits."""
        self.count += self._counting

    def _patch(
        self, place: Any, name: str, waits: Callable[[tuple[Any, ...], dict[str, Any], FrameType], bool]
    ) -> None:
        """Counts calls of a tensor's method, or of torch's function, that wait, by their arguments after the first one
        and by who asks."""
        method = getattr(place, name)

        def noted(first: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread or not waits(args, kwargs, sys._getframe(1)):
                return method(first, *args, **kwargs)
            if name == "numpy" and hasattr(first, "on_host"):
                return method(first, *args, **kwargs)
            self.note()
            with self.ignored():  # what it dispatches is the same wait
                found = method(first, *args, **kwargs)
                if name == "cpu":
                    found = found.view_as(found)  # on a CPU it is the tensor itself
                    found.on_host = True
                return found

        self._stack.enter_context(mock.patch.object(place, name, noted))


class _Operators(TorchDispatchMode):
    """Notes operators that wait. In inference mode some arrive whole, and are taken apart here: what they give may be
    rounded otherwise."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if _waits(func, args, kwargs):
            self._note()
        return func(*args, **kwargs)


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits for this overload with these arguments."""
    aten, name = torch.ops.aten, func.name().split(".")[0]
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None  # or it is asked how many there are
    if func is aten._to_copy.default:
        return _leaves(args[0].device, kwargs.get("device"), kwargs)
    if func is aten.copy_.default:
        return _leaves(args[1].device, args[0].device, {"non_blocking": args[2:] == (True,)})
    return name in OPERATORS or (name in INDEXED and any(map(_is_mask, args[1])))


def _leaves(source: torch.device, target: torch.device | None, kwargs: Any) -> bool:
    return target is not None and source.type != "cpu" == target.type and not kwargs.get("non_blocking")


def _waits_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `to` with these arguments is told a device, and to wait for what is copied there."""
    device = kwargs.get("device", args[0] if args else None)
    return isinstance(device, str | torch.device) and not kwargs.get("non_blocking", args[2:3] == (True,))


def _is_known(asked_by: FrameType) -> bool:
    """Whether this is `to_device`, by which batches come to a device beside what computes there; or torch itself, which
    asks so for what is on the device already (norms of gradients, on that of the first)."""
    frames = asked_by, asked_by.f_back  # a comprehension may have a frame of its own
    collates = any(frame is not None and frame.f_code is to_device.__code__ for frame in frames)
    return collates or asked_by.f_globals["__name__"].startswith("torch.")


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
