"""Public data sets, and small data of our own, as shards with a manifest: one file for each, and the writer.

May be imported by jobs only.
"""
