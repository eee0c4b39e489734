"""What tests of the layout for LiteRT ask of a lowered model: which Transposes are real ones, and equal outputs."""

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.running import ort

IMAGE_OPERATORS = (
    *("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GroupNormalization", "InstanceNormalization"),
    *("LRN", "MaxPool", "SpaceToDepth"),
)
TOLERANCE = 1e-5
"""Largest difference of an output, relative to its largest magnitude."""


def lower(model: onnx.ModelProto, layout: str = "keep", placement: Placement = CANONICAL) -> onnx.ModelProto:
    """The lowered model, which the checker takes."""
    graph = import_model(model)
    configure(find_lowering("litert"), {"layout": layout}).apply(graph, Context(placement=placement))
    lowered = export_model(graph)
    onnx.checker.check_model(lowered, full_check=True)
    return lowered


def transposes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Transposes outside of sandwiches. Raises AssertionError for an image operator without its own two."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    own = set()
    for node in model.graph.node:
        if node.op_type not in IMAGE_OPERATORS:
            continue
        before, (behind,) = makers[node.input[0]], readers[node.output[0]]
        if behind.op_type in ("Relu", "Clip"):
            (behind,) = readers[behind.output[0]]
        for one in (before, behind):
            assert one.op_type == "Transpose", f"{node.name} stands beside {one.op_type}"
            assert len(readers[before.output[0]]) == 1
            assert one.name not in own
            own.add(one.name)
    return [node for node in model.graph.node if node.op_type == "Transpose" and node.name not in own]


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
    last: bool = False,
) -> None:
    """Equal outputs, with ONNX Runtime's own optimizations and without. `last`: inputs and outputs of rank 3 and 4 of
    `after` have their channels last.
    """
    for optimized in (False, True):
        session = ort.session(after, threads=1, optimized=optimized)
        expected = ort.run(ort.session(before, threads=1, optimized=optimized), feeds)
        found = ort.run(session, {name: moved(one) for name, one in feeds.items()} if last else feeds)
        for name, values in expected.items():
            wanted = moved(values) if last else values
            assert wanted.shape == found[name].shape
            scale = np.abs(values).max(initial=0.0)
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def moved(values: np.ndarray) -> np.ndarray:
    """[N, C, ...] as [N, ..., C]."""
    return np.ascontiguousarray(np.moveaxis(values, 1, -1)) if values.ndim in (3, 4) else values
