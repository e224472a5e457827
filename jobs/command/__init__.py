"""The command line that every verb is: its usage, outcome and exit code, and the options that verbs share.

Knows verbs by their names alone. May be imported by every verb and from nowhere below.
"""
