"""The operators that the writer knows, by name: each file in operators/ says which and how."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache

from onnx_lathe.runtime.targets.core.node import Node
from onnx_lathe.runtime.targets.coreml.network import Network

Builder = Callable[[Node, Network], None]

_TABLE: dict[tuple[str, str], Builder] = {}


def operator(*names: str, domain: str = "") -> Callable[[Builder], Builder]:
    """Decorator: this function writes the operators of these names. It raises Unsupported for a node that Core ML
    cannot compute, and leaves a variable for every output that is read (Network.put).
    """

    def register(builder: Builder) -> Builder:
        for name in names:
            _TABLE[domain, name] = builder
        return builder

    return register


def find(domain: str, name: str) -> Builder | None:
    return operators().get((domain, name))


def operators() -> Mapping[tuple[str, str], Builder]:
    _load()
    return _TABLE


@cache
def _load() -> None:
    from onnx_lathe.runtime.targets.coreml import operators

    for module in pkgutil.iter_modules(operators.__path__):
        importlib.import_module(f"{operators.__name__}.{module.name}")
