"""What tests of the loop share."""

from __future__ import annotations

import pytest
import torch

from pipelines.training import loop, workers


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as its only worker runs it, on one thread: nets are too small for more."""
    torch.set_num_threads(1)
    monkeypatch.setattr(workers, "rank", lambda: 0)
    monkeypatch.setattr(workers, "world_size", lambda: 1)
    for module in (loop, workers):
        monkeypatch.setattr(module, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(workers, "tell", lambda reporter, event, progress, values: reporter.append((event, values)))
