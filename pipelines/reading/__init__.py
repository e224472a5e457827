"""What lies in the bucket → preprocessed samples: shards, readers, formats, media, limits, and the sandbox around them.

Of the rest: `list_shards`, `units`, `ReadOptions`, `Limits`, `guarded` and `ShardDatasource` are what others import.
"""
