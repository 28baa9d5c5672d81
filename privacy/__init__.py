"""User-level differential privacy: sampling, clipping, noise, accounting.

Knows nothing of Flower, of transformers or of tables.
"""
