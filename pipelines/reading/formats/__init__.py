"""One module for each kind of shard: a stream → entries, in bounded memory.

`reading.readers` says which suffix has which; a new format is a module here and a line there.
"""
