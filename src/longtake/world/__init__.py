"""Procedural long videos with ground truth: a story, its frames, its questions."""
