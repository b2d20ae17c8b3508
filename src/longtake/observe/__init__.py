"""What can be seen of a run: progress, metrics, seconds, digests, logs that survive a kill. Imports neither torch nor a model."""
