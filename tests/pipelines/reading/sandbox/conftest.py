from collections.abc import Iterator

import psutil
import pytest

from pipelines.reading.sandbox import guard


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    yield
    while guard._idle:
        guard._idle.pop().kill()
    assert not [p for p in psutil.Process().children() if "pipelines.reading.sandbox.jail" in " ".join(p.cmdline())]
