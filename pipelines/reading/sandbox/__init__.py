"""The decoding child: strangers' bytes meet native decoders in a process that has no keys, no network and no files.

`guard` is where others enter: `guarded` gives a shard's rows, whatever happens to the process that reads them.
"""
