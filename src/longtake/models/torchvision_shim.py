"""Lets torchvision be imported beside a torch it was not built for.

The index serves a CUDA build of torchvision; beside a CPU torch its compiled extension cannot load, and `import torchvision`
then dies on "operator torchvision::nms does not exist". transformers' video processors need only torchvision's Python parts, so
declaring the two operators' schemas (without implementations) is enough. Nothing is declared where the extension loads.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def make_torchvision_importable() -> bool:
    """Declare the missing operator schemas if, and only if, torchvision's extension cannot load.

    Call it before the first import of torchvision (`longtake.models` does). Returns whether anything was declared.
    """
    if "torchvision" in sys.modules or extension_loads():
        return False
    declared = False
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name.partition("::")[2]):
            torch.library.define(name, schema)
            declared = True
    return declared


@functools.cache
def extension_loads() -> bool:
    """Whether torchvision's compiled extension loads into this torch (also true when torchvision is absent: not our concern)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd")):
        try:
            torch.ops.load_library(library)
        except OSError:  # a symbol or a shared library of another torch build is missing
            continue
        return True
    return False
