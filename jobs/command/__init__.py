"""What all verbs share: usage, outcomes and exit codes, and options that more than one has.

Knows verbs by their names alone. May be imported by every verb and from nowhere below.
"""
