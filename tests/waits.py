"""What would wait for a GPU, counted on a CPU: numbers and shapes that Python asks of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2",
    "aten::equal", "aten::repeat_interleave",
}  # fmt: skip
"""Their results, or the shapes of these, are needed on the host."""
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""With a mask, they look for its places."""
METHODS = ("tolist", "cpu", "numpy", "item", "__bool__", "__int__", "__float__", "__index__")
"""Dispatch nothing on a CPU, or not always."""


class Waits(TorchDispatchMode):
    """Counts within a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._counting = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in OPERATORS or (name in INDEXED and any(map(_is_mask, args[1]))):
            self._note()
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        for name in METHODS:
            self._stack.enter_context(mock.patch.object(torch.Tensor, name, self._noting(getattr(torch.Tensor, name))))
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._stack.close()

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """What happens in here does not count."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    def _note(self) -> None:
        self.count += self._counting

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note()
            with self.ignored():  # what it dispatches is the same wait
                return method(tensor, *args, **kwargs)

        return noted


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
