"""Training: what trains, batches, log-probs, optimizer, checkpoints, export."""

# First of all: peft imports transformers' model code, which needs torchvision to be importable.
import longtake.models  # noqa: F401
