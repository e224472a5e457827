"""What tests of tables share."""

from __future__ import annotations

import pytest

from pipelines import storage


@pytest.fixture
def table(place: str) -> str:
    """Where a table is to be, on a disk and on S3."""
    return storage.join(place, "captions")
