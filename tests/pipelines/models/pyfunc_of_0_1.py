"""The MLflow pyfunc of a registered model (models-from-code: MLflow runs this file, nothing is unpickled)."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipelines import artifacts
from pipelines.infer import decode_step
from pipelines.limits import Limits
from pipelines.media import sniff_media_type
from pipelines.predict import Compute, Lineage, Predictor
from pipelines.shards import RAW_SCHEMA, npy_bytes


class HybridModel(PythonModel):
    """Predicts from a DataFrame: column `media` (an array, or bytes of an image, clip or .npy file); other fields."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the artifact folder that was logged with the model."""
        self._artifact = artifacts.read(context.artifacts["artifact"])
        self._limits = Limits()
        self._decode = decode_step(self._artifact, self._limits)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One output row for each input row: the table's payload columns, `status` and `error`.

        Args:
            context: MLflow's.
            model_input: the rows.
            params: decoding options that differ from the model's own, such as `beam_size`.
        """
        decoding = artifacts.override(self._artifact.decoding, params or {})
        compute = Compute(batch_size=32, threads=1, gpu=False)
        fingerprint = self._artifact.fingerprint(decoding, self._limits)
        predictor = Predictor(self._artifact, decoding, compute, Lineage(self._artifact.model, "", fingerprint, ""))
        rows = [raw_row(i, record) for i, record in enumerate(model_input.to_dict("records"))]
        output = predictor(self._decode(pa.Table.from_pylist(rows, schema=RAW_SCHEMA)))
        columns = [*predictor.hybrid.payload_schema.names, "status", "error"]
        return output.select(columns).to_pandas()


def raw_row(index: int, record: dict[str, Any]) -> dict[str, Any]:
    """A DataFrame's row as a shard's row."""
    media = record.pop("media", None)
    if isinstance(media, np.ndarray):
        media = npy_bytes(media)
    return {
        "shard": "",
        "index": index,
        "last": False,
        "sample_id": str(index),
        "media": media,
        "media_type": None if media is None else sniff_media_type(media),
        "fields": json.dumps(record, default=str),
        "error": None,
    }


mlflow.models.set_model(HybridModel())
