"""Training: recipes, the driver, THE training loop, batches, progress, the model card.

May be imported by jobs only.
"""
