"""Frozen base model, LoRA adapter and head."""
