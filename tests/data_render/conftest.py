"""Before any test module here imports transformers' processors: they need torchvision to be importable."""

import longtake.models  # noqa: F401
