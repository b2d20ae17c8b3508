"""longtake: reinforcement learning for vision-language models over long videos."""

__version__ = "0.1.0"
