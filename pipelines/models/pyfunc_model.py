"""The MLflow pyfunc of a registered model (models-from-code: MLflow runs this file, nothing is unpickled)."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.formats.entry import ReadOptions, npy_bytes
from pipelines.reading.formats.parquet import parquet_entry
from pipelines.reading.raw import RAW_SCHEMA, raw_row
from pipelines.reading.shards import Shard

HERE = Shard("", 0, "")
"""Rows of a DataFrame come from no object."""


class HybridModel(PythonModel):
    """Predicts from a DataFrame, whose rows are like those of a Parquet shard.

    The one column of bytes (an image, a clip, a .npy file) or of arrays is the media, whatever its name; the others are
    fields.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the artifact folder that was logged with the model."""
        self._session = Inference.of(artifacts.read(context.artifacts["artifact"])).load()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One output row for each input row: the table's payload columns, `status` and `error`.

        Args:
            context: MLflow's.
            model_input: the rows.
            params: decoding options that differ from the model's own, such as `beam_size`.
        """
        session = self._session.override(params or {})
        options = ReadOptions(limits=session.limits)
        rows = []
        for i, record in enumerate(model_input.to_dict("records")):
            values = {name: _stored(value) for name, value in record.items()}
            rows.append(raw_row(HERE, i, False, parquet_entry(values, str(i), options), options))
        return session.answer(pa.Table.from_pylist(rows, schema=RAW_SCHEMA)).to_pandas()


def _stored(value: Any) -> Any:
    """A value as a Parquet shard has it: frames are a .npy file's bytes, other arrays are lists, nothing is None."""
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, np.ndarray):
        return None if pd.api.types.is_scalar(value) and pd.isna(value) else value
    return npy_bytes(value) if value.ndim > 1 and value.dtype != object else value.tolist()


mlflow.models.set_model(HybridModel())
