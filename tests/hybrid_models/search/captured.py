"""Steps of a search as torch's compiler captures them, each whole, counted: nothing in them may wait for the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch._dynamo.testing import CompileCounter

from hybrid_models.search import beam


@contextmanager
def captured() -> Iterator[CompileCounter]:
    """Steps are captured, as on a device where shapes count. `frame_count` tells how many graphs there are: one for the
    first step and one for the others, in each shape."""
    counter = CompileCounter()
    torch.compiler.reset()
    turn = torch.compile(beam._turn, backend=counter, fullgraph=True, dynamic=False)
    with (
        mock.patch.object(beam, "has_shapes", return_value=True),
        mock.patch.object(beam, "_turn", turn),
        # `nn.GRU`'s weights may be looked at
        torch._dynamo.config.patch(recompile_limit=64, allow_rnn=True),
    ):
        yield counter
    torch.compiler.reset()
