"""Tagger: sentences → tags, a hybrid of one small network."""
