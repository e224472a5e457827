"""Trained models: artifacts, the registry and runs in MLflow, the pyfunc, pictures of what models look at.

May be imported by staging and all above it.
"""
