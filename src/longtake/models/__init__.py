"""Model families on unmodified transformers models.

Importing this package makes torchvision importable first: transformers' model code imports it, and beside a CPU torch it cannot.
"""

from longtake.models.torchvision_shim import make_torchvision_importable

make_torchvision_importable()

from longtake.models.family import Message, Model  # noqa: E402
from longtake.models.loading import FAMILIES, load_model, model_folder  # noqa: E402

__all__ = ["FAMILIES", "Message", "Model", "load_model", "model_folder"]
