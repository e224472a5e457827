"""Samples → staged Parquet: the actors that hold a model, pieces and their names, the streaming computation.

Nights, training and judging all stage; what becomes of the pieces is theirs.
"""
