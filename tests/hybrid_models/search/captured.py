"""Steps of a search and losses of texts as torch's compiler captures them, each whole, counted: nothing in them may
wait for the host. Shapes count, as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._dynamo.testing import CompileCounter

from hybrid_models import shapes
from hybrid_models.layers.word_decoder import WordDecoder
from hybrid_models.search import beam


@contextmanager
def captured_steps() -> Iterator[CompileCounter]:
    """`frame_count` tells how many graphs there are: one for the first step and one for the others, in each shape."""
    with _captured(beam, "_turn") as counter:
        yield counter


@contextmanager
def captured_losses() -> Iterator[CompileCounter]:
    """Losses of texts, with their gradients: a graph for each shape."""
    with _captured(WordDecoder, "loss") as counter:
        yield counter


@contextmanager
def _captured(owner: Any, name: str) -> Iterator[CompileCounter]:
    counter = CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(getattr(owner, name), backend=counter, fullgraph=True, dynamic=False)
    with (
        mock.patch.object(shapes, "has_shapes", return_value=True),
        mock.patch.object(owner, name, compiled),
        # `nn.GRU`'s weights may be looked at
        torch._dynamo.config.patch(recompile_limit=64, allow_rnn=True),
    ):
        yield counter
    torch.compiler.reset()
