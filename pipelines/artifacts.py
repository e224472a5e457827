"""`from pipelines.artifacts import load_hybrid`: a trained model from Python. All else is in `pipelines.models`.

The pyfunc of a model that was registered by version 0.1 is a copy of that version's source: it imports this module, and
`infer`, `limits`, `media`, `predict` and `shards` beside it, which nothing else needs.
"""

from __future__ import annotations

from pipelines.models.artifacts import load_hybrid, override, read

__all__ = ["load_hybrid", "override", "read"]
