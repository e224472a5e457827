"""Nights: THE inference loop, the tables that they are committed to, questions, the page, and tidying up.

May be imported by jobs only.
"""
