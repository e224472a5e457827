"""The demo's own small data: captioned scenes, moving digits, sentence pairs.

`data` makes all of it; the others are its nights, grammar and words.
"""
