"""torchvision must import beside this torch, and nothing may be declared where its own extension loads."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import torch
from pathlib import Path
import importlib.util, sys
# the package's own __init__ would already apply it: load the module alone
spec = importlib.util.spec_from_file_location("shim", sys.argv[1])
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)

real = shim.extension_loads
shim.extension_loads = lambda: True
assert not shim.make_torchvision_importable()
if not real():
    assert not hasattr(torch.ops.torchvision, "nms"), "declared although the extension loads"

shim.extension_loads = real
needed = not real()
assert shim.make_torchvision_importable() == needed
assert not shim.make_torchvision_importable(), "declared twice"

import torchvision.transforms.v2.functional as functional
image = functional.resize(torch.arange(16.0).reshape(1, 4, 4), [2, 2], antialias=True)
assert image.shape == (1, 2, 2)
assert not shim.make_torchvision_importable()
print("fine")
"""


def test_in_a_fresh_process():
    from longtake.models import torchvision_shim

    run = subprocess.run([sys.executable, "-c", CODE, torchvision_shim.__file__], capture_output=True, text=True)
    assert run.stdout.strip() == "fine", run.stderr


def test_absent_torchvision_is_not_our_concern(monkeypatch):
    from longtake.models import torchvision_shim

    monkeypatch.setattr(torchvision_shim.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert not torchvision_shim.make_torchvision_importable()
