"""Ray, Parquet, object storage and MLflow around the hybrids: from shards to tables, and from shards to trained models.

Rooms, from the ground up: `storage`, `cluster`, `reading`, `models`, `staging`, `datasets`, then `nights`, `training`
and `judging`. Imports point down; README.md beside this file follows a shard through them.
"""
