"""What lies in the bucket → preprocessed samples: shards, their readers, media, radar, limits, and the jail around it.

Of the rest: `list_shards`, `ReadOptions`, `Limits`, `guarded` and `ShardDatasource` are what others import.
"""
