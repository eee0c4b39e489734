"""Lowerings: passes that turn the canonical form into what one runtime wants. A target names its own; a
recipe cannot.
"""

import importlib

from onnx_lathe.passes.core.base import Pass


def find_lowering(name: str) -> type[Pass]:
    """The class `Lowering` of the module of that name in this folder. Raises ModuleNotFoundError: targets
    name only what is here.
    """
    lowering: type[Pass] = importlib.import_module(f"onnx_lathe.passes.lowering.{name}").Lowering
    return lowering
