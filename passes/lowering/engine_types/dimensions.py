"""Names of the inputs' dimensions: to TensorRT, dimensions of one name have one size."""

import re
from collections.abc import Mapping, Sequence

from onnx_lathe.engines import says_nothing
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph


def unname(graph: Graph, shapes: Mapping[str, Sequence[Sequence[int]]], report: PassReport) -> None:
    """Takes away names that say nothing, and those that `shapes`, of inputs, give several sizes."""
    unequal = _unequal(graph, shapes)
    for tensor in graph.inputs:
        dims = list(tensor.shape or [])
        named = [None if isinstance(dim, str) and says_nothing(dim) else dim for dim in dims]
        if named != dims:
            report.edit(tensor.name, "dimensions of unknown size have no common name")
        apart = [None if dim in unequal else dim for dim in named]
        if apart != named:
            said = ", ".join(f"'{dim}'" for dim in dict.fromkeys(named) if dim in unequal)
            report.edit(tensor.name, f"dimensions named {said} have no common name: their sizes differ")
        if apart != dims:
            tensor.shape = apart


def sizes(shapes: Mapping[str, str]) -> dict[str, list[list[int]]]:
    """Shapes of inputs from their text: `1x3x32x32`, or several with : or | between."""
    return {
        name: [[int(size) for size in shape.split("x")] for shape in re.split("[:|]", text)]
        for name, text in shapes.items()
    }


def _unequal(graph: Graph, shapes: Mapping[str, Sequence[Sequence[int]]]) -> set[str]:
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for tensor in graph.inputs:
        given = shapes.get(tensor.name, ())
        dims = list(tensor.shape or [])
        if any(len(shape) != len(dims) for shape in given):
            continue
        for axis, dim in enumerate(dims):
            if isinstance(dim, str) and given:
                sizes.setdefault(dim, set()).add(tuple(shape[axis] for shape in given))
    return {name for name, found in sizes.items() if len(found) > 1}
