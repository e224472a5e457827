"""Trained models: artifacts, sessions that predict, the pyfunc, pictures; MLflow: its server, runs, the registry.

May be imported by staging and all above it.
"""
