"""Asking the tables, by three engines: `python examples/ask_tables.py TABLES`.

A table is a folder of Parquet files with a Delta Lake log: whoever reads Delta Lake reads whole nights, never a part.
More questions are in docs/querying.md.
"""

from __future__ import annotations

import sys

import polars
from deltalake import DeltaTable

from pipelines.nights import query


def how_many(tables: str) -> list[dict]:
    """Rows by night and outcome, by DuckDB: the views NAME have the good rows, NAME_all the error rows, too."""
    sql = "SELECT ds, status, count(*) AS rows FROM captions_all GROUP BY ALL ORDER BY ALL"
    return query.query(sql, tables, ["captions"]).to_pylist()


def what_went_wrong(tables: str) -> list[dict]:
    """Reasons of error rows, the commonest first, by Polars."""
    rows = polars.scan_delta(f"{tables}/captions").filter(polars.col("status") == "error")
    reason = polars.col("error").str.split(":").list.first().alias("reason")
    return rows.group_by(reason).len().sort("len", descending=True).collect().to_dicts()


def newest_captions(tables: str, count: int = 5) -> list[dict]:
    """Captions of the newest night, by deltalake and pandas."""
    rows = DeltaTable(f"{tables}/captions").to_pandas(columns=["ds", "sample_id", "caption", "status"])
    newest = rows[(rows.ds == rows.ds.max()) & (rows.status == "ok")].sort_values("sample_id")
    return newest[["sample_id", "caption"]].head(count).to_dict("records")


def main(tables: str) -> None:
    """Prints the three answers."""
    for answer in (how_many, what_went_wrong, newest_captions):
        print(answer.__name__.replace("_", " "))
        for row in answer(tables):
            print("   ", *row.values())


if __name__ == "__main__":
    main(sys.argv[1])
