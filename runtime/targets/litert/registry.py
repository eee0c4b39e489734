"""The operators that the writer knows, by name: each file in operators/ says which and how."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node

Builder = Callable[[Node, Network], None]


@dataclass(frozen=True)
class Entry:
    """A builder and what it takes.

    spatial: its first input and its output have channels that LiteRT wants last: the Transposes around it are folded.
    fuses: it writes a Relu, Relu6 or Clip to [-1, 1] behind it as its fused activation (Node.activation).
    integers: types of stored activations in which LiteRT has a kernel; else the node computes in float, between a
    DEQUANTIZE and a QUANTIZE.
    data: positions of the inputs that must be quantized for that; None: all that are floats.
    """

    build: Builder
    spatial: bool = False
    fuses: bool = False
    integers: tuple[str, ...] = ()
    data: tuple[int, ...] | None = None


_TABLE: dict[tuple[str, str], Entry] = {}


def operator(
    *names: str,
    domain: str = "",
    spatial: bool = False,
    fuses: bool = False,
    integers: tuple[str, ...] = (),
    data: tuple[int, ...] | None = None,
) -> Callable[[Builder], Builder]:
    """Decorator: this function writes the operators of these names. It raises Unsupported for a node that LiteRT
    cannot compute, and leaves a tensor for every output that is read (Network.put). The rest is told in Entry.
    """

    def register(builder: Builder) -> Builder:
        for name in names:
            _TABLE[domain, name] = Entry(builder, spatial, fuses, integers, data)
        return builder

    return register


def find(domain: str, name: str) -> Entry | None:
    return operators().get(("" if domain == "ai.onnx" else domain, name))


def operators() -> Mapping[tuple[str, str], Entry]:
    _load()
    return _TABLE


@cache
def _load() -> None:
    from onnx_lathe.runtime.targets.litert import operators

    for module in pkgutil.iter_modules(operators.__path__):
        importlib.import_module(f"{operators.__name__}.{module.name}")
