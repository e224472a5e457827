"""`from pipelines.artifacts import load_hybrid`: a trained model from Python. All else is in `pipelines.models`."""

from pipelines.models.artifacts import load_hybrid

__all__ = ["load_hybrid"]
