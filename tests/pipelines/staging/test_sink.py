"""What is written: one object for each contiguous piece."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.staging.checks import Errors, count_errors
from pipelines.staging.pieces import list_pieces, shard_key, tiling
from pipelines.staging.sink import StageSink
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows


def stage(folder: str, *blocks: pa.Table) -> dict[str, float]:
    sink = StageSink(folder, [A, B], SCHEMA)
    return sink.write(blocks, None)


def test_the_sink_writes_one_object_for_each_contiguous_piece(tmp_path: Path) -> None:
    done = stage(str(tmp_path), rows(A, 0, 3, 5), rows(B, 0, 2, 1), rows(A, 4, 6, 5), rows(A, 3, 4, 5, "X: y"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{shard_key(A)}-00000000-00000006-end.parquet", f"{shard_key(B)}-00000000-00000002-end.parquet"]
    assert (done["rows"], done["decode_seconds"], done["predict_seconds"]) == (8, 2.0, 4.0)
    table = pq.read_table(tmp_path / names[0])
    assert table.schema.names == SCHEMA.names
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["caption"].to_pylist()[3] is None
    assert count_errors(tiling(list_pieces(str(tmp_path))[shard_key(A)]) or []) == Errors(Counter(X=1), 0)
