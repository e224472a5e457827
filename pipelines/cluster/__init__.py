"""The Ray cluster: connecting to it, what a job takes of it, jobs sent to it, logs and counters.

May be imported by every room.
"""
