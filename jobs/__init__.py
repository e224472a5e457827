"""One file for each verb: parse, check, call pipelines, print one JSON summary.

`command/` is the command line that all verbs share, `recipes/` the named configurations of `hybrid train`. Nothing
outside may import from here.
"""
