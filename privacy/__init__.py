"""User-level differential privacy: sampling, clipping, noise, accounting. Knows nothing of Flower."""
