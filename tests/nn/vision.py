"""torchvision and timm, also where torchvision's C++ operators do not load: the networks need none of them."""

from __future__ import annotations

import importlib.util
import sys

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_SCHEMAS = {  # the operators that torchvision describes on import, loaded or not
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def available(package: str) -> bool:
    """Return True if ``package`` is installed, which may import torchvision; make that import work."""
    if importlib.util.find_spec(package) is None:
        return False
    if importlib.util.find_spec("torchvision") is not None and "torchvision" not in sys.modules:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:  # a build for CUDA beside a torch for CPUs
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            for name, schema in _SCHEMAS.items():
                _LIBRARY.define(name + schema)
            importlib.import_module("torchvision")
    return True
