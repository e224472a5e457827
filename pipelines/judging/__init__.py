"""Judging models on held-out shards, and the gate before one is used at night.

May be imported by jobs only.
"""
