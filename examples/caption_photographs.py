"""A bucket of photographs, captioned tonight: `python examples/caption_photographs.py MODEL PHOTOS TABLES`.

MODEL is an artifact folder or models:/captioner@champion, PHOTOS a pattern with {ds} for the night, such as
s3://lake/photos/ds={ds}/*.tar, TABLES where the tables are. It is what `hybrid nightly captions` does, from Python: run
it every night, for tonight or for a date. Run twice, it computes nothing again.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from jobs import nightly


def main(model: str, photos: str, tables: str, ds: str = "") -> dict:
    """One night of captions; returns the summary: rows, errors by reason, the page about the night."""
    ds = ds or datetime.now(UTC).date().isoformat()
    return nightly.main(["captions", "--model", model, "--input", photos, "--tables", tables, "--ds", ds])


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), indent=2, default=str))
