"""Passes: graph -> graph. `onnx_lathe.passes()` gives every pass by name.

A folder that holds a file of its own name is a pass; so is a file beside it. core/ is the machinery, graph/ and
numerics/ what several passes share, lowering/ the passes that turn the canonical form into one runtime's.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package cannot have a function of its own name beside it, so this one can be called itself."""

    def __call__(self) -> Any:
        from onnx_lathe.passes.core.registry import all_passes

        return all_passes()


sys.modules[__name__].__class__ = _Callable
