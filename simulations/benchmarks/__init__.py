"""Measurements of speed and memory. They print ratios; no test asserts them."""
