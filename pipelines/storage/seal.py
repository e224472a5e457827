"""Pages that carry a digest of themselves, by which this program recognises its own that nobody has changed."""

from __future__ import annotations

import hashlib
import re

from pipelines.storage.writing import Existing

SEAL = re.compile(rb"(?P<page>.*)<!-- hybrid report, sha256 (?P<digest>[0-9a-f]{64}) -->\n", re.DOTALL)
MOST_BYTES = 256 << 20
"""Size of the largest page; whatever is larger is not read."""


def sealed(page: bytes) -> bytes:
    """An HTML page with its digest as the last line."""
    return page + f"<!-- hybrid report, sha256 {hashlib.sha256(page).hexdigest()} -->\n".encode()


def is_sealed(existing: Existing) -> bool:
    """The `IsOwn` of pages: whether the last line is the digest of all lines before it."""
    found = SEAL.fullmatch(existing.read()) if existing.size <= MOST_BYTES else None
    return found is not None and hashlib.sha256(found["page"]).hexdigest().encode() == found["digest"]
