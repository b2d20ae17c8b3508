"""Sequence parallelism and the shared prompt on unmodified transformers models."""
